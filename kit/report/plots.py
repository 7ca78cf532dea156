"""Figures of training and of predictions, each narrow enough to be read on a phone.

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
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.stats import t
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from kit import stats
from kit.base import CLASS_NAMES, EpochResult, Floats, Labels, counted
from kit.report.style import (
    BLUE,
    DASHES,
    GREY,
    PALETTE,
    VERMILLION,
    Dashes,
    legend_below,
    plain,
    save_figure,
    single,
    tidy,
)

CALIBRATION_BINS = 15
"""As `stats.expected_calibration_error` counts them."""

_ARM_COLOURS = {"before": BLUE, "after": VERMILLION}
_SIDES = {"train": "training", "valid": "validation"}
_QUANTITIES = {"auc": "AUC", "min_running_var": "smallest running variance"}

Predictions = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]
"""A run's or an arm's name, its tiles' labels and their probabilities."""

PredictionsBySeed = Mapping[str, Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]]
"""An arm's name, and for each seed its tiles' labels and their probabilities."""


def curves(history: Sequence[EpochResult], path: Path, *, title: str) -> None:
    """Draw accuracy and loss by epoch, training beside validation, into a PNG file."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(plain(title))
    for axes, quantity in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        _draw_sides(axes, history, quantity)
    save_figure(figure, path)


def sides(history: Sequence[EpochResult], quantity: str, *, title: str) -> Figure:
    """Draw one quantity (accuracy, loss) by epoch, training beside validation."""
    figure, axes = single(title)
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
        An arm's name and one history per seed.
    field
        Of `EpochResult`, such as valid_accuracy.
    """
    figure, axes = single(title)
    tables = {name: _by_epoch(runs, field) for name, runs in histories.items()}
    styles = _arm_styles(histories)
    for name, table in tables.items():
        colour, dashes = styles[name]
        # A single epoch makes no line.
        marker = "o" if len(table) == 1 else ""
        axes.plot(table.index, table, "-", marker=marker, color=colour, lw=0.7, alpha=0.45)
        label = f"{plain(name)} ({counted(table.shape[1], 'seed')})"
        mean = table.mean(axis=1)
        axes.plot(table.index, mean, ls=dashes, marker=marker, color=colour, lw=2.2, label=label)
    limits = axes.get_ylim()
    for name, table in tables.items():
        if table.shape[1] > 1:
            axes.fill_between(
                table.index, *_interval_of_mean(table), color=styles[name][0], alpha=0.18, lw=0
            )
    axes.set(xlabel="epoch", ylabel=_field_name(field), ylim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend_below(figure, columns=2)
    return figure


def seeds_by_arm(values: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """Draw each seed's value in each arm, a line through those of one seed, and the arms' means.

    Parameters
    ----------
    values
        An arm's name and one value per seed, in the same order of seeds.
    """
    figure, axes = single(title)
    places = np.arange(len(values))
    axes.plot(places, np.array(list(values.values())), color=GREY, lw=0.7, alpha=0.6)
    for place, (name, (colour, _)) in zip(places, _arm_styles(values).items(), strict=True):
        own = values[name]
        axes.plot(np.full(len(own), place), own, "o", ms=4, color=colour)
        axes.plot([place - 0.2, place + 0.2], [np.mean(own)] * 2, color=colour, lw=3)
    axes.set_xticks(places, [plain(name) for name in values], rotation=20)
    axes.set(ylabel="validation AUC", xlim=(-0.5, len(places) - 0.5))
    return figure


def roc(predictions: Predictions, *, title: str = "ROC curve") -> Figure:
    """Draw the ROC curve of each run or arm, with its AUC."""
    figure, axes = _roc_axes(title, len(predictions))
    for name, (colour, dashes) in _arm_styles(predictions).items():
        labels, probabilities = predictions[name]
        false_positives, true_positives, _ = roc_curve(labels, probabilities)
        label = f"{plain(name)} (AUC {stats.auc(labels, probabilities):.4f})"
        axes.plot(false_positives, true_positives, ls=dashes, color=colour, label=label)
    legend_below(figure)
    return figure


def mean_roc(predictions: PredictionsBySeed, *, title: str = "ROC curve") -> Figure:
    """Draw the mean of the seeds' ROC curves for each arm, with the mean of their AUCs.

    At each false positive rate it is the mean of the true positive rates (Fawcett, Pattern
    Recognition Letters 27 (2006) 861-874, section 8): scores of different runs are not mixed.
    """
    figure, axes = _roc_axes(title, len(predictions))
    rates = np.linspace(0, 1, 501)
    for name, (colour, dashes) in _arm_styles(predictions).items():
        curves = [roc_curve(*pair, drop_intermediate=False)[:2] for pair in predictions[name]]
        found = np.array([np.interp(rates, *curve) for curve in curves])
        area = np.mean([stats.auc(*pair) for pair in predictions[name]])
        label = f"{plain(name)} (mean AUC {area:.4f}, {counted(len(curves), 'seed')})"
        axes.plot(rates, found.T, color=colour, linewidth=0.6, alpha=0.35)
        axes.plot(rates, found.mean(axis=0), ls=dashes, color=colour, label=label)
    legend_below(figure)
    return figure


def precision_recall(predictions: Predictions, *, title: str = "Precision and recall") -> Figure:
    """Draw precision against recall for each run or arm, with its average precision.

    Chance is the share of positive tiles, whatever the recall.
    """
    figure, axes = single(title, height=_square_height(len(predictions)))
    for name, (colour, dashes) in _arm_styles(predictions).items():
        precision, recall, _ = precision_recall_curve(*predictions[name])
        average = average_precision_score(*predictions[name])
        label = f"{plain(name)} (average precision {average:.4f})"
        # scikit-learn ends the curve in a point of no recall, which no threshold has.
        recall, precision = recall[:-1], precision[:-1]
        axes.step(recall, precision, ls=dashes, where="post", color=colour, label=label)
    labels, _ = next(iter(predictions.values()))
    share = float(np.asarray(labels).mean())
    label = f"chance (precision {share:.2f})"
    axes.axhline(share, color=GREY, linestyle=":", linewidth=1, label=label)
    axes.set(
        xlabel="recall (positive tiles found)",
        ylabel="precision (tiles called positive that are)",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    legend_below(figure)
    return figure


def confusion_matrix(counts: stats.Confusion, *, title: str) -> Figure:
    """Draw how many tiles of each class were called what, shaded by the share of their class."""
    table = np.array(
        [
            [counts.true_negatives, counts.false_positives],
            [counts.false_negatives, counts.true_positives],
        ]
    )
    shares = table / table.sum(axis=1, keepdims=True)
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(plain(title))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{number:,}\n{100 * share:.1f} %",
            color="white" if share > 0.65 else "black",
            ha="center",
            va="center",
        )
    axes.set_xticks([0, 1], [f"called {name}" for name in CLASS_NAMES])
    axes.set_yticks([0, 1], CLASS_NAMES, rotation=90, va="center")
    axes.tick_params(length=0)
    return figure


def calibration(predictions: Predictions, *, title: str = "Calibration") -> Figure:
    """Draw how often tiles of each predicted probability are positive, above their counts.

    Bars are Wilson's 95 % intervals, which take the tiles as independent.
    """
    figure = Figure(figsize=(5, _square_height(len(predictions))), layout="constrained")
    figure.suptitle(plain(title), fontsize="large")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="perfect")
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    for name, (colour, dashes) in _arm_styles(predictions).items():
        labels, probabilities = map(np.asarray, predictions[name])
        error = stats.expected_calibration_error(labels, probabilities, CALIBRATION_BINS)
        label = f"{plain(name)} (mean distance {error:.3f})"
        predicted, share, margins = _reliability(labels, probabilities, edges)
        style = {"marker": "o", "ls": dashes, "color": colour, "label": label}
        upper.errorbar(predicted, share, margins, ms=4, lw=1.2, **style)
        lower.hist(probabilities, edges, histtype="step", color=colour, linestyle=dashes, lw=1.4)
    upper.set(ylabel="share of positive tiles", ylim=(-0.02, 1.02))
    lower.set(xlabel="predicted probability of tumour", ylabel="tiles", yscale="log")
    lower.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.yaxis.set_minor_formatter(NullFormatter())
    legend_below(figure)
    for axes in (upper, lower):
        tidy(axes)
    return figure


def _roc_axes(title: str, curves: int) -> tuple[Figure, Axes]:
    """Return a figure of the unit square, with the line of chance and room for a legend."""
    figure, axes = single(title, height=_square_height(curves))
    axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="chance (AUC 0.5)")
    axes.set(
        xlabel="false positive rate (negative tiles called positive)",
        ylabel="true positive rate (positive tiles found)",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    return figure, axes


def _square_height(curves: int) -> float:
    """Return the height in inches at which a square fills the width, above a legend."""
    return 4.8 + 0.17 * (curves + 1)


def _draw_sides(axes: Axes, history: Sequence[EpochResult], quantity: str) -> None:
    """Draw one quantity of both sides by epoch; a refit has one side."""
    epochs = [result.epoch for result in history]
    for (side, label), colour in zip(_SIDES.items(), (BLUE, VERMILLION), strict=True):
        values = [getattr(result, f"{side}_{quantity}") for result in history]
        if None not in values:
            axes.plot(epochs, values, marker=".", color=colour, label=label)
    axes.set(xlabel="epoch", ylabel=quantity)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()


def _arm_styles(names: Iterable[str]) -> dict[str, tuple[str, Dashes]]:
    """Give each arm a colour and dashes: before and after their own, others what is left."""
    names = list(names)
    fixed = {name: colour for name, colour in _ARM_COLOURS.items() if name in names}
    rest = itertools.cycle([colour for colour in PALETTE if colour not in fixed.values()])
    dashes = itertools.cycle(DASHES)
    return {name: (fixed.get(name) or next(rest), next(dashes)) for name in names}


def _field_name(field: str) -> str:
    """Name a field of `EpochResult` as a reader would."""
    side, _, quantity = field.partition("_")
    if side in _SIDES:
        return f"{_SIDES[side]} {_QUANTITIES.get(quantity, quantity)}"
    return _QUANTITIES.get(field, field.replace("_", " "))


def _by_epoch(runs: Sequence[Sequence[EpochResult]], field: str) -> pd.DataFrame:
    """Return a row per epoch and a column per seed."""
    columns = [{result.epoch: getattr(result, field) for result in history} for history in runs]
    return pd.DataFrame(dict(enumerate(columns)))


def _interval_of_mean(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the bounds of the 95 % interval of each row's mean."""
    mean = table.mean(axis=1)
    quantile = t.ppf((1 + stats.CONFIDENCE) / 2, table.shape[1] - 1)
    margin = quantile * table.sem(axis=1)
    return mean - margin, mean + margin


def _reliability(
    labels: Labels, probabilities: Floats, edges: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return each filled bin's mean prediction, share of positives, and interval's two arms."""
    bins = np.searchsorted(edges[1:-1], probabilities)
    rows = []
    for members in (bins == number for number in np.unique(bins)):
        tiles, positives = int(members.sum()), int(labels[members].sum())
        interval = stats.share_interval(positives, tiles)
        assert interval.low is not None and interval.high is not None
        share = interval.estimate
        low, high = max(share - interval.low, 0), max(interval.high - share, 0)
        rows.append((probabilities[members].mean(), share, low, high))
    predicted, share, low, high = np.array(rows).T
    return predicted, share, np.stack([low, high])
