"""Tables of a study: numbers in every cell, and below, once, why some cells are empty."""

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kit.base import as_latex, as_markdown, format_number, write_text
from kit.stats import Comparison, Interval, PairedDifference


@dataclass(frozen=True)
class StudyTable:
    """A table as it is printed, written and shown.

    Attributes
    ----------
    frame
        Numbers, and nothing where there is none.
    notes
        Why cells are empty, each reason once.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> pd.DataFrame:
        """The table for people: each mean and its standard deviation in one cell."""
        shown = self.frame.copy()
        for spread in [name for name in shown.columns if name.endswith(" sd")]:
            mean = spread.removesuffix(" sd")
            mean = mean if mean in shown else f"{mean} mean"
            shown[mean] = list(map(_mean_and_spread, shown[mean], shown[spread]))
            shown = shown.drop(columns=spread).rename(columns={mean: f"{mean} (sd)"})
        return shown

    def __str__(self) -> str:
        width = max(80, shutil.get_terminal_size().columns)
        text = self.shown.to_string(float_format=format_number, na_rep="", line_width=width)
        return "\n".join([text, *self.notes])


def test_columns(
    test: Comparison | PairedDifference, difference: str = "difference"
) -> dict[str, float]:
    """Return what a test says, a number for each column: the difference, its interval, p."""
    p_value = math.nan if test.p_value is None else test.p_value
    return {difference: test.difference.estimate, **bound_columns(test.difference), "p": p_value}


def bound_columns(interval: Interval, prefix: str = "") -> dict[str, float]:
    """Return the two bounds of an interval, each for a column of its own."""
    low, high = (math.nan if bound is None else bound for bound in (interval.low, interval.high))
    return {f"{prefix}low": low, f"{prefix}high": high}


def explain_empty(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Return each reason once, with the rows that it empties unless it empties them all.

    Parameters
    ----------
    reasons
        By the row's name; empty where nothing is missing.
    """
    notes = []
    for reason in dict.fromkeys(filter(None, reasons.values())):
        rows = [name for name, own in reasons.items() if own == reason]
        about = "" if len(rows) == len(reasons) else f" ({', '.join(rows)})"
        notes.append(f"Empty cells{about}: {reason}.")
    return tuple(notes)


def write_tables(folder: Path, tables: Mapping[str, StudyTable], verdict: str) -> None:
    """Write the numbers of each table as NAME.csv, the verdict and the notes as verdict.txt.

    NAME.md and NAME.tex are the tables as they are printed, for a paper.
    """
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.frame.to_csv(lineterminator="\n"))
        write_text(folder / f"{name}.md", as_markdown(table.shown))
        write_text(folder / f"{name}.tex", as_latex(table.shown))
    lines = [verdict, *_notes(tables.values())]
    write_text(folder / "verdict.txt", "\n".join(lines) + "\n")


def _notes(tables: Iterable[StudyTable]) -> list[str]:
    return list(dict.fromkeys(note for table in tables for note in table.notes))


def _mean_and_spread(mean: float, spread: float) -> str:
    # One seed has no spread.
    return f"{mean:#.4g}" if math.isnan(spread) else f"{mean:#.4g} ({spread:#.2g})"
