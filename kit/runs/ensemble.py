"""Means of runs, chosen on predictions that none of their trainings has seen.

Cross-validated runs bring their out-of-fold predictions, others those of their holdout; all must
be of the same tiles. Nothing is ever chosen by what a leaderboard said.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from kit import stats
from kit.base import Floats, Indices, KitError, Labels, Strings, read_json, write_json
from kit.runs.folder import refit_of
from kit.runs.folds import require_distinct
from kit.runs.predictions import read_valid
from kit.stats import Comparison, Interval

Mean = Literal["probability", "rank"]

# A run that is drawn again counts twice; more draws than this move the mean by little.
MAX_DRAWS = 20
PARTS = 5
PARTITIONS = 10
"""How many times the tiles are parted, as in ten times ten-fold cross-validation."""


@dataclass(frozen=True)
class Ensemble:
    """A weighted mean of runs.

    Attributes
    ----------
    weights
        By run folder; they sum to 1.
    mean
        Of the probabilities, or of the tiles' ranks.
    """

    weights: dict[str, float]
    mean: Mean

    def combine(self, predictions: Floats) -> Floats:
        """Return the mean of predictions of shape (runs, tiles), in the order of `weights`."""
        return np.array(list(self.weights.values())) @ _comparable(predictions, self.mean)


@dataclass(frozen=True)
class Gain:
    """What choosing an ensemble brings over choosing the best run.

    Both are chosen on four fifths of the tiles (of the slides, where they are known) and judged
    on the last, five times over, so that neither is judged on what it was chosen by. The gain is
    the mean of the five, and is shown where both the parts, which share what was chosen on, and the
    tiles show it (`stats.parts_difference`, `stats.runs_difference`). The AUCs are of all parts
    together, with the intervals of `stats.auc_interval` over tiles or `stats.auc_jackknife` over
    slides, as if chosen before.
    """

    auc: Interval
    best_run: Interval
    comparison: Comparison


def read_predictions(folders: Sequence[Path]) -> tuple[pd.DataFrame, Floats]:
    """Read the runs' held-out predictions, shape (runs, tiles), and the tiles' id,label table.

    Raises
    ------
    KitError
        If a run is not finished or named twice, also by its refit, or two runs were validated on
        other tiles or by other labels.
    """
    require_distinct(folders)
    _require_one_of_refits(folders)
    tables = [read_valid(folder).set_index("id").sort_index() for folder in folders]
    first = tables[0]
    for folder, table in zip(folders, tables, strict=True):
        if not table.index.equals(first.index):
            raise KitError(
                f"{folder} was not validated on the tiles of {folders[0]}: train both with the "
                "same --seed, --holdout, --slides and --folds"
            )
        if not table["label"].equals(first["label"]):
            raise KitError(
                f"{folder} was validated by other labels than {folders[0]}: train both on the same "
                "data"
            )
    predictions = np.stack([table["probability"].to_numpy() for table in tables])
    return first.reset_index()[["id", "label"]], predictions


def _require_one_of_refits(folders: Sequence[Path]) -> None:
    """Refuse a run beside its refit: both have the same predictions of the holdout."""
    named = {folder.resolve(): folder for folder in folders}
    for folder in folders:
        origin = refit_of(folder)
        other = None if origin is None else named.get(origin.resolve())
        if other is not None:
            raise KitError(
                f"{folder} refits {other}, and is judged by its predictions: name one of them"
            )


def select(labels: Labels, predictions: Floats, mean: Mean) -> Floats:
    """Choose the weights of runs by greedy forward selection with replacement.

    The run whose addition to the mean gives the highest AUC is added, again and again; of these
    means the one with the highest AUC is taken, the smallest of equals.

    Parameters
    ----------
    predictions
        (runs, tiles).

    Returns
    -------
    ndarray
        (runs,), summing to 1.

    References
    ----------
    Caruana et al., Ensemble selection from libraries of models, ICML 2004.
    """
    scores = _comparable(predictions, mean)
    counts = np.zeros((MAX_DRAWS + 1, len(scores)))
    reached = np.zeros(MAX_DRAWS + 1)
    for draw in range(MAX_DRAWS):
        aucs = [stats.auc(labels, counts[draw] @ scores + one) for one in scores]
        counts[draw + 1] = counts[draw]
        counts[draw + 1, int(np.argmax(aucs))] += 1
        reached[draw + 1] = max(aucs)
    best = int(np.argmax(reached))
    weights: Floats = counts[best] / best
    return weights


def choose_ensemble(
    folders: Sequence[Path], labels: Labels, predictions: Floats, mean: Mean
) -> Ensemble:
    """Choose an ensemble on all tiles; runs without weight are left out."""
    weights = select(labels, predictions, mean)
    chosen = {str(folder): float(w) for folder, w in zip(folders, weights, strict=True) if w > 0}
    return Ensemble(chosen, mean)


def judge_gain(
    labels: Labels,
    predictions: Floats,
    mean: Mean,
    *,
    slides: Strings | None = None,
    seed: int = 0,
) -> Gain:
    """Judge the choosing itself by cross-validation, over slides where they are known.

    Parameters
    ----------
    predictions
        (runs, tiles).
    slides
        (tiles,); the intervals then speak of other slides, too; else of other tiles of these.

    Raises
    ------
    KitError
        If too few tiles or slides hold one of the classes.
    """
    together, single = np.empty(len(labels)), np.empty(len(labels))
    units = np.arange(len(labels)) if slides is None else slides
    by_part: list[stats.Holdout] = []
    for rest, part in _parts(labels, slides, seed):
        weights = select(labels[rest], predictions[:, rest], mean)
        best = _best_run(labels, predictions, rest)
        # Parts may choose different runs, whose probabilities do not compare; ranks do. They are
        # taken over all tiles, as parts differ in their share of positive ones.
        together[part] = rankdata(weights @ _comparable(predictions, mean))[part]
        single[part] = rankdata(predictions[best])[part]
        if len(np.unique(labels[part])) == 2:
            by_part.append((labels[part], together[part], single[part], units[part]))
    gain = _gain(by_part)
    return Gain(_auc(labels, together, slides), _auc(labels, single, slides), gain)


def _gain(by_part: Sequence[stats.Holdout]) -> Comparison:
    """Judge the gain over parts and over tiles or slides."""
    aucs = [[stats.auc(labels, one) for one in scores] for labels, *scores, _ in by_part]
    over_parts = stats.parts_difference(*zip(*aucs, strict=True))
    return stats.intersection_union(over_parts, stats.runs_difference(by_part))


def judge_best(
    labels: Labels, predictions: Floats, *, slides: Strings | None = None, seed: int = 0
) -> Interval:
    """Return the AUC of the best run, each part of the tiles judged on one that others picked.

    The highest AUC of many on one holdout looks better than it is; this one was not picked by what
    it is judged on. As a part that a run does well on picks it for the others, what it is on one
    partition depends on the partition: estimate and bounds are means over ten.

    Parameters
    ----------
    predictions, slides
        As for `judge_gain`.

    Raises
    ------
    KitError
        As `judge_gain`.

    References
    ----------
    Repeated, to be rid of the partition's part: Bouckaert and Frank, PAKDD 2004, 3-12; Kim,
    Computational Statistics and Data Analysis 53 (2009) 3735-3745.
    """
    ranks: Floats = rankdata(predictions, axis=1)
    found = []
    for partition in range(seed, seed + PARTITIONS):
        single = np.empty(len(labels))
        for rest, part in _parts(labels, slides, partition):
            single[part] = ranks[_best_run(labels, predictions, rest)][part]
        found.append(_auc(labels, single, slides))
    return _mean_interval(found)


def _mean_interval(intervals: Sequence[Interval]) -> Interval:
    if unknown := [one for one in intervals if one.low is None]:
        return unknown[0]
    bounds = np.array([(one.estimate, one.low, one.high) for one in intervals], np.float64)
    estimate, low, high = (float(mean) for mean in bounds.mean(axis=0))
    return Interval(estimate, low, high)


def _best_run(labels: Labels, predictions: Floats, rows: Indices) -> int:
    return int(np.argmax([stats.auc(labels[rows], one[rows]) for one in predictions]))


def _auc(labels: Labels, scores: Floats, slides: Strings | None) -> Interval:
    if slides is None:
        return stats.auc_interval(labels, scores)
    return stats.auc_jackknife(labels, scores, slides)


def _parts(labels: Labels, slides: Strings | None, seed: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield the rows to choose on and those to judge on, both classes among the first."""
    units = np.arange(len(labels)) if slides is None else slides
    holders = min(len(np.unique(units[labels == label])) for label in (0, 1))
    what, next_step = ("tiles", "") if slides is None else ("slides", ": leave out --slides")
    message = f"too few {what} hold one of the classes to judge the choice by {what}{next_step}"
    if holders < 2:
        raise KitError(message)
    kind = StratifiedKFold if slides is None else StratifiedGroupKFold
    parts = kind(min(PARTS, holders), shuffle=True, random_state=seed)
    for rest, part in parts.split(labels, labels, slides):
        if len(np.unique(labels[rest])) < 2:
            raise KitError(message)
        yield rest, part


def write_ensemble(folder: Path, ensemble: Ensemble, figures: dict[str, Any]) -> Path:
    """Write ensemble.json, which `predict.py --ensemble` takes."""
    path = folder / "ensemble.json"
    write_json(path, asdict(ensemble) | {"figures": figures})
    return path


def read_ensemble(path: Path) -> Ensemble:
    """Read an ensemble.json.

    Raises
    ------
    KitError
        If it is not one: weights are positive numbers whose sum is 1.
    """
    what = "an ensemble of kernels/ensemble.py"
    ensemble = read_json(path, Ensemble, what=what)
    weights = ensemble.weights.values()
    if not all(0 < weight <= 1 for weight in weights) or not math.isclose(sum(weights), 1):
        raise KitError(f"{path} is not {what}: its weights are not positive, or their sum is not 1")
    return ensemble


def _comparable(predictions: Floats, mean: Mean) -> Floats:
    """Return what is averaged: probabilities, or ranks in (0, 1]."""
    if mean == "probability":
        return predictions
    ranks: Floats = rankdata(predictions, axis=1) / predictions.shape[1]
    return ranks
