"""A verdict that was seen before the seeds were raised: recorded, and paid for."""

from pathlib import Path

import numpy as np
import pytest
from simulated_studies import at_most, headline, record, studies, two_arms

from kit import stats, study
from kit.base import KitError


def test_the_first_verdict_stands_when_seeds_are_raised(tmp_path: Path) -> None:
    def look(seeds: int, verdict: str, *, conclusive: bool = True) -> str:
        return study.record_look(tmp_path, range(seeds), verdict, conclusive=conclusive)

    # Three seeds allow no conclusion, and so take nothing from that of six.
    assert look(3, "No conclusion.", conclusive=False) == "No conclusion."
    assert look(6, "Not shown.") == look(6, "Not shown.") == "Not shown."
    raised = look(8, "One is better.")
    assert raised.startswith("The verdict that counts is that of the first look, with 6 seeds: Not")
    assert "of 8 seeds this is no verdict: One is better." in raised
    assert "looked at with 6 and 8 seeds" in raised
    assert look(6, "Not shown.") == "Not shown."
    seeds = [len(one.seeds) for one in study.read_looks(tmp_path)]
    assert seeds == [3, 6, 6, 8, 6]


def test_other_seeds_are_another_look(tmp_path: Path) -> None:
    study.record_look(tmp_path, range(6), "Not shown.", conclusive=True)
    other = study.record_look(tmp_path, range(10, 16), "One is better.", conclusive=True)
    assert other.startswith("The verdict that counts is that of the first look")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "looks.json").write_text("[{")
    with pytest.raises(KitError, match=r"looks\.json is not the record of a study's looks"):
        study.record_look(tmp_path, range(6), "Not shown.", conclusive=True)


def test_more_looks_are_more_often_false() -> None:
    assert stats.false_share([6]) == pytest.approx(0.05, abs=0.005)
    assert stats.false_share([6], 3 / 7) == pytest.approx(0.05, abs=0.005)
    # Armitage, McPherson and Rowe, JRSS A 132 (1969) 235-244: known variance, two looks, 0.083.
    assert stats.false_share([500, 1000]) == pytest.approx(0.083, abs=0.007)
    many = list(range(6, 17, 2))
    assert stats.false_share(many) > stats.false_share([6, 16]) > 0.06
    assert stats.false_share(many, 3 / 7) > 0.05


@studies
def test_equal_arms_that_are_looked_at_again_and_again(number: int) -> None:
    """Shown after 6, 8, ..., 16 seeds until one look says better: what counts keeps its level."""
    rng = np.random.default_rng(0)
    counts, ever = 0, 0
    for _ in range(number):
        held_out, ratio = two_arms(rng, tiles=324, seeds=16)
        shown = [headline(held_out[:n], ratio).is_shown for n in range(6, 17, 2)]
        counts += shown[0]
        ever += any(shown)
    predicted = stats.false_share(range(6, 17, 2), ratio)
    case = "looked at after 6, 8, ..., 16 seeds"
    record("equal arms, fresh pools, headline", case, counts / number, number)
    record("equal arms, fresh pools, any look", f"told {predicted:.3f}", ever / number, number)
    assert counts / number <= at_most(0.06, number)
    assert ever >= counts
