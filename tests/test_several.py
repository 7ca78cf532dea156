"""Three arms or more: corrected p-values, margins, plans, and the command that prints them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import kernel, run_kernel
from scipy.stats import binomtest, ttest_1samp

from kit import stats, study
from kit.base import EpochResult, KitError, Recipe, read_json
from kit.data import Store
from kit.report import plots
from kit.study import Outcome, Study
from kit.study.populations import EXACT, THESE_TILES, Holdouts, Judgement

HERE = Holdouts(1.0, {}, 0)
"""Seeds that split slides, of which there are too few: only these tiles are spoken of."""


def by_definition(p_values: list[float]) -> list[float]:
    """Holm's correction as closed testing: the largest Bonferroni p of any family with it."""
    numbers = range(len(p_values))
    families = [
        family
        for size in range(1, len(p_values) + 1)
        for family in itertools.combinations(numbers, size)
    ]
    return [
        max(
            min(1.0, len(family) * min(p_values[one] for one in family))
            for family in families
            if number in family
        )
        for number in numbers
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_holm_is_the_closed_test_of_bonferroni(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        p_values = list(rng.uniform(size=count) ** 4)
        p_values[0] = p_values[-1]
        np.testing.assert_allclose(stats.holm(p_values), by_definition(p_values), rtol=1e-12)


def test_holm_knows_an_example() -> None:
    """Of Holm's paper, as every textbook has it."""
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def outcomes(values: np.ndarray) -> dict[str, list[Outcome]]:
    """Arms of the AUCs (arms, seeds)."""
    epoch = EpochResult(1, 0.4, 0.9, 0.5, 0.8, 0.5, 36.0, 100.0, 0.1)
    return {
        f"arm{number}": [Outcome((epoch,), float(auc), 0.8, 0.5) for auc in row]
        for number, row in enumerate(values)
    }


def judge(values: np.ndarray, control: str | None = None) -> study.SeveralJudgements:
    arms = {f"arm{number}": Recipe() for number in range(len(values))}
    pairs = study.choose_pairs(Study(Path(), arms, tuple(range(values.shape[1])), control))
    return study.judge_several(outcomes(values), None, pairs, HERE)  # type: ignore[arg-type]


def false_studies(arms: int, control: str | None, studies: int) -> int:
    """Return in how many studies of equal arms a difference is shown."""
    rng = np.random.default_rng(arms)
    found = 0
    for _ in range(studies):
        # A seed's split makes all arms better or worse.
        values = 0.9 + 0.02 * rng.normal(size=12) + 0.01 * rng.normal(size=(arms, 12))
        judged = judge(values, control).values()
        found += any(judgements[THESE_TILES].test.is_shown for judgements in judged)
    return found


@pytest.mark.parametrize("control", [None, "arm0"])
@pytest.mark.parametrize("arms", [3, 5])
@pytest.mark.parametrize("studies", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_equal_arms_are_told_apart_in_5_percent_of_studies_at_most(
    arms: int, control: str | None, studies: int
) -> None:
    found = false_studies(arms, control, studies)
    assert binomtest(found, studies, 0.05, alternative="greater").pvalue > 0.001


def test_holm_shows_what_bonferroni_does_and_more() -> None:
    rng = np.random.default_rng(3)
    values = 0.8 + np.array([[0.0], [0.03], [0.012]]) + 0.01 * rng.normal(size=(3, 10))
    judged = judge(values)
    for (one, other), judgements in judged.items():
        numbers = [int(name.removeprefix("arm")) for name in (one, other)]
        pair = values[numbers[0]], values[numbers[1]]
        bonferroni = stats.paired_difference(*pair, comparisons=3)
        alone = stats.paired_difference(*pair)
        test = judgements[THESE_TILES].test
        assert alone.p_value is not None
        assert bonferroni.p_value is not None
        assert test.p_value is not None
        assert alone.p_value <= test.p_value <= bonferroni.p_value
        assert test.difference == bonferroni.difference


def test_two_arms_are_judged_as_ever() -> None:
    values = np.random.default_rng(0).normal(0.9, 0.01, (2, 8))
    (judged,) = judge(values).values()
    assert judged[THESE_TILES].test == stats.paired_difference(*values)


def test_too_few_seeds_for_so_many_arms_are_told_of() -> None:
    values = np.random.default_rng(0).normal(0.9, 0.01, (4, 6))
    judged = judge(values)
    assert all(one[THESE_TILES].test.p_value is None for one in judged.values())
    verdict = study.several_verdict(judged)
    assert verdict.startswith("No conclusion is possible on these tiles.")
    assert "6 of the 8 seeds that 6 comparisons take" in verdict
    assert study.several_verdict(judge(values[:2])).startswith("0 of 1")


def test_a_verdict_has_a_sentence_for_each_pair() -> None:
    rng = np.random.default_rng(1)
    values = 0.8 + np.array([[0.0], [0.05], [0.0]]) + 0.005 * rng.normal(size=(3, 8))
    lines = study.several_verdict(judge(values)).splitlines()
    assert lines[0] == "2 of 3 differences are shown on these tiles (Holm)."
    assert lines[1].startswith("arm1 is better than arm0 by 0.0")
    assert "simultaneous 95 % interval" in lines[1]
    assert lines[2].startswith("Not shown on these tiles: ")
    assert lines[3].startswith("arm1 is better than arm2")
    against = study.several_verdict(judge(values, "arm2")).splitlines()
    assert [line.count("arm2") for line in against[1:]] == [1, 1]


def test_a_control_is_one_of_the_arms() -> None:
    arms = dict.fromkeys(("a", "b", "c"), Recipe())
    with pytest.raises(KitError, match="--control d is none of the arms: they are a, b, c"):
        study.choose_pairs(Study(Path(), arms, (0,), "d"))
    assert study.choose_pairs(Study(Path(), arms, (0,), "b")) == [("a", "b"), ("c", "b")]


def within(low: float, high: float, margin: float = 0.01) -> str:
    test = stats.Comparison(stats.Interval((low + high) / 2, low, high), 0.5)
    return study.margin_verdict({THESE_TILES: Judgement(test, EXACT)}, "a", "b", margin)


def test_a_margin_is_held_by_the_interval() -> None:
    assert within(-0.009, 0.009).startswith("a and b are the same within 0.01 validation AUC on")
    assert within(-0.009, 0.02).startswith("a is not worse than b by 0.01")
    assert within(-0.02, 0.009).startswith("b is not worse than a by 0.01")
    assert within(-0.01, 0.02).startswith(
        "Either of a and b may be worse by 0.01 validation AUC or"
    )
    none = stats.Comparison(stats.Interval(0.1, None, None, "few seeds"), None)
    told = study.margin_verdict({THESE_TILES: Judgement(none, EXACT)}, "a", "b", 0.01)
    assert told.endswith("cannot be said on these tiles: few seeds.")


@pytest.mark.parametrize("studies", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_arms_that_lie_a_margin_apart_are_the_same_in_5_percent_at_most(studies: int) -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(studies):
        values = 0.9 + np.array([[0.0], [0.01]]) + 0.003 * rng.normal(size=(2, 8))
        (judged,) = judge(values).values()
        found += "are the same" in study.margin_verdict(judged, "a", "b", 0.01)
    assert binomtest(found, studies, 0.05, alternative="greater").pvalue > 0.001


@pytest.mark.parametrize(("size", "sd"), [(0.01, 0.01), (0.005, 0.01), (0.02, 0.01)])
def test_as_many_seeds_as_planned_show_the_difference_in_80_percent(size: float, sd: float) -> None:
    needed = stats.seeds_needed(size, sd)
    assert needed is not None
    rng = np.random.default_rng(0)

    def power(seeds: int) -> float:
        differences = rng.normal(size, sd, (20_000, seeds))
        return float((ttest_1samp(differences, 0, axis=1).pvalue <= 0.05).mean())

    assert power(needed) > 0.79
    assert needed == stats.min_seeds() or power(needed - 1) < 0.81


def test_a_plan_pays_for_more_comparisons_and_for_new_tiles() -> None:
    one, three = (stats.seeds_needed(0.01, 0.01, comparisons=n) for n in (1, 3))
    new = stats.seeds_needed(0.01, 0.01, held_out_to_trained=0.05)
    assert one is not None and three is not None and new is not None
    assert one < three
    assert one < new
    # What the tiles have in common does not average out, however many seeds there are.
    assert stats.seeds_needed(0.01, 0.01, held_out_to_trained=0.43) is None
    assert stats.seeds_needed(0.01, 0.0) == stats.min_seeds()
    with pytest.raises(KitError, match="a difference of 0 cannot be planned for"):
        stats.seeds_needed(0, 0.01)


def test_the_bound_of_a_spread_holds_in_97_5_percent() -> None:
    drawn = np.random.default_rng(0).normal(size=(20_000, 6)).std(axis=1, ddof=1)
    held = np.mean([stats.sd_bound(float(sd), 6) >= 1 for sd in drawn])
    assert held == pytest.approx(0.975, abs=0.005)


def test_a_plan_tells_seeds_and_hours_and_not_who_is_ahead() -> None:
    values = np.random.default_rng(0).normal(0.9, 0.01, (3, 4))
    arms = dict.fromkeys(("arm0", "arm1", "arm2"), Recipe())
    pairs = study.choose_pairs(Study(Path(), arms, (0, 1, 2, 3)))
    table = study.plan_table(outcomes(values), pairs, HERE, 0.01)
    row = table.frame.iloc[0]
    sd = float((values[0] - values[1]).std(ddof=1))
    assert row["sd"] == pytest.approx(sd)
    assert row["seeds"] == stats.seeds_needed(0.01, sd, comparisons=3)
    # Three runs per seed of 36 seconds each.
    assert row["hours"] == pytest.approx(row["seeds"] * 3 * 36 / 3600)
    assert "difference" not in table.frame.columns
    with pytest.raises(KitError, match="one seed has no spread to plan with"):
        study.plan_table(outcomes(values[:, :1]), pairs, HERE, 0.01)


def test_seeds_are_drawn_by_arm() -> None:
    values = {"a": [0.8, 0.9], "b": [0.7, 0.95], "c": [0.6, 0.8]}
    (axes,) = plots.seeds_by_arm(values, title="Seeds").axes
    lines = [line.get_ydata() for line in axes.lines[:2]]
    np.testing.assert_array_equal(lines, [[0.8, 0.7, 0.6], [0.9, 0.95, 0.8]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


def test_the_command_compares_three_arms(tiles: Store, tmp_path: Path) -> None:
    lines = ["epochs = 1", "batch_size = 8", "widths = [4, 4, 4]"]
    (tmp_path / "batch.toml").write_text("\n".join(lines))
    (tmp_path / "group.toml").write_text("\n".join([*lines, 'norm = "group"']))
    (tmp_path / "none.toml").write_text("\n".join([*lines, 'norm = "none"']))
    arms = [f"--arm={name}={tmp_path}/{name}.toml" for name in ("batch", "group", "none")]
    options = [*arms, "--data", tiles.data, "--out", tmp_path / "study", "--control", "batch"]
    planned = run_kernel("compare", *options, "--seeds", 2, "--plan", 0.1)
    assert "Seeds that show a difference of 0.1 validation AUC in 80% of studies" in planned
    assert not (tmp_path / "study/looks.json").exists()
    said = run_kernel("compare", *options, "--seeds", 2, "--margin", 0.02)
    assert "group less batch" in said
    assert "group less none" not in said
    assert (tmp_path / "study/differences.csv").is_file()
    page = (tmp_path / "study/report.html").read_text()
    assert "A line joins the runs of one seed" in page
    assert read_json(tmp_path / "study/study.json", dict, what="a study")["control"] == "batch"
    other = kernel("compare", *options[:-2], "--seeds", 2)
    assert other.returncode == 1
    assert "holds another study: its control is 'batch', not None" in other.stderr


def test_a_control_has_no_meaning_for_two_arms(tiles: Store, tmp_path: Path) -> None:
    refused = kernel("compare", "--data", tiles.data, "--out", tmp_path, "--control", "before")
    assert refused.returncode == 1
    assert "--control has no meaning for two arms" in refused.stderr


def test_each_arm_is_a_recipe_of_its_own() -> None:
    arms = ["a=notebook", "b=compact", "c=notebook"]
    with pytest.raises(KitError, match="arms a and c are one recipe"):
        study.parse_arms(arms, Recipe(per_class=None), {"per_class"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plan", "0.02", "--seeds", "1"), "one seed has no spread to plan with"),
        (("--plan", "0.02", "--margin", "0.02"), "--margin has no meaning with --plan"),
        (("--plan", "2"), "plan = 2.0: Input should be less than 1"),
        (("--margin", "5"), "margin = 5.0: Input should be less than 1"),
    ],
)
def test_a_plan_or_margin_that_means_nothing_is_refused_before_training(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = kernel("compare", *words, "--data", tmp_path / "none", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_seeds_are_listed_or_counted() -> None:
    assert study.choose_seeds(3, 2, (), set()) == (3, 4)
    assert study.choose_seeds(3, 2, (7, 5), set()) == (7, 5)
    with pytest.raises(KitError, match="--seed-list 5 5 names a seed twice"):
        study.choose_seeds(0, 6, (5, 5), set())
    with pytest.raises(KitError, match="--seeds has no meaning beside --seed-list"):
        study.choose_seeds(0, 6, (5,), {"seeds"})
