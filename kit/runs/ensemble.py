"""Means of runs, chosen on predictions that none of their trainings has seen.

Cross-validated runs bring their out-of-fold predictions, others those of their holdout; all must
be of the same tiles. Nothing is ever chosen by what a leaderboard said.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from kit import stats
from kit.base import KitError, write_text
from kit.runs.folder import read_valid
from kit.stats import Comparison, Interval

Mean = Literal["probability", "rank"]
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

# A run that is drawn again counts twice; more draws than this move the mean by little.
MAX_DRAWS = 20
PARTS = 5


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
    on the last, five times over, so that neither is judged on what it was chosen by.
    """

    auc: Interval
    best_run: Interval
    comparison: Comparison


def read_predictions(folders: Sequence[Path]) -> tuple[pd.DataFrame, Floats]:
    """Read the runs' held-out predictions, shape (runs, tiles), and the tiles' id,label table.

    Raises
    ------
    KitError
        If a run is not finished, or two runs were held out from other tiles.
    """
    tables = [read_valid(folder).set_index("id").sort_index() for folder in folders]
    first = tables[0]
    for folder, table in zip(folders, tables, strict=True):
        if not table.index.equals(first.index):
            raise KitError(
                f"{folder} was not validated on the tiles of {folders[0]}: train both with the "
                "same --seed, --holdout, --slides and --folds"
            )
    predictions = np.stack([table["probability"].to_numpy() for table in tables])
    return first.reset_index()[["id", "label"]], predictions


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


def gain(
    labels: Labels,
    predictions: Floats,
    mean: Mean,
    *,
    slides: npt.NDArray[np.str_] | None = None,
    seed: int = 0,
) -> Gain:
    """Judge the choosing itself by cross-validation over tiles or slides."""
    kind = StratifiedKFold if slides is None else StratifiedGroupKFold
    together, single = np.empty(len(labels)), np.empty(len(labels))
    for rest, part in kind(PARTS, shuffle=True, random_state=seed).split(labels, labels, slides):
        weights = select(labels[rest], predictions[:, rest], mean)
        best = int(np.argmax([stats.auc(labels[rest], one[rest]) for one in predictions]))
        # Ranks within a part keep parts comparable, whichever runs were chosen.
        together[part] = rankdata(weights @ _comparable(predictions[:, part], mean)) / len(part)
        single[part] = rankdata(predictions[best, part]) / len(part)
    return Gain(
        stats.auc_interval(labels, together),
        stats.auc_interval(labels, single),
        stats.delong_test(labels, together, single),
    )


def write_ensemble(folder: Path, ensemble: Ensemble, figures: dict[str, Any]) -> Path:
    """Write ensemble.json, which `predict.py --ensemble` takes."""
    path = folder / "ensemble.json"
    write_text(path, json.dumps(asdict(ensemble) | {"figures": figures}, indent=2) + "\n")
    return path


def read_ensemble(path: Path) -> Ensemble:
    """Read an ensemble.json.

    Raises
    ------
    KitError
        If it is not one.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        weights = {str(run): float(weight) for run, weight in values["weights"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise KitError(f"{path} is not an ensemble of kernels/ensemble.py: {error}") from error
    if values.get("mean") not in ("probability", "rank") or not weights:
        raise KitError(f"{path} is not an ensemble of kernels/ensemble.py")
    return Ensemble(weights, values["mean"])


def _comparable(predictions: Floats, mean: Mean) -> Floats:
    """Return what is averaged: probabilities, or ranks in (0, 1]."""
    if mean == "probability":
        return predictions
    ranks: Floats = rankdata(predictions, axis=1) / predictions.shape[1]
    return ranks
