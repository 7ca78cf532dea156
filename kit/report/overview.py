"""The page of many runs: their table, which leads to their own pages, and their learning curves."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kit import runs
from kit.base import EpochResult, KitError, counted
from kit.report.page import Drawing, Link, Page, Section, Table
from kit.report.style import DASHES, PALETTE, plain, tidy

REPORT = "report.html"
# As many as colours and dashes tell apart.
MOST_CURVES = 12
_QUANTITIES = {
    "valid_auc": "AUC on held-out tiles",
    "valid_loss": "Loss on held-out tiles",
    "train_loss": "Loss on training tiles",
}
_MEASURED = {
    "valid": "after each epoch, of the weights as they were then and of one view",
    "train": "a mean over each epoch, while the weights still moved",
}


def overview_page(table: pd.DataFrame, curves: Sequence[Path], folder: Path) -> Page:
    """Describe many runs.

    Parameters
    ----------
    table
        From `runs.choose_runs`.
    curves
        The runs whose curves are drawn; if none is named, the first of the table.
    folder
        Where the page will lie, which its links start from.

    Raises
    ------
    KitError
        If a run of `curves` has no finished epoch, or there are more than can be told apart.
    """
    shown = runs.shown_table(table).reset_index()
    names = zip(table.index, table["run"], strict=True)
    shown["run"] = pd.Series([_link(path, name, folder) for path, name in names], dtype=object)
    finished = int((table["state"] == "finished").sum())
    caption = "A name leads to the run's own page, or to that of the study it is part of."
    return Page(
        title="Runs",
        verdict=f"{counted(len(table), 'run')}, {finished:,} finished.",
        sections=[
            Section("All runs", tables=[Table(shown, caption, runs.table_notes(table))]),
            _curves_section(table, curves),
        ],
        is_standin=len(table) > 0 and bool(table["standin"].all()),
    )


def _link(run: Path, name: str, folder: Path) -> Link | str:
    """Return a run's name, leading to its page or the nearest above it, where there is one."""
    place = next((place for place in (run, *list(run.parents)[:3]) if _has_page(place)), None)
    if place is None:
        return name
    path = os.path.relpath(os.path.realpath(place / REPORT), os.path.realpath(folder))
    return Link(name, quote(os.fsencode(path)))


def _has_page(place: Path) -> bool:
    try:
        return (place / REPORT).is_file()
    except OSError:
        return False


def _curves_section(table: pd.DataFrame, curves: Sequence[Path]) -> Section:
    if len(curves) > MOST_CURVES:
        raise KitError(f"--curves takes {MOST_CURVES} runs at most: more cannot be told apart")
    histories = (
        {str(run): runs.read_history(run) for run in curves} if curves else _first_histories(table)
    )
    if not histories:
        return Section("Learning curves", text=["No run has a finished epoch that can be read."])
    caption = "{}: {}. Runs that hold out other tiles differ by them as well."
    if not curves and len(histories) == MOST_CURVES:
        caption += f" The first {MOST_CURVES} of the table; --curves draws others."
    drawings = [
        Drawing(_overlay(histories, field), caption.format(quantity, _MEASURED[field[:5]]))
        for field, quantity in _QUANTITIES.items()
    ]
    return Section("Learning curves", drawings=drawings)


def _first_histories(table: pd.DataFrame) -> dict[str, list[EpochResult]]:
    """Return the histories of the first runs that have one."""
    histories: dict[str, list[EpochResult]] = {}
    for run, name in zip(table.index, table["run"], strict=True):
        try:
            histories[name] = runs.read_history(run)
        except (KitError, OSError):
            # The table says so.
            continue
        if len(histories) == MOST_CURVES:
            break
    return histories


def _overlay(histories: Mapping[str, Sequence[EpochResult]], field: str) -> Figure:
    """Draw a field of the epochs' results, a line per run."""
    figure = Figure(figsize=(5, 3.4 + 0.17 * len(histories)), layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    for number, (name, history) in enumerate(histories.items()):
        axes.plot(
            [result.epoch for result in history],
            [getattr(result, field) for result in history],
            ls=DASHES[number % len(DASHES)],
            # A single epoch makes no line.
            marker="o" if len(history) == 1 else "",
            color=PALETTE[number % len(PALETTE)],
            label=plain(name),
        )
    axes.set(xlabel="epoch", ylabel=_QUANTITIES[field])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(loc="outside lower left", frameon=False, fontsize="small")
    return figure
