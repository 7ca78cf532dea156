"""What part of a difference's spread is the seeds' and what the slides'."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_studies import fixed_holdout

from kit import stats, study
from kit.base import KitError
from kit.study import Holdouts


def by_seed(labels: np.ndarray, first: np.ndarray, second: np.ndarray, slides: np.ndarray) -> list:
    return [(labels, one, other, slides) for one, other in zip(first, second, strict=True)]


def test_one_holdout_has_the_moments_of_the_two_way_analysis_of_variance() -> None:
    """Written out over pairs of tiles; Searle, Casella and McCulloch 1992, section 4.3."""
    rng = np.random.default_rng(0)
    seeds, slides = 6, 8
    groups = np.repeat(np.arange(slides), 6)
    labels = np.tile([0, 1, 1], 16)
    shared = labels + rng.normal(size=48) + rng.normal(size=slides)[groups]
    first, second = (
        shared + rng.normal(size=slides)[groups] + 0.5 * rng.normal(size=(seeds, 48))
        for _ in range(2)
    )
    found = stats.slide_spread(by_seed(labels, first, second, groups))
    cells = np.empty((seeds, slides))
    for seed in range(seeds):
        of_tiles = np.zeros(48)
        for sign, scores in ((1, first[seed]), (-1, second[seed])):
            ordered = scores[labels == 1][:, None] > scores[labels == 0]
            of_tiles[labels == 1] += sign * ordered.mean(axis=1) / (labels == 1).sum()
            of_tiles[labels == 0] += sign * ordered.mean(axis=0) / (labels == 0).sum()
            auc = ordered.mean()
            of_tiles[labels == 1] -= sign * auc / (labels == 1).sum()
            of_tiles[labels == 0] -= sign * auc / (labels == 0).sum()
        difference = stats.auc(labels, first[seed]) - stats.auc(labels, second[seed])
        cells[seed] = difference + slides * np.bincount(groups, of_tiles)
    mean, of_seeds, of_slides = cells.mean(), cells.mean(axis=1), cells.mean(axis=0)
    seeds_square = slides * np.sum((of_seeds - mean) ** 2) / (seeds - 1)
    slides_square = seeds * np.sum((of_slides - mean) ** 2) / (slides - 1)
    rest = cells - of_seeds[:, None] - of_slides + mean
    both_square = np.sum(rest**2) / ((seeds - 1) * (slides - 1))
    assert found.slides == pytest.approx((slides_square - both_square) / seeds / slides)
    assert found.slides_by_seed == pytest.approx(min(both_square / slides, of_seeds.var(ddof=1)))
    assert found.seeds == pytest.approx(max(0, (seeds_square - both_square) / slides))
    test = stats.crossed_difference(labels, first, second, groups)
    assert found.error() == pytest.approx(np.sqrt(of_seeds.var(ddof=1) / seeds + found.slides))
    assert test.difference.estimate == pytest.approx(mean)


@pytest.mark.parametrize("number", [80, pytest.param(2000, marks=pytest.mark.soak)])
def test_the_parts_are_those_that_were_put_in(number: int) -> None:
    """Means over simulated studies, against differences that are drawn again and again."""
    rng = np.random.default_rng(0)
    drawn, parts = [], []
    for _ in range(number):
        labels, first, second, slides = fixed_holdout(rng, slides=30, seeds=2, taste=1.0)
        pairs = zip(first, second, strict=True)
        drawn.append([stats.auc(labels, a) - stats.auc(labels, b) for a, b in pairs])
        parts.append(stats.slide_spread(by_seed(labels, first, second, slides)))
    # The covariance of two seeds over fresh slides is the slides'; what they differ by is not.
    one, other = np.array(drawn).T
    products = (one - one.mean()) * (other - other.mean())
    estimates = np.array([own.slides for own in parts])
    off = estimates.mean() - products.mean()
    assert abs(off) <= 3 * (products.var() / number + estimates.var() / number) ** 0.5
    squares = np.array([np.mean(np.square(own)) for own in drawn])
    totals = np.array([own.total for own in parts])
    off = totals.mean() - squares.mean()
    assert abs(off) <= 3 * (squares.var() / number + totals.var() / number) ** 0.5


def test_slides_without_end_leave_the_seeds_part() -> None:
    """Each seed of the simulation separates the classes by a share of its own."""
    rng = np.random.default_rng(0)
    few = [stats.slide_spread(by_seed(*fixed_holdout(rng, slides=30, seeds=8))) for _ in range(20)]
    labels, first, second, _ = fixed_holdout(rng, slides=300, seeds=60)
    pairs = zip(first, second, strict=True)
    left = np.var([stats.auc(labels, a) - stats.auc(labels, b) for a, b in pairs], ddof=1)
    found = np.array([own.seeds for own in few])
    error = (found.var(ddof=1) / 20 + left**2 * 2 / 59) ** 0.5
    assert abs(found.mean() - left) <= 3 * error + 0.1 * left


def test_what_more_seeds_and_more_slides_bring() -> None:
    spread = stats.Spread(number=4, seeds=0.04, slides_by_seed=0.08, slides=0.01)
    assert spread.total == pytest.approx(0.13)
    assert spread.error() == pytest.approx((0.03 + 0.01) ** 0.5)
    assert spread.error(seeds=2) == pytest.approx((0.015 + 0.01) ** 0.5)
    assert spread.error(slides=2) == pytest.approx((0.02 + 0.005) ** 0.5)


def test_too_little_to_split_is_a_message() -> None:
    labels, first, second, slides = fixed_holdout(np.random.default_rng(0), slides=10, seeds=2)
    with pytest.raises(KitError, match="one seed has no spread"):
        stats.slide_spread(by_seed(labels, first[:1], second[:1], slides))
    with pytest.raises(KitError, match="fewer than two slides"):
        stats.slide_spread(by_seed(labels, first, second, np.zeros(len(labels))))


def test_the_table_says_whether_to_buy_seeds_or_slides(tmp_path: Path) -> None:
    labels, first, second, slides = fixed_holdout(np.random.default_rng(0), slides=20, seeds=6)
    ids = [f"{number:04}" for number in range(len(labels))]
    predictions = pd.concat(
        pd.DataFrame({"seed": seed, "id": ids, "label": labels, "a": one, "b": other})
        for seed, (one, other) in enumerate(zip(first, second, strict=True))
    )
    by_id = dict(zip(ids, slides.astype(str), strict=True))
    table = study.spread_table(predictions, [("a", "b")], Holdouts(None, by_id, 10), by_id)
    assert table is not None
    row = table.frame.loc["a less b"]
    assert row.filter(like="share").sum() == pytest.approx(1)
    spread = stats.slide_spread(by_seed(labels, first, second, slides))
    assert row["twice the slides"] == pytest.approx(spread.error(slides=2))
    study.write_tables(tmp_path, {"spread": table}, "")
    assert "more slides lower it" in (tmp_path / "verdict.txt").read_text()
    # A seed that splits again: what all seeds share is what the corrected test adds.
    again = study.spread_table(predictions, [("a", "b")], Holdouts(0.4), by_id)
    assert again is not None
    assert again.frame.loc["a less b", "error now"] >= row["error now"]
    few = {one: "S1" if slide in "13" else slide for one, slide in by_id.items()}
    assert study.spread_table(predictions, [("a", "b")], Holdouts(0.4), few) is None
    by_id.pop(ids[0])
    assert study.spread_table(predictions, [("a", "b")], Holdouts(0.4), by_id) is None
    assert study.spread_table(predictions, [("a", "b")], Holdouts(0.4), None) is None
