"""The tables and the verdict of a sweep of BatchNorm's momentum."""

import math

import pandas as pd

from kit import stats
from kit.base import counted, format_p
from kit.study.figures import PRIMARY, Outcomes, figures_by_run
from kit.study.populations import EXACT, RESAMPLED, THESE_TILES, Holdouts
from kit.study.tables import StudyTable, explain_empty, test_columns

Test = stats.Comparison | stats.PairedDifference

NOTEBOOK = {
    "0.99": (0.8409, 0.7505),
    "0.75": (0.8375, 0.8374),
    "0.5": (0.8431, 0.8449),
    "0.25": (0.8379, 0.8389),
}
"""Training and validation accuracy in the study's own table 2, from one run each."""

_SAME_TRAINING = "every momentum has the same training, so training accuracies are equal"


def momentum_table(outcomes: Outcomes, holdouts: Holdouts | None = None) -> StudyTable:
    """Return each momentum's figures, and what each gains over the first, paired by seed.

    The gains' intervals and p are corrected for their number (Bonferroni), and speak of new
    tiles or slides where `holdouts` allow it, else of these tiles. `shrunk` is the gain without
    what the best of several is too large by (`stats.shrunk_gains`).
    """
    tables = figures_by_run(outcomes)
    gains, shrunk = _gains(outcomes, holdouts), _shrunk(outcomes, holdouts)
    rows = {}
    for name, table in tables.items():
        row: dict[str, object] = {"n": len(table)}
        for figure in (
            "training accuracy",
            "validation accuracy",
            PRIMARY,
            "validation loss",
        ):
            row[figure] = table[figure].mean()
            row[f"{figure} sd"] = table[figure].std()
        if (spread := "spread of validation accuracy") in table:
            row[spread] = table[spread].mean()
        if name in gains:
            row |= test_columns(gains[name], f"accuracy gained over {next(iter(tables))}")
            row["shrunk"] = shrunk[name]
        rows[name] = row
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("momentum (Keras)")
    return StudyTable(frame, explain_empty({name: g.difference.note for name, g in gains.items()}))


def notebook_table(outcomes: Outcomes, holdouts: Holdouts | None = None) -> StudyTable:
    """Hold the notebook's differences of one run each against those of many seeds.

    `seed noise` is how far two single runs, one of each momentum, lie apart by their seeds alone
    in 95 of 100 cases: the root of both variances between seeds times Student's quantile, since
    few seeds do not know them.
    """
    tables = figures_by_run(outcomes)
    known = [name for name in NOTEBOOK if name in tables]
    rows, reasons = {}, {}
    for name in known[1:]:
        for column, figure in enumerate(("training accuracy", "validation accuracy")):
            one, other = (tables[key][figure] for key in (name, known[0]))
            pair = _test(one, other, holdouts, len(outcomes) - 1)
            noise = stats.seed_noise(one, other)
            claimed = NOTEBOOK[name][column] - NOTEBOOK[known[0]][column]
            same = one.equals(other)
            row = f"{name} against {known[0]}, {figure}"
            reasons[row] = _SAME_TRAINING if same else pair.difference.note
            rows[row] = {
                "notebook": claimed,
                **test_columns(pair, "here"),
                "seed noise": noise,
                "notebook's difference": (
                    "the seed's alone" if same else _explain(claimed, noise, pair)
                ),
            }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("difference")
    return StudyTable(frame, explain_empty(reasons))


def sweep_tables(outcomes: Outcomes, holdouts: Holdouts | None = None) -> dict[str, StudyTable]:
    """Return the tables of a sweep by their files' names.

    There is nothing of the notebook's where it tried fewer than two of the momenta.
    """
    tables = {
        "table2": momentum_table(outcomes, holdouts),
        "notebook": notebook_table(outcomes, holdouts),
    }
    return {name: table for name, table in tables.items() if not table.frame.empty}


