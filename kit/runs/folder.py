"""The run folder: what each of its files holds, and how it is read.

config.json        every option, and the kit's, torch's and the data's fingerprints
split.csv          id,fold
history.jsonl      one object per epoch
last.pt            all that resuming needs
model.safetensors  the weights of the last epoch
valid.csv          id,label,probability on the holdout
metrics.json       the final figures, with intervals
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit

from kit import stats
from kit.base import LOCK_NAME, EpochResult, KitError, write_text


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's config.json.

    Raises
    ------
    KitError
        If there is none, or it is not one of the kit's.
    """
    path = inside(folder, "config.json")
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        folds = sorted(fold.name for fold in folder.glob("fold-*"))
        if folds:
            raise KitError(
                f"{folder} is a cross-validation: name one of its runs, {', '.join(folds)}"
            ) from error
        raise KitError(f"{folder} holds no run: there is no {path}") from error
    except ValueError as error:
        raise KitError(f"{path} is not a run's configuration: {error}") from error
    if not isinstance(values, dict) or not {"recipe", "preprocessing", "data"} <= values.keys():
        raise KitError(f"{path} is not a run's configuration: keys are missing")
    return values


def read_valid(folder: Path) -> pd.DataFrame:
    """Read a finished run's valid.csv: id,label,probability.

    Raises
    ------
    KitError
        If there is none.
    """
    path = inside(folder, "valid.csv")
    if not path.is_file():
        raise KitError(f"{folder} is not a finished run: there is no {path}")
    types = {"id": str, "label": np.int64, "probability": np.float64}
    with _reading(path):
        return pd.read_csv(path, dtype=types, usecols=list(types))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a finished run's metrics.json."""
    path = inside(folder, "metrics.json")
    if not path.is_file():
        raise KitError(f"{folder} is not a finished run: there is no {path}")
    with _reading(path):
        return dict(json.loads(path.read_text("utf-8")))


def read_history(folder: Path) -> list[EpochResult]:
    """Read a run's history.jsonl, one result per epoch."""
    path = inside(folder, "history.jsonl")
    with _reading(path):
        return [EpochResult(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def write_predictions(folder: Path, table: pd.DataFrame, **also: Any) -> dict[str, Any]:
    """Write valid.csv and, last, metrics.json, which says that the folder is finished.

    Parameters
    ----------
    table
        id,label,probability of the held-out tiles.
    also
        Further figures to keep in metrics.json.

    Returns
    -------
    dict
        All the final figures.
    """
    figures = final_metrics(table["label"].to_numpy(), table["probability"].to_numpy()) | also
    write_text(folder / "valid.csv", table.to_csv(index=False, lineterminator="\n"))
    write_json(folder / "metrics.json", figures)
    return figures


def final_metrics(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Return the holdout's figures, with a 95 % interval (DeLong) for the AUC."""
    hard = (probabilities > 0.5).astype(float)
    return {
        "tiles": len(labels),
        "auc": asdict(stats.auc_interval(labels, probabilities)),
        "auc_of_hard_labels": stats.auc(labels, hard),
        "accuracy": stats.accuracy(labels, probabilities),
        "log_loss": stats.log_loss(labels, probabilities),
        "expected_calibration_error": stats.expected_calibration_error(labels, probabilities),
        "temperature": stats.fit_temperature(labels, logit(probabilities)),
    }


def is_content(path: Path) -> bool:
    """Whether a file is more than what a start leaves that was killed at once."""
    return path.name != LOCK_NAME and path.suffix != ".partial"


def inside(folder: Path, name: str) -> Path:
    """Return a file of a run folder that lies in it: a stranger's link may lead to any file."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise KitError(
            f"{path} is a link to {path.resolve()}, out of its run folder: copy it there"
        )
    return path


def write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a file of other content raises into a message."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise KitError(f"{path} is damaged ({error}): train the run anew") from error
