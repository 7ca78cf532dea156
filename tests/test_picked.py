"""What was picked as the best of several: simultaneous intervals, and a second judgement."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from simulated_studies import at_least, equal_arms, record

from kit import runs, stats

few = pytest.mark.parametrize(
    "number", [20, pytest.param(2000, marks=pytest.mark.soak)], ids=["20", "2000"]
)


def test_each_seed_judges_the_best_of_the_others() -> None:
    control = np.zeros(3)
    one, other = np.array([5.0, 0.0, 0.0]), np.array([1.0, 1.0, 2.0])
    # Without the first seed the other recipe is the best, with it the first one.
    assert stats.repicked_gain([one, other], control).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "number", [60, pytest.param(2000, marks=pytest.mark.soak)], ids=["60", "2000"]
)
@pytest.mark.parametrize("seeds", [8, pytest.param(10, marks=pytest.mark.soak)])
def test_gains_hold_together_and_the_best_one_is_shrunk(seeds: int, number: int) -> None:
    """Four momenta against one, all alike, over fresh pools of tiles."""
    rng = np.random.default_rng(0)
    together = 0
    best, shrunk, spreads = [], [], []
    for _ in range(number):
        control, *others, ratio = equal_arms(rng, tiles=324, seeds=seeds, arms=5, shared=5)
        tests = [stats.resampled_difference(one, control, ratio, comparisons=4) for one in others]
        together += all(one.difference.low <= 0 <= one.difference.high for one in tests)
        best.append(max(one.difference.estimate for one in tests))
        shrunk.append(stats.shrunk_gains(others, control, ratio).max())
        spreads.append(np.std(others[0] - control, ddof=1))
    case, sd = f"4 momenta, {seeds} seeds", np.mean(spreads)
    record("momenta, all intervals together", case, together / number, number)
    record("best momentum, too large by so many sd", case, np.mean(best) / sd, number)
    record("the same, shrunk", case, np.mean(shrunk) / sd, number)
    assert together / number >= at_least(0.93, number)
    assert abs(np.mean(shrunk)) < np.mean(best) / 2


def test_gains_that_differ_are_shrunk_by_what_chance_makes_of_equal_ones() -> None:
    """Written out, and with many seeds hardly at all."""
    rng = np.random.default_rng(0)
    gains = np.array([[0.0], [1.0], [3.0]]) + rng.normal(size=(3, 12))
    means = gains.mean(axis=1)
    pairs = [(0, 1), (0, 2), (1, 2)]
    covariances = [np.cov(gains[a], gains[b])[0, 1] for a, b in pairs]
    alike = (gains.var(axis=1, ddof=1).mean() - np.mean(covariances)) * (1 / 12 + 0.4)
    kept = 1 - alike / means.var(ddof=1)
    expected = means.mean() + kept * (means - means.mean())
    assert stats.shrunk_gains([*gains], np.zeros(12), 0.4) == pytest.approx(expected)
    assert stats.shrunk_gains([gains[0]], np.zeros(12), 0.4) == pytest.approx(means[:1])
    # What differs by less than chance makes of equal ones is drawn to one value.
    equal = rng.normal(size=(3, 12))
    assert np.ptp(stats.shrunk_gains([*equal], np.zeros(12), 5.0)) == pytest.approx(0, abs=1e-12)
    many = np.array([[0.0], [1.0], [3.0]]) + rng.normal(size=(3, 4000))
    assert stats.shrunk_gains([*many], np.zeros(4000), 0.0) == pytest.approx(many.mean(1), abs=0.01)


def equal_runs(rng: np.random.Generator, tiles: int, noises: list[float]) -> tuple[np.ndarray, ...]:
    """Return labels and probabilities of runs that see one signal through noise of their own."""
    labels = (np.arange(tiles) % 2).astype(int)
    signal = 1.2 * labels + rng.normal(size=len(labels))
    logits = [signal + noise * rng.normal(size=len(labels)) for noise in noises]
    return labels, 1 / (1 + np.exp(-np.array(logits)))


@few
@pytest.mark.parametrize("tiles", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_the_best_of_many_runs_is_judged_where_it_was_not_picked(tiles: int, number: int) -> None:
    """A search's best trial of 20 that are alike."""
    rng = np.random.default_rng(0)
    truth = scipy.stats.norm.cdf(1.2 / (2 * 1.25) ** 0.5)
    covered, flattered, found = 0, [], []
    for _ in range(number):
        labels, shown = equal_runs(rng, tiles, [0.5] * 20)
        judged = runs.judge_best(labels, shown)
        aucs = [stats.auc(labels, one) for one in shown]
        covered += judged.low <= truth <= judged.high
        flattered.append(max(aucs) - truth)
        found.append(judged.estimate - truth)
    case = f"best of 20, {tiles} tiles"
    record("best trial, picked on other tiles", case, covered / number, number)
    record("best trial, its own AUC too large by", case, np.mean(flattered), number)
    record("best trial, picked on other tiles, too large by", case, np.mean(found), number)
    assert covered / number >= at_least(0.93, number)
    assert abs(np.mean(found)) < np.mean(flattered)


@few
@pytest.mark.parametrize("tiles", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_the_gain_of_an_ensemble_covers(tiles: int, number: int) -> None:
    """That of the ensemble that is written, over the run that is best on the same tiles."""
    rng = np.random.default_rng(0)
    folders = [Path(name) for name in "abcd"]
    bounds, gains = [], []
    for _ in range(number):
        labels, shown = equal_runs(rng, tiles + 20_000, [0.8, 0.9, 1.0, 1.4])
        seen, new = slice(tiles), slice(tiles, None)
        judged = runs.judge_gain(labels[seen], shown[:, seen], "probability").comparison.difference
        chosen = runs.choose_ensemble(folders, labels[seen], shown[:, seen], "probability")
        rows = [folders.index(Path(name)) for name in chosen.weights]
        aucs = [stats.auc(labels[seen], one[seen]) for one in shown]
        best = stats.auc(labels[new], shown[int(np.argmax(aucs)), new])
        gains.append(stats.auc(labels[new], chosen.combine(shown[rows][:, new])) - best)
        bounds.append((judged.low, judged.high))
    low, high = np.array(bounds).T
    of_each = np.mean((low <= gains) & (gains <= high))
    of_mean = np.mean((low <= np.mean(gains)) & (np.mean(gains) <= high))
    record("gain of the ensemble that was chosen", f"{tiles} tiles", of_each, number)
    record("mean gain of such choices", f"{tiles} tiles", of_mean, number)
    assert of_each >= at_least(0.93, number)
