"""The picture of a learning curve."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from kit.report.style import DASHES, PALETTE, legend_below, single


def learning_figure(table: pd.DataFrame) -> Figure:
    """Draw the AUC over the number of labelled tiles, with the interval of each mean.

    Parameters
    ----------
    table
        From `study.curve_table`.
    """
    figure, axes = single("How many labels?", height=3.8)
    for number, (name, rows) in enumerate(table.groupby("recipe", sort=False)):
        colour, dash = PALETTE[number % len(PALETTE)], DASHES[number % len(DASHES)]
        axes.plot(rows["tiles"], rows["auc"], ls=dash, color=colour, marker="o", label=str(name))
        known = rows.dropna(subset=["low", "high"])
        low, high = known["low"].astype(float), known["high"].astype(float)
        axes.vlines(known["tiles"], low, high, colors=colour, linewidth=1.5, alpha=0.6)
    tiles = sorted(set(table["tiles"]))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(tiles))
    axes.xaxis.set_minor_locator(NullLocator())
    # Two numbers side by side would run into each other.
    following = [*tiles[1:], float("inf")]
    pairs = zip(tiles, following, strict=True)
    axes.set_xticklabels(["" if after < 2 * count else f"{count:,}" for count, after in pairs])
    axes.set(xlabel="labelled tiles (logarithmic)", ylabel="AUC on held-out tiles")
    axes.grid(alpha=0.3)
    legend_below(figure)
    return figure
