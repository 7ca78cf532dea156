"""The submission file: written so that no ranking is lost, and checked before Kaggle sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kit.base import KitError, atomic_path, output_file, read_table

COLUMNS = ("id", "label")
MAX_EXAMPLES = 3


@dataclass(frozen=True)
class SubmissionSummary:
    """What a valid submission holds.

    Attributes
    ----------
    minimum, maximum
        Of the labels, in [0, 1].
    in_order
        Whether the ids are in the sample's order. Kaggle joins by id, so either is valid.
    hard
        Whether every label is 0 or 1. That is valid, too, and throws away the ranking within
        each class, which the area under the ROC curve measures.
    """

    rows: int
    minimum: float
    maximum: float
    in_order: bool
    hard: bool


def write_submission(path: Path, ids: Sequence[str], probabilities: ArrayLike) -> None:
    """Write a submission, whole or not at all, through a link to its place.

    Parameters
    ----------
    probabilities
        One for each id, in [0, 1]. They are written with all their digits: rounding makes ties,
        and ties cost area under the ROC curve.
    """
    table = pd.DataFrame({"id": list(ids), "label": np.asarray(probabilities)})
    with atomic_path(output_file(path)) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def validate_submission(path: Path, ids: Sequence[str]) -> SubmissionSummary:
    """Check a submission against the ids of the sample submission.

    Kaggle gets the file as it is. So a form that only a lenient reader understands (semicolons,
    a byte order mark, ids in upper case) is refused, though its meaning may be plain.

    Raises
    ------
    KitError
        Naming every kind of problem at once, each with its count and its first few lines.
    """
    table = _read(path)
    labels = pd.to_numeric(table["label"], errors="coerce")
    problems = [*_id_problems(table["id"], ids), *_label_problems(table["label"], labels)]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise KitError(
            f"{path} would not be scored:\n{listed}\n"
            "Write it again with `python kernels/predict.py`, or correct these lines"
        )
    return SubmissionSummary(
        rows=len(table),
        minimum=float(labels.min()),
        maximum=float(labels.max()),
        in_order=table["id"].to_list() == list(ids),
        hard=bool(labels.isin([0, 1]).all()),
    )


def _read(path: Path) -> pd.DataFrame:
    """Read id,label as text by line, in the form that Kaggle's reader is known to take."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise KitError(
            f"no submission at {path}: write one with `python kernels/predict.py`"
        ) from error
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}") from error
    return read_table(content, COLUMNS, source=str(path), exact=True)


def _id_problems(found: pd.Series, ids: Sequence[str]) -> list[str]:
    """Compare the ids found with those expected, as sets and in number."""
    expected = pd.Index(ids)
    known = found.isin(expected)
    upper = ~known & found.str.lower().isin(expected)
    missing = expected.difference(pd.Index(found))
    problems = [
        _describe("unknown ids", found[~known & ~upper]),
        _describe("ids in upper case (they are lower case)", found[upper]),
        _describe("ids that are there before", found[known & found.duplicated()]),
    ]
    if len(missing):
        examples = ", ".join(missing[:MAX_EXAMPLES])
        problems.insert(0, f"{len(missing):,} ids are missing: {examples}")
    if len(found) != len(expected):
        problems.insert(0, f"{len(found):,} rows instead of {len(expected):,}")
    return [problem for problem in problems if problem]


def _label_problems(text: pd.Series, labels: pd.Series) -> list[str]:
    """Check that labels are finite numbers in [0, 1]."""
    finite = np.isfinite(labels)
    problems = [
        _describe("labels that are not finite numbers", text[~finite]),
        _describe("labels outside [0, 1]", text[finite & ~labels.between(0, 1)]),
    ]
    return [problem for problem in problems if problem]


def _describe(what: str, bad: pd.Series) -> str:
    """Return the number of bad values and the first of them by line, or nothing."""
    examples = [f"line {line}: {value!r}" for line, value in bad.head(MAX_EXAMPLES).items()]
    return f"{len(bad):,} {what}: {', '.join(examples)}" if examples else ""
