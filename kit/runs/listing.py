"""The table of runs as a person asks for it: chosen, sorted, and in few columns."""

import math

import pandas as pd

from kit.base import KitError, shorten
from kit.stats import Interval

# Columns in which the highest comes first.
_BEST_IS_HIGHEST = ("auc", "low", "high", "accuracy")
_MOST_REASONS = 10
_MOST_NAMES = 3


def choose_runs(
    table: pd.DataFrame, *, where: str | None = None, sort: str = "auc", reverse: bool = False
) -> pd.DataFrame:
    """Return the runs for which an expression holds, sorted by a column.

    Parameters
    ----------
    table
        From `runs_table`.
    where
        As `DataFrame.query` takes it, over the table's columns alone.
    sort
        AUC and accuracy begin with the highest, all other columns with the lowest; runs without a
        value come last.

    Raises
    ------
    KitError
        If the expression is none, or there is no such column.
    """
    if sort not in table:
        raise KitError(f"--sort {sort} is no column: choose one of {', '.join(table.columns)}")
    chosen = table if where is None else table[_holds(table, where)]
    ascending = (sort not in _BEST_IS_HIGHEST) != reverse
    # Options of other versions may have values of other types.
    key = chosen[sort] if chosen[sort].dtype != object else chosen[sort].astype("string")
    return chosen.loc[key.sort_values(ascending=ascending, kind="stable").index]


def _holds(table: pd.DataFrame, where: str) -> pd.Series:
    try:
        holds = table.eval(where, engine="python", local_dict={}, global_dict={})
    except Exception as error:
        # Whatever pandas makes of it: it has an exception for each way to be wrong.
        raise KitError(
            f"--where {shorten(where)!r}: {shorten(str(error), 200)}. It takes an expression such "
            f"as \"auc > 0.95 and recipe == 'compact'\" over {', '.join(table.columns)}"
        ) from error
    if not isinstance(holds, pd.Series) or not pd.api.types.is_bool_dtype(holds):
        raise KitError(
            f"--where {shorten(where)!r} is not true or false of a run: compare a column"
        )
    return holds.fillna(False).astype(bool)


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that a person looks at, as text, by the runs' names."""
    told = table["state"].where(
        table["state"] != "unfinished", table["state"] + ", " + table["note"]
    )
    return pd.DataFrame(
        {
            "recipe": table["recipe"],
            "changed": table["changed"],
            "seed": _numbers(table, "seed", "{:.0f}"),
            "tiles": _numbers(table, "tiles", "{:,}"),
            "AUC [95 %]": [_interval(*row) for row in table[["auc", "low", "high"]].to_numpy()],
            "holds out": table["holds_out"],
            "minutes": _numbers(table, "minutes", "{:.2f}"),
            "device": table["device"],
            "state": told,
        }
    ).set_index(table["run"].rename("run"))


def table_notes(table: pd.DataFrame) -> list[str]:
    """Say what the table's figures mean, and why runs have none."""
    finished = table[table["state"] == "finished"]
    notes = []
    if len(finished):
        notes.append(
            "AUC on the held-out tiles, with its interval for new tiles of the same slides; a "
            "run's page has that for new slides."
        )
    if (finished["holds_out"] == "tiles").any():
        notes.append(
            "Holds out tiles: tiles of one slide look alike and are on both sides, so that AUC is "
            "too high."
        )
    if len(finished) > 1:
        notes.append(
            "Another seed holds out other tiles, and the best of many runs looks better than it "
            "is: compare.py judges recipes."
        )
    if table["standin"].any():
        names = table["run"][table["standin"]]
        notes.append(f"Trained on the synthetic stand-in, which says nothing: {_list(names)}.")
    reasons = table[(table["state"] != "unfinished") & (table["note"] != "")]
    lines = [f"{run}: {note}" for run, note in zip(reasons["run"], reasons["note"], strict=True)]
    if len(lines) > _MOST_REASONS:
        more = len(lines) - _MOST_REASONS
        lines = [*lines[:_MOST_REASONS], f"and {more:,} more: --out FILE.csv has all notes"]
    return notes + lines


def _numbers(table: pd.DataFrame, column: str, form: str) -> list[str]:
    if column not in table:
        # No run could be read.
        return [""] * len(table)
    return ["" if pd.isna(value) else form.format(value) for value in table[column]]


def _interval(auc: float, low: float, high: float) -> str:
    if math.isnan(auc):
        return ""
    if math.isnan(low) or math.isnan(high):
        return f"{auc:.4f}"
    return str(Interval(auc, low, high))


def _list(names: pd.Series) -> str:
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"
