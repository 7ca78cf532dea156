"""The tables and the verdict of a sweep of BatchNorm's momentum."""

import itertools

import pandas as pd

from kit import stats
from kit.study.figures import PRIMARY, Outcomes, figures_by_run

NOTEBOOK = {
    "0.99": (0.8409, 0.7505),
    "0.75": (0.8375, 0.8374),
    "0.5": (0.8431, 0.8449),
    "0.25": (0.8379, 0.8389),
}
"""Training and validation accuracy in the study's own table 2, from one run each."""


def momentum_table(outcomes: Outcomes) -> pd.DataFrame:
    """Return each momentum's figures, and what each gains over the first, paired by seed."""
    tables = figures_by_run(outcomes)
    first = next(iter(outcomes))
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
        row["spread of validation accuracy"] = table["spread of validation accuracy"].mean()
        if name != first:
            pair = stats.paired_difference(
                table["validation accuracy"], tables[first]["validation accuracy"]
            )
            row[f"accuracy gained over {first}"] = str(pair.difference)
            row["p"] = pair.p_value
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("momentum (Keras)")


def notebook_table(outcomes: Outcomes) -> pd.DataFrame:
    """Hold the notebook's differences of one run each against those of many seeds.

    `seed noise` is how far two single runs of one momentum lie apart by their seeds alone in
    95 of 100 cases: 1.96 times the root of two times the standard deviation between seeds.
    """
    tables = figures_by_run(outcomes)
    known = [name for name in NOTEBOOK if name in tables]
    rows = {}
    for name in known[1:]:
        for column, figure in enumerate(("training accuracy", "validation accuracy")):
            one, other = (tables[key][figure] for key in (name, known[0]))
            pair = stats.paired_difference(one, other)
            noise = 1.96 * 2**0.5 * max(one.std(), other.std())
            claimed = NOTEBOOK[name][column] - NOTEBOOK[known[0]][column]
            same = one.equals(other)
            rows[f"{name} against {known[0]}, {figure}"] = {
                "notebook": claimed,
                "here": "0, being the same training" if same else str(pair.difference),
                "p": pair.p_value,
                "seed noise": noise,
                "notebook's difference": (
                    "the seed's alone" if same else _explain(claimed, noise, pair)
                ),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("difference")


def momentum_verdict(outcomes: Outcomes) -> str:
    """Say in one sentence which momenta differ from the first, or that none is shown.

    Each is tested against the first; Bonferroni's correction keeps the chance of any false
    finding at 5 %.
    """
    table = momentum_table(outcomes)
    reference, seeds, comparisons = table.index[0], table["n"].iloc[0], len(table) - 1
    level = (1 - stats.CONFIDENCE) / comparisons
    about = f"{comparisons} comparisons with momentum {reference} in validation accuracy"
    if 2 / 2**seeds > level:
        needed = next(n for n in itertools.count(stats.MIN_SEEDS) if 2 / 2**n <= level)
        return (
            f"No conclusion is possible from {about}: {seeds} seeds cannot give a p of "
            f"{level:.3f} or less, {needed} could."
        )
    shown = table[table["p"] <= level]
    how_sure = f"sign-flip p at most {level:.3f} each, {seeds} seeds"
    if shown.empty:
        smallest = table["p"].min()
        return f"Not shown: {about} find none ({how_sure} is asked, the least is {smallest:.3f})."
    column = f"accuracy gained over {reference}"
    gains = ", ".join(f"{name} gains {row[column]}" for name, row in shown.iterrows())
    return f"In {about}, {gains} ({how_sure})."


def _explain(claimed: float, noise: float, pair: stats.PairedDifference) -> str:
    if pair.p_value is not None and pair.p_value <= 1 - stats.CONFIDENCE:
        same = (claimed > 0) == (pair.difference.estimate > 0)
        return "shown" if same else "shown the other way round"
    return "within the seed's noise" if abs(claimed) <= noise else "not shown"