def momentum_verdict(outcomes: Outcomes, holdouts: Holdouts | None = None) -> str:
    """Say in one sentence which momenta differ from the first, or that none is shown.

    Each is tested against the first, with p corrected for their number, so that the chance of any
    false finding is 5 %.
    """
    gains = _gains(outcomes, holdouts)
    population, method = _speaks_of(holdouts)
    reference, first = next(iter(outcomes.items()))
    needed, seeds = stats.min_seeds(len(gains)), len(first)
    comparisons = counted(len(gains), "comparison")
    about = f"{comparisons} with momentum {reference} in validation accuracy on {population}"
    if seeds < needed:
        return (
            f"No conclusion is possible from {about}: {counted(seeds, 'seed')} cannot give a "
            f"corrected p of {1 - stats.CONFIDENCE:.2f} or less, {needed} could."
        )
    shown = {name: pair for name, pair in gains.items() if pair.is_shown}
    how_sure = f"{method}, corrected for {comparisons}, {counted(seeds, 'seed')}"
    if not shown:
        smallest = min((pair.p_value for pair in gains.values() if pair.p_value), default=1.0)
        return f"Not shown: {about} find none ({how_sure}; the smallest p is {smallest:.3f})."
    found = ", ".join(
        f"{name} gains {pair.difference}, {format_p(pair.p_value)}"
        for name, pair in shown.items()
        if pair.p_value is not None
    )
    return f"In {about}, {found} ({how_sure}).{_shrunk_sentence(outcomes, holdouts)}"


def _shrunk_sentence(outcomes: Outcomes, holdouts: Holdouts | None) -> str:
    shrunk = _shrunk(outcomes, holdouts)
    if len(shrunk) < 2:
        return ""
    best = max(shrunk, key=lambda name: shrunk[name])
    return (
        f" {best}, the best of {len(shrunk)}, looks better than it is for being picked: shrunk, "
        f"its gain is {shrunk[best]:.4f}."
    )


def _shrunk(outcomes: Outcomes, holdouts: Holdouts | None) -> dict[str, float]:
    """Return each momentum's shrunk gain in validation accuracy over the first one."""
    first, *others = _accuracies(outcomes).values()
    population, _ = _speaks_of(holdouts)
    ratio = None if holdouts is None or population == THESE_TILES else holdouts.held_out_to_trained
    if len(first) < 2:
        return dict.fromkeys([*outcomes][1:], math.nan)
    gains = stats.shrunk_gains(others, first, ratio or 0.0)
    return dict(zip([*outcomes][1:], gains.tolist(), strict=True))


def _gains(outcomes: Outcomes, holdouts: Holdouts | None) -> dict[str, Test]:
    """Test every momentum's validation accuracy against the first one's."""
    accuracies = _accuracies(outcomes)
    first = accuracies.pop(next(iter(accuracies)))
    return {name: _test(one, first, holdouts, len(accuracies)) for name, one in accuracies.items()}


def _accuracies(outcomes: Outcomes) -> dict[str, pd.Series]:
    tables = figures_by_run(outcomes)
    return {name: table["validation accuracy"] for name, table in tables.items()}


def _test(one: pd.Series, other: pd.Series, holdouts: Holdouts | None, comparisons: int) -> Test:
    """Test a gain on the widest population that the holdouts allow."""
    population, _ = _speaks_of(holdouts)
    if population == THESE_TILES or holdouts is None or holdouts.held_out_to_trained is None:
        return stats.paired_difference(one, other, comparisons=comparisons)
    return stats.resampled_difference(
        one, other, holdouts.held_out_to_trained, comparisons=comparisons
    )


def _speaks_of(holdouts: Holdouts | None) -> tuple[str, str]:
    """Return the population of the gains' test, and its name."""
    # One holdout of all seeds says nothing of other tiles by accuracies alone.
    if holdouts is None or holdouts.held_out_to_trained is None:
        return THESE_TILES, EXACT
    population = holdouts.population
    return population, EXACT if population == THESE_TILES else RESAMPLED


def _explain(claimed: float, noise: float, pair: Test) -> str:
    if pair.is_shown:
        same = (claimed > 0) == (pair.difference.estimate > 0)
        return "shown" if same else "shown the other way round"
    return "within the seed's noise" if abs(claimed) <= noise else "not shown"
