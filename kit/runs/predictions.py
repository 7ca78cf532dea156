"""What a finished run predicts on its holdout: valid.csv, and the figures of metrics.json."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field
from scipy.special import expit, logit

from kit import stats
from kit.base import (
    Count,
    Floats,
    KitError,
    Labels,
    Strings,
    read_table,
    require_ids,
    require_labels,
    write_json,
    write_text,
)
from kit.data import UNKNOWN, Store
from kit.runs.folder import finished_file, read_bytes, read_typed

# The largest float64 below 1, whose logit is 36.7: what a table without logits may round to 1.
_LARGEST_PROBABILITY = 1 - 2.0**-53

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _Interval:
    __pydantic_config__ = ConfigDict(extra="forbid")

    estimate: _Share
    low: _Share | None
    high: _Share | None
    note: str = ""
    confidence: _Share = 0.95


@dataclass(frozen=True)
class _Metrics:
    """The types of metrics.json's entries."""

    tiles: Count
    auc: _Interval
    auc_of_hard_labels: _Share
    accuracy: _Share
    log_loss: _Finite
    expected_calibration_error: _Share
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kept_epoch: Count | None = None
    auc_by_fold: tuple[_Share, ...] = ()
    mean_auc_of_folds: _Share | None = None
    refit_of: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


def read_valid(folder: Path) -> pd.DataFrame:
    """Read a finished run's held-out predictions.

    Returns
    -------
    DataFrame
        id, label, probability and logit, a row per held-out tile. Runs of the kit's version 0.4.0
        and older recorded no logits: there they are made of the probabilities, and a probability
        that was rounded to 1 has a logit of 36.7.

    Raises
    ------
    KitError
        If there is no valid.csv, or it is damaged: the line is named.
    """
    path = finished_file(folder, "valid.csv")
    content, columns = read_bytes(path), ["id", "label", "probability"]
    has_logits = b"logit" in content.partition(b"\n")[0]
    text = read_table(content, [*columns, "logit"] if has_logits else columns, source=str(path))
    if text.empty:
        raise KitError(f"{path} is damaged (it has no rows): train the run again")
    table = pd.DataFrame(
        {
            "id": require_ids(text["id"], source=str(path)),
            "label": require_labels(text["label"], source=str(path)),
            "probability": _numbers(text["probability"], path, low=0, high=1),
        }
    )
    table["logit"] = (
        _numbers(text["logit"], path)
        if has_logits
        else logit(table["probability"].clip(np.nextafter(0, 1), _LARGEST_PROBABILITY))
    )
    return table.reset_index(drop=True)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a finished run's metrics.json.

    Raises
    ------
    KitError
        If the run is not finished, or an entry is not what it should be.
    """
    path = finished_file(folder, "metrics.json")
    return read_typed(path, _Metrics, what="the figures of a finished run")


def write_predictions(
    folder: Path, ids: Strings, labels: Labels, logits: Floats, **also: Any
) -> dict[str, Any]:
    """Write valid.csv and, last, metrics.json, which says that the folder is finished.

    Parameters
    ----------
    ids, labels, logits
        (tiles,), of the held-out tiles.
    also
        Further figures to keep in metrics.json.

    Returns
    -------
    dict
        All the final figures.
    """
    figures = final_metrics(labels, logits) | also
    columns = {"id": ids, "label": labels, "probability": expit(logits), "logit": logits}
    table = pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")
    write_text(folder / "valid.csv", table)
    write_json(folder / "metrics.json", figures)
    return figures


def final_metrics(labels: Labels, logits: Floats) -> dict[str, Any]:
    """Return the holdout's figures, with a 95 % interval for the AUC on new tiles of these slides.

    Parameters
    ----------
    labels, logits
        (tiles,).

    Raises
    ------
    KitError
        If a logit is not a number.
    """
    probabilities = expit(logits)
    hard = (probabilities > 0.5).astype(float)
    return {
        "tiles": len(labels),
        "auc": asdict(stats.auc_interval(labels, logits)),
        "auc_of_hard_labels": stats.auc(labels, hard),
        "accuracy": stats.accuracy(labels, probabilities),
        "log_loss": stats.log_loss(labels, probabilities),
        "expected_calibration_error": stats.expected_calibration_error(labels, probabilities),
        "temperature": stats.fit_temperature(labels, logits),
    }


def auc_over_slides(
    valid: pd.DataFrame, store: Store, of_tiles: Strings | None
) -> stats.Interval | None:
    """Return the AUC of held-out predictions with an interval for new slides, if all are known.

    Parameters
    ----------
    valid
        From `read_valid`.
    of_tiles
        As in `KnownSlides`, of a holdout that keeps slides apart.
    """
    places = pd.Index(store.train.ids).get_indexer(pd.Index(valid["id"]))
    if of_tiles is None or (of_tiles[places] == UNKNOWN).any():
        return None
    return stats.auc_jackknife(valid["label"], valid["logit"], of_tiles[places])


def _numbers(
    column: pd.Series, path: Path, *, low: float = -np.inf, high: float = np.inf
) -> pd.Series:
    """Return a column's finite numbers between two bounds, with every digit that was written."""
    values = pd.to_numeric(column, errors="coerce")
    bad = column[~(np.isfinite(values) & (values >= low) & (values <= high))]
    if len(bad):
        raise KitError(
            f"{path} line {bad.index[0]}: {column.name} {bad.iloc[0][:40]!r} is not a number"
            f"{' from 0 to 1' if high == 1 else ''}"
        )
    return column.astype(float)
