"""Figures, drawn without a display, each narrow enough to be read on a phone.

The colours are Okabe and Ito's (jfly.uni-koeln.de/color, 2008), which colour-blind readers can
tell apart; arms differ in their dashes, too, for a page printed in grey.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from scipy.stats import binomtest, t
from sklearn.metrics import roc_curve

from kit import stats
from kit.base import CENTRE_SIZE, CLASS_NAMES, TILE_SIZE, EpochResult, atomic_path, competition

BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)
GREY = "#767676"
CALIBRATION_BINS = 15
"""As `stats.expected_calibration_error` counts them."""

_ARM_COLOURS = {"before": BLUE, "after": VERMILLION}
_GROUP_COLOURS = {CLASS_NAMES[0]: BLUE, CLASS_NAMES[1]: VERMILLION, "test": GREY}
_DASHES = ("-", "--", "-.", ":")
_SIDES = {"train": "training", "valid": "validation"}
_QUANTITIES = {"auc": "AUC", "min_running_var": "smallest running variance"}
# More names than these would run into each other below the bars.
_MOST_NAMED_BARS = 24
_SHEET_GAP = 6

Floats = npt.NDArray[np.float64]
Tiles = npt.NDArray[np.uint8]
Predictions = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
"""A run's or an arm's name, its tiles' labels and their probabilities."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def curves(history: Sequence[EpochResult], path: Path, *, title: str) -> None:
    """Draw accuracy and loss by epoch, training beside validation, into a PNG file."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(_plain(title))
    for axes, quantity in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        _draw_sides(axes, history, quantity)
    save(figure, path)


def sides(history: Sequence[EpochResult], quantity: str, *, title: str) -> Figure:
    """Draw one quantity (accuracy, loss) by epoch, training beside validation."""
    figure, axes = _single(title)
    _draw_sides(axes, history, quantity)
    return figure


def arms(
    histories: Mapping[str, Sequence[Sequence[EpochResult]]], field: str, *, title: str
) -> Figure:
    """Draw a field of the epochs' results for several arms, each trained with several seeds.

    Thin lines are seeds, thick ones their mean; the shade is the mean's 95 % interval
    (Student's t), where an arm has two seeds or more. The lines set the scale: a wider shade
    is cut off.

    Parameters
    ----------
    histories
        An arm's name and one history a seed.
    field
        Of `EpochResult`, such as valid_accuracy.
    """
    figure, axes = _single(title)
    tables = {name: _by_epoch(runs, field) for name, runs in histories.items()}
    styles = _arm_styles(histories)
    for name, table in tables.items():
        colour, dashes = styles[name]
        axes.plot(table.index, table, color=colour, linewidth=0.7, alpha=0.45)
        label = f"{_plain(name)} ({table.shape[1]} seeds)"
        axes.plot(table.index, table.mean(axis=1), dashes, color=colour, linewidth=2.2, label=label)
    limits = axes.get_ylim()
    for name, table in tables.items():
        if table.shape[1] > 1:
            axes.fill_between(
                table.index, *_interval_of_mean(table), color=styles[name][0], alpha=0.18, lw=0
            )
    axes.set(xlabel="epoch", ylabel=_field_name(field), ylim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def roc(predictions: Predictions, *, title: str = "ROC curve") -> Figure:
    """Draw the ROC curve of each run or arm, with its AUC."""
    figure, axes = _single(title, height=4.6)
    for name, (colour, dashes) in _arm_styles(predictions).items():
        labels, probabilities = predictions[name]
        false_positives, true_positives, _ = roc_curve(labels, probabilities)
        label = f"{_plain(name)} (AUC {stats.auc(labels, probabilities):.4f})"
        axes.plot(false_positives, true_positives, dashes, color=colour, label=label)
    axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="chance (AUC 0.5)")
    axes.set(
        xlabel="false positive rate (negative tiles called positive)",
        ylabel="true positive rate (positive tiles found)",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    axes.legend(loc="lower right")
    return figure


def calibration(predictions: Predictions, *, title: str = "Calibration") -> Figure:
    """Draw how often tiles of each predicted probability are positive, above their counts.

    Bars are Wilson's 95 % intervals, which take the tiles as independent.
    """
    figure = Figure(figsize=(5, 4.8), layout="constrained")
    figure.suptitle(_plain(title), fontsize="large")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="perfect")
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    for name, (colour, dashes) in _arm_styles(predictions).items():
        labels, probabilities = map(np.asarray, predictions[name])
        error = stats.expected_calibration_error(labels, probabilities, CALIBRATION_BINS)
        label = f"{_plain(name)} (mean distance {error:.3f})"
        predicted, share, margins = _reliability(labels, probabilities, edges)
        upper.errorbar(
            predicted, share, margins, fmt=f"o{dashes}", color=colour, ms=4, lw=1.2, label=label
        )
        lower.hist(probabilities, edges, histtype="step", color=colour, linestyle=dashes, lw=1.4)
    upper.set(ylabel="share of positive tiles", ylim=(-0.02, 1.02))
    lower.set(xlabel="predicted probability of tumour", ylabel="tiles", yscale="log")
    lower.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.yaxis.set_minor_formatter(NullFormatter())
    upper.legend(loc="upper left")
    for axes in (upper, lower):
        _tidy(axes)
    return figure


def class_counts(counts: pd.DataFrame, *, title: str) -> Figure:
    """Draw the number of tiles of each class.

    Parameters
    ----------
    counts
        A row a class; its columns, if there are several, are stacked.
    """
    figure, axes = _single(title)
    base = np.zeros(len(counts))
    colours = [_GROUP_COLOURS[str(name)] for name in counts.index]
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


def tile_sheet(tiles: Tiles, *, title: str, columns: int = 4) -> Figure:
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
    axes.set_title(_plain(title), loc="left")
    return figure


def channel_histogram(counts: npt.NDArray[np.int64], *, title: str) -> Figure:
    """Draw how often each value of each channel occurs, beside the competition's means.

    Parameters
    ----------
    counts
        (3, 256), of red, green and blue.
    """
    figure, axes = _single(title)
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
    figure, axes = _single(title)
    arrays = {name: np.asarray(values) for name, values in groups.items() if np.size(values)}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), 50).tolist()
    for dashes, (name, values) in zip(_DASHES, arrays.items(), strict=False):
        weights = np.full(len(values), 1 / len(values))
        label = f"{name} ({len(values):,})"
        colour = _GROUP_COLOURS[name]
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
        A row a slide, the largest first, and a column a class.
    """
    figure, axes = _single(title)
    places, base = np.arange(len(counts)), np.zeros(len(counts))
    for name in CLASS_NAMES:
        values = counts[name].to_numpy()
        axes.bar(places, values, 0.85, base, color=_GROUP_COLOURS[name], label=name)
        base += values
    if len(counts) <= _MOST_NAMED_BARS:
        names = [_plain(str(name)) for name in counts.index]
        axes.set_xticks(places, names, rotation=45 if len(counts) > 4 else 0, ha="center")
    axes.set(xlabel="slides, the largest first", ylabel="tiles")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")
    axes.legend()
    return figure


def _single(title: str, *, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a figure of one plot."""
    figure = Figure(figsize=(5, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_plain(title))
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)


def _plain(text: str) -> str:
    """Keep Matplotlib from reading dollar signs as mathematics."""
    return text.replace("$", r"\$")


def _draw_sides(axes: Axes, history: Sequence[EpochResult], quantity: str) -> None:
    """Draw one quantity of both sides by epoch."""
    epochs = [result.epoch for result in history]
    for (side, label), colour in zip(_SIDES.items(), (BLUE, VERMILLION), strict=True):
        values = [getattr(result, f"{side}_{quantity}") for result in history]
        axes.plot(epochs, values, marker=".", color=colour, label=label)
    axes.set(xlabel="epoch", ylabel=quantity)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def _arm_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Give each arm a colour and dashes: before and after their own, others what is left."""
    names = list(names)
    fixed = {name: colour for name, colour in _ARM_COLOURS.items() if name in names}
    rest = itertools.cycle([colour for colour in PALETTE if colour not in fixed.values()])
    dashes = itertools.cycle(_DASHES)
    return {name: (fixed.get(name) or next(rest), next(dashes)) for name in names}


def _field_name(field: str) -> str:
    """Name a field of `EpochResult` as a reader would."""
    side, _, quantity = field.partition("_")
    if side in _SIDES:
        return f"{_SIDES[side]} {_QUANTITIES.get(quantity, quantity)}"
    return _QUANTITIES.get(field, field.replace("_", " "))


def _by_epoch(runs: Sequence[Sequence[EpochResult]], field: str) -> pd.DataFrame:
    """Return a row an epoch and a column a seed."""
    columns = [{result.epoch: getattr(result, field) for result in history} for history in runs]
    return pd.DataFrame(dict(enumerate(columns)))


def _interval_of_mean(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the bounds of the 95 % interval of each row's mean."""
    mean = table.mean(axis=1)
    quantile = t.ppf((1 + stats.CONFIDENCE) / 2, table.shape[1] - 1)
    margin = quantile * table.sem(axis=1)
    return mean - margin, mean + margin


def _reliability(
    labels: npt.NDArray[np.int64], probabilities: Floats, edges: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return each filled bin's mean prediction, share of positives, and interval's two arms."""
    bins = np.searchsorted(edges[1:-1], probabilities)
    rows = []
    for members in (bins == number for number in np.unique(bins)):
        tiles, positives = int(members.sum()), int(labels[members].sum())
        interval = binomtest(positives, tiles).proportion_ci(stats.CONFIDENCE, method="wilson")
        share = positives / tiles
        low, high = max(share - interval.low, 0), max(interval.high - share, 0)
        rows.append((probabilities[members].mean(), share, low, high))
    predicted, share, low, high = np.array(rows).T
    return predicted, share, np.stack([low, high])
