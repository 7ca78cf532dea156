"""Figures of the tiles themselves: classes, sheets, channels, stains, slides."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from kit.base import CENTRE_SIZE, CLASS_NAMES, TILE_SIZE, Indices, Pixels, competition
from kit.report.style import BLUE, DASHES, GREEN, GROUP_COLOURS, VERMILLION, plain, single

# More names than these would run into each other below the bars.
_MOST_NAMED_BARS = 24
_SHEET_GAP = 6


def class_counts(counts: pd.DataFrame, *, title: str) -> Figure:
    """Draw the number of tiles of each class.

    Parameters
    ----------
    counts
        A row per class; its columns, if there are several, are stacked.
    """
    figure, axes = single(title)
    base = np.zeros(len(counts))
    colours = [GROUP_COLOURS[str(name)] for name in counts.index]
    for column, alpha, ink in zip(counts, (1.0, 0.45), ("white", "black"), strict=False):
        values = counts[column].to_numpy()
        bars = axes.bar(list(counts.index), values, 0.6, base, color=colours, alpha=alpha)
        if counts.shape[1] > 1:
            inside = [f"{column}\n{value:,}" for value in values]
            axes.bar_label(bars, inside, label_type="center", color=ink)
        base += values
    shares = [f"{total:,.0f} ({100 * total / base.sum():.1f} %)" for total in base]
    axes.bar_label(bars, shares, padding=2)
    axes.set(ylabel="tiles")
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")
    return figure


def tile_sheet(tiles: Pixels, *, title: str, columns: int = 4) -> Figure:
    """Draw tiles side by side, the central square of each outlined.

    Parameters
    ----------
    tiles
        (tiles, 96, 96, 3), RGB; one at least.
    """
    rows = -(-len(tiles) // columns)
    step = TILE_SIZE + _SHEET_GAP
    sheet = np.full((rows * step, columns * step, 3), 255, np.uint8)
    figure = Figure(figsize=(5, 0.25 + 5 * rows / columns), layout="constrained")
    axes = figure.subplots()
    margin = (TILE_SIZE - CENTRE_SIZE) / 2 - 0.5
    for tile, (row, column) in zip(tiles, np.ndindex(rows, columns), strict=False):
        top, left = row * step, column * step
        sheet[top : top + TILE_SIZE, left : left + TILE_SIZE] = tile
        # White on black shows on any tissue.
        for colour, width in (("black", 1.8), ("white", 0.8)):
            corner = (left + margin, top + margin)
            axes.add_patch(
                Rectangle(corner, CENTRE_SIZE, CENTRE_SIZE, fill=False, ec=colour, lw=width)
            )
    axes.imshow(sheet[:-_SHEET_GAP, :-_SHEET_GAP], interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(plain(title), loc="left")
    return figure


def channel_histogram(counts: Indices, *, title: str) -> Figure:
    """Draw how often each value of each channel occurs, beside the competition's means.

    Parameters
    ----------
    counts
        (3, 256), of red, green and blue.
    """
    figure, axes = single(title)
    styles = {"red": (VERMILLION, "-"), "green": (GREEN, "--"), "blue": (BLUE, "-.")}
    for number, (name, (colour, dashes)) in enumerate(styles.items()):
        share = counts[number] / counts[number].sum()
        axes.plot(np.arange(256) / 255, share, dashes, color=colour, lw=1.4, label=name)
        mean = competition.CHANNEL_MEAN[number]
        axes.axvline(mean, color=colour, linestyle=dashes, lw=0.8, alpha=0.7)
    axes.set(xlabel="value of a pixel's channel (255 is 1)", ylabel="share of pixels")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend()
    return figure


def distributions(groups: Mapping[str, npt.ArrayLike], *, xlabel: str, title: str) -> Figure:
    """Draw the distribution of one quantity of a tile for negative, positive and test tiles."""
    figure, axes = single(title)
    arrays = {name: np.asarray(values) for name, values in groups.items() if np.size(values)}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), 50).tolist()
    for dashes, (name, values) in zip(DASHES, arrays.items(), strict=False):
        weights = np.full(len(values), 1 / len(values))
        label = f"{name} ({len(values):,})"
        colour = GROUP_COLOURS[name]
        axes.hist(
            values,
            edges,
            weights=weights,
            histtype="step",
            color=colour,
            linestyle=dashes,
            linewidth=1.5,
            label=label,
        )
    axes.set(xlabel=xlabel, ylabel="share of tiles")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend()
    return figure


def classes_by_slide(counts: pd.DataFrame, *, title: str) -> Figure:
    """Draw the tiles of each slide, its classes stacked.

    Parameters
    ----------
    counts
        A row per slide, the largest first, and a column per class.
    """
    figure, axes = single(title)
    places, base = np.arange(len(counts)), np.zeros(len(counts))
    for name in CLASS_NAMES:
        values = counts[name].to_numpy()
        axes.bar(places, values, 0.85, base, color=GROUP_COLOURS[name], label=name)
        base += values
    if len(counts) <= _MOST_NAMED_BARS:
        names = [plain(str(name)) for name in counts.index]
        axes.set_xticks(places, names, rotation=45 if len(counts) > 4 else 0, ha="center")
    axes.set(xlabel="slides, the largest first", ylabel="tiles")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")
    axes.legend()
    return figure
