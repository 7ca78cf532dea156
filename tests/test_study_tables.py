"""Tables of a study hold numbers alone, agree with its verdict, and say once what is missing."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kit.stats
from kit import study
from kit.base import EpochResult, format_p
from kit.study import Holdouts, Outcome, Outcomes

HISTORY = tuple(EpochResult(epoch, 0.4, 0.9, 0.5, 0.8, 0.9, 1.0, 9.0, 0.1) for epoch in (1, 2, 3))


def seeds(accuracies: np.ndarray) -> list[Outcome]:
    return [Outcome(HISTORY, float(one) + 0.05, float(one), 0.5) for one in accuracies]


def arms(number: int, gain: float = 0.01) -> Outcomes:
    rng = np.random.default_rng(0)
    base = 0.8 + 0.02 * rng.standard_normal(number)
    gains = gain + 0.001 * rng.standard_normal(number)
    return {"before": seeds(base + gains), "after": seeds(base)}


@pytest.mark.parametrize("number", [1, 2, 6])
def test_cells_are_numbers_and_a_reason_stands_once_below(number: int, tmp_path: Path) -> None:
    table = study.paired_table(arms(number), "before", "after")
    study.write_tables(tmp_path, {"table1": table, "again": table}, "The verdict.")
    read = pd.read_csv(tmp_path / "table1.csv", index_col="figure")
    assert all(np.issubdtype(kind, np.number) for kind in read.dtypes)
    assert read.loc[study.PRIMARY, ["low", "high", "p"]].notna().all() == (number == 6)
    printed, said = str(table), (tmp_path / "verdict.txt").read_text()
    assert max(map(len, printed.split("Empty cells")[0].splitlines())) <= 80
    for text in (printed, said):
        assert text.count(f"these are {number} of the 6 seeds") == (number < 6)
    # What one figure alone lacks is said of that figure.
    assert ("Empty cells (training accuracy, " in said) == (number == 6)


def momenta(gains: dict[str, float], number: int) -> Outcomes:
    rng = np.random.default_rng(3)
    return {
        name: seeds(0.8 + gain + 0.01 * rng.standard_normal(number)) for name, gain in gains.items()
    }


@pytest.mark.parametrize("number", [6, 7, 8, 12])
@pytest.mark.parametrize("gain", [0.0, 0.008, 0.01, 0.012, 0.05])
def test_table_and_verdict_on_momentum_give_one_answer(number: int, gain: float) -> None:
    """Some of these gains have a p below 5 % that its correction for three tests lifts above."""
    outcomes = momenta({"0.99": 0.0, "0.75": 0.0, "0.5": gain, "0.25": -gain}, number)
    table = study.momentum_table(outcomes).frame
    shown = table[table["p"] <= 0.05]
    assert shown.index.tolist() == table.index[table["low"] * table["high"] > 0].tolist()
    verdict = study.momentum_verdict(outcomes)
    assert re.findall(r"([\d.]+) gains", verdict) == shown.index.tolist()
    assert ("No conclusion" in verdict) == (number == 6) == table["p"].isna().all()
    notebook = study.notebook_table(outcomes).frame.filter(like="validation", axis="index")
    said = notebook["notebook's difference"].str.startswith("shown")
    assert said.tolist() == (notebook["p"] <= 0.05).tolist()
    assert notebook["p"].tolist() == pytest.approx(table["p"].tolist()[1:], nan_ok=True)
    assert said.sum() == len(shown)


@pytest.mark.parametrize("holdouts", [None, Holdouts(3 / 7)])
def test_a_shrunk_gain_stands_beside_the_picked_one(holdouts: Holdouts | None) -> None:
    outcomes = momenta({"0.99": 0.0, "0.5": 0.06, "0.25": 0.061}, 10)
    table = study.momentum_table(outcomes, holdouts).frame
    accuracies = {name: np.array([one.accuracy for one in own]) for name, own in outcomes.items()}
    first, *others = accuracies.values()
    ratio = 0.0 if holdouts is None else 3 / 7
    expected = kit.stats.shrunk_gains(others, first, ratio)
    assert table["shrunk"].tolist()[1:] == pytest.approx(expected.tolist())
    said = study.momentum_verdict(outcomes, holdouts)
    assert "the best of 2, looks better than it is for being picked" in said
    assert f": shrunk, its gain is {max(expected):.4f}." in said
    # A single momentum is not picked.
    assert "shrunk" not in study.momentum_verdict(momenta({"0.99": 0, "0.5": 0.1}, 8))


def test_tables_are_written_for_a_paper(tmp_path: Path) -> None:
    table = study.paired_table(arms(6), "before", "after")
    study.write_tables(tmp_path, {"table1": table}, "The verdict.")
    text = (tmp_path / "table1.md").read_text()
    rows = [line[2:-2].split(" | ") for line in text.splitlines()]
    assert rows[0][:2] == ["figure", "before mean (sd)"]
    assert {len(row) for row in rows} == {len(table.shown.columns) + 1}
    assert [row[0] for row in rows[2:]] == table.frame.index.tolist()
    latex = (tmp_path / "table1.tex").read_text()
    for rule in ("toprule", "midrule", "bottomrule"):
        assert latex.count(f"\\{rule}") == 1
    assert latex.count(r"\\") == len(rows) - 1
    difference = table.frame.loc[study.PRIMARY, "difference"]
    assert f"{difference:.4f}" in latex


def test_what_typesetting_would_read_is_escaped(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a_1 & 50 %": [np.nan, 0.5]}, index=pd.Index(["x|y", "z"], name="arm"))
    study.write_tables(tmp_path, {"t": study.StudyTable(frame)}, "")
    assert (tmp_path / "t.md").read_text().splitlines()[2:] == [r"| x\|y |  |", "| z | 0.5000 |"]
    assert r"a\_1 \& 50 \%" in (tmp_path / "t.tex").read_text()


def test_a_mean_keeps_its_last_zeros() -> None:
    """0.8620 beside 0.8322, and a spread of 0.050 beside one of 0.034."""
    table = study.paired_table({name: seeds(np.full(6, 0.85)) for name in "ab"}, "a", "b")
    assert table.shown.loc[study.PRIMARY, "a mean (sd)"] == "0.9000 (0.0)"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.569, "p = 0.569"), (0.0312, "p = 0.031"), (1.7e-4, "p < 0.001")]
)
def test_no_p_value_is_said_to_be_nothing(value: float, shown: str) -> None:
    """A table has 1.7e-04 where a verdict would say 0.000."""
    assert format_p(value) == shown
