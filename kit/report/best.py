"""The page of a search for the best submission: what each part brought."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from kit.base import counted, format_duration
from kit.report.page import Drawing, Page, Section, Table, bounds
from kit.report.style import BLUE, GREY, VERMILLION, legend_below, plain, single
from kit.study import BestResult


def best_verdict(result: BestResult) -> str:
    """Say what has been reached, and how much to believe of it."""
    auc, gain = result.auc, result.judged.gain
    if result.submission is None:
        return "No part is finished yet, so there is no submission."
    if auc is None:
        parts = counted(len(result.weights), "part")
        return f"The mean of {parts}; too few tiles are held out to judge it."
    of = "new slides" if result.judged.by_slide else "new tiles of these slides"
    if gain is None:
        return f"One part, AUC {auc} (95 % interval for {of})."
    difference = gain.comparison.difference
    return (
        f"The mean of {len(result.weights)} parts, chosen and judged on different tiles: AUC {auc} "
        f"(95 % intervals for {of}); {difference} more than the best part, chosen the same way."
    )


def best_page(result: BestResult, command: str, submit: str) -> Page:
    """Describe a search from what has been reached.

    Parameters
    ----------
    command
        What was typed, and goes on with it.
    submit
        What submits its mean.
    """
    sections = [Section("To submit it", code=submit)] if result.submission else []
    done = [name for name, entry in result.parts.items() if entry.state == "finished"]
    if done:
        sections.append(_parts_section(result))
    if result.plan:
        sections.append(_plan_section(result))
    return Page(
        title="The best submission within a time",
        verdict=best_verdict(result),
        limits=list(_limits(result)),
        sections=[*sections, Section("To go on with it", code=command)],
        is_standin=bool(result.standins),
    )


def _limits(result: BestResult) -> Iterator[str]:
    if result.folds:
        yield f"All figures are of tiles held out in {result.folds} folds."
    if result.judged.gain is not None:
        yield (
            "Weights were chosen on the same tiles that parts are compared on; the mean's own AUC "
            "is of tiles that did not choose its weights."
        )
    if any(Path(run).name.endswith("-refit") for run in result.weights):
        yield (
            "Parts called refit were trained on all tiles, and stand in the mean with the weight, "
            "and the figures, of the part that they refit."
        )
    if any(entry.state in ("late", "failed") for entry in result.parts.values()):
        yield "Parts that were late, or failed, are left out of the mean."


def _parts_section(result: BestResult) -> Section:
    rows = []
    for name, entry in result.parts.items():
        auc, together = entry.auc, entry.together
        rows.append(
            {
                "part": name,
                "AUC": None if auc is None else auc.estimate,
                "95 % interval": "" if auc is None else bounds(auc),
                "the mean with it": None if together is None else together.estimate,
                "weight": result.weight(name),
                "epochs": _epochs(name, entry.epochs),
                "took": format_duration(entry.seconds),
                "planned": format_duration(entry.planned),
                "state": entry.reason or entry.state,
            }
        )
    caption = (
        f"In the order in which they were trained, within {format_duration(result.clock.used)} of "
        f"{format_duration(result.clock.limit)}. The mean with a part is that of all parts until "
        "then, chosen and judged on different tiles. Intervals are for new tiles of these slides; "
        "times are (hours:)minutes:seconds."
    )
    return Section(
        "What each part brought",
        tables=[Table(pd.DataFrame(rows).astype({"epochs": "Int64"}), caption)],
        drawings=[
            Drawing(_figure(result), "Bars are these intervals; the line is the mean as it grew.")
        ],
    )


def _epochs(part: str, epochs: int) -> int | None:
    """Return a part's epochs; a probe is fitted without any."""
    return None if part.startswith("probe-") else epochs


def _figure(result: BestResult) -> Figure:
    """Draw each part's AUC with its interval, and the mean's after each part."""
    found = {name: entry for name, entry in result.parts.items() if entry.auc is not None}
    figure, axes = single("What each part brought", height=2.2 + 0.4 * len(found))
    places = range(len(found))
    for place, entry in zip(places, found.values(), strict=True):
        auc = entry.auc
        assert auc is not None
        if auc.low is not None and auc.high is not None:
            axes.hlines(place, auc.low, auc.high, color=GREY, linewidth=1.5)
        axes.plot(auc.estimate, place, "o", color=BLUE, label="part" if place == 0 else None)
    grown = [
        (entry.together.estimate, place)
        for place, entry in zip(places, found.values(), strict=True)
        if entry.together is not None
    ]
    if grown:
        axes.plot(*zip(*grown, strict=True), "--s", ms=4, color=VERMILLION, label="the mean so far")
    axes.set_yticks(list(places), [plain(name) for name in found])
    axes.invert_yaxis()
    axes.set(xlabel="AUC on held-out tiles")
    legend_below(figure, columns=2)
    return figure


def _plan_section(result: BestResult) -> Section:
    rows = [
        {
            "part": one.name,
            "epochs": _epochs(one.name, one.epochs),
            "takes about": format_duration(one.seconds),
        }
        for one in result.plan
    ]
    table = pd.DataFrame(rows).astype({"epochs": "Int64"})
    return Section("What is to come", tables=[Table(table, "By what was measured.")])
