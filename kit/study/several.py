"""The tables and verdicts of three arms or more: all pairs, or each arm against a control."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from kit import stats
from kit.base import KitError
from kit.study.arms import Study
from kit.study.figures import PRIMARY, Outcomes, figures_by_run
from kit.study.paired import paired_verdict
from kit.study.populations import Holdouts, Judgement, Judgements, judge_pair
from kit.study.tables import StudyTable, explain_empty, test_columns

Pair = tuple[str, str]
SeveralJudgements = Mapping[Pair, Judgements]
"""The judgements of each pair of arms, corrected for the number of pairs."""


def choose_pairs(study: Study) -> list[Pair]:
    """Return which arms are compared: each with the study's control, or all with all.

    Raises
    ------
    KitError
        If the control is none of the arms.
    """
    if study.control is None:
        return list(itertools.combinations(study.arms, 2))
    if study.control not in study.arms:
        known = ", ".join(study.arms)
        raise KitError(f"--control {study.control} is none of the arms: they are {known}")
    return [(arm, study.control) for arm in study.arms if arm != study.control]


def judge_several(
    outcomes: Outcomes, predictions: pd.DataFrame, pairs: Sequence[Pair], holdouts: Holdouts
) -> SeveralJudgements:
    """Test the differences of several pairs' validation AUC on each population.

    p-values are corrected by Holm's procedure, intervals by Bonferroni's, which is stricter: an
    interval may hold 0 where p is below 5 %.

    Parameters
    ----------
    predictions, holdouts
        As for `judge_arms`.
    """
    values = {arm: table[PRIMARY].to_numpy() for arm, table in figures_by_run(outcomes).items()}

    def judge(comparisons: int) -> dict[Pair, Judgements]:
        return {
            (one, other): judge_pair(
                (values[one], values[other]),
                holdouts,
                predictions=predictions,
                arms=(one, other),
                comparisons=comparisons,
            )
            for one, other in pairs
        }

    alone, together = judge(1), judge(len(pairs))
    corrected: dict[Pair, dict[str, Judgement]] = {pair: {} for pair in pairs}
    for population in together[pairs[0]]:
        found = [alone[pair][population].test.p_value for pair in pairs]
        by_holm = stats.holm([1.0 if p is None else p for p in found])
        for pair, p_value in zip(pairs, by_holm, strict=True):
            judged = together[pair][population]
            known = judged.test.p_value is not None
            test = replace(judged.test, p_value=p_value if known else None)
            corrected[pair][population] = replace(judged, test=test)
    return corrected


def several_table(outcomes: Outcomes) -> StudyTable:
    """Return each figure's mean and spread in every arm."""
    tables = figures_by_run(outcomes)
    rows = {
        figure: {
            name: value
            for arm, table in tables.items()
            for name, value in (
                (f"{arm} mean", table[figure].mean()),
                (f"{arm} sd", table[figure].std()),
            )
        }
        for figure in next(iter(tables.values())).columns
    }
    return StudyTable(pd.DataFrame.from_dict(rows, orient="index").rename_axis("figure"))


def differences_table(judged: SeveralJudgements, holdouts: Holdouts) -> StudyTable:
    """Return a row per pair of arms and population: the difference, its interval, p."""
    rows, reasons = [], {}
    for (one, other), judgements in judged.items():
        for population, own in judgements.items():
            name = f"{one} less {other}"
            tested = {**test_columns(own.test), "on": population, "test": own.method}
            rows.append({"difference of": name, **tested})
            reasons[f"{name} on {population}"] = own.test.difference.note
    frame = pd.DataFrame(rows).set_index("difference of")
    note = (
        f"{len(judged)} comparisons: p is corrected by Holm, intervals (simultaneous) by "
        "Bonferroni, which is stricter: one may hold 0 where p is below 0.05."
    )
    return StudyTable(frame, (*explain_empty(reasons), *filter(None, [holdouts.note]), note))


def several_verdict(judged: SeveralJudgements) -> str:
    """Say how many differences are shown, and then of each pair what `paired_verdict` says."""
    widest = [next(iter(judgements.values())) for judgements in judged.values()]
    population = next(iter(next(iter(judged.values()))))
    shown = sum(one.test.is_shown for one in widest)
    if all(one.test.p_value is None for one in widest):
        first = f"No conclusion is possible on {population}."
    else:
        first = f"{shown} of {len(judged)} differences are shown on {population} (Holm)."
    return "\n".join([first, *(paired_verdict(own, *pair) for pair, own in judged.items())])


def margin_verdict(judged: Judgements, first: str, second: str, margin: float) -> str:
    """Say whether two arms are the same within a margin, or one is at least not worse by it.

    It is read off the 95 % interval: the same if all of it lies within the margin, which is two
    one-sided tests at 2.5 % each (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics
    15 (1987) 657-680); not worse if its lower end does, one of them. For new medicines 2.5 % is the
    usual level of such tests (ICH E9, 3.3.2).
    """
    population, widest = next(iter(judged.items()))
    low, high = widest.test.difference.low, widest.test.difference.high
    if low is None or high is None:
        return (
            f"Whether {first} and {second} are the same within {margin:g} {PRIMARY} cannot be said "
            f"on {population}: {widest.test.difference.note}."
        )
    interval = f"{first} less {second}: {low:+.4f} to {high:+.4f}"
    if low > -margin and high < margin:
        says = f"{first} and {second} are the same within {margin:g} {PRIMARY}"
    elif low > -margin:
        says = f"{first} is not worse than {second} by {margin:g} {PRIMARY} or more"
    elif high < margin:
        says = f"{second} is not worse than {first} by {margin:g} {PRIMARY} or more"
    else:
        says = f"Either of {first} and {second} may be worse by {margin:g} {PRIMARY} or more"
    return f"{says} on {population} ({interval})."
