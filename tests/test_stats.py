"""Metrics against written-out formulas and other implementations; intervals by coverage."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from simulated_studies import at_least, record, slide_sizes, studies
from sklearn.calibration import calibration_curve

from kit import stats
from kit.base import KitError
from kit.stats import Interval, binormal, bootstrap, intervals, slides

SIMULATIONS = 500

# Fisher's grade on admission of 113 patients, by outcome: counts of the grades 1 to 5.
# Turck et al., Intensive Care Medicine 36 (2010) 107-115, the marker "wfns" of pROC's data.
WFNS_GOOD, WFNS_POOR = [37, 20, 3, 8, 4], [2, 12, 1, 8, 18]

# DeLong, DeLong and Clarke-Pearson's own example, as the SAS/STAT User's Guide prints it
# (PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves"):
# albumin, total protein, Krebs-Goplerud score (higher is worse), outcome.
# fmt: off
OVARIAN_CANCER = np.array([
    [3.0, 5.8, 10, 0], [3.2, 6.3, 5, 1], [3.9, 6.8, 3, 1], [2.8, 4.8, 6, 0], [3.2, 5.8, 3, 1],
    [0.9, 4.0, 5, 0], [2.5, 5.7, 8, 0], [1.6, 5.6, 5, 1], [3.8, 5.7, 5, 1], [3.7, 6.7, 6, 1],
    [3.2, 5.4, 4, 1], [3.8, 6.6, 6, 1], [4.1, 6.6, 5, 1], [3.6, 5.7, 5, 1], [4.3, 7.0, 4, 1],
    [3.6, 6.7, 4, 0], [2.3, 4.4, 6, 1], [4.2, 7.6, 4, 0], [4.0, 6.6, 6, 0], [3.5, 5.8, 6, 1],
    [3.8, 6.8, 7, 1], [3.0, 4.7, 8, 0], [4.5, 7.4, 5, 1], [3.7, 7.4, 5, 1], [3.1, 6.6, 6, 1],
    [4.1, 8.2, 6, 1], [4.3, 7.0, 5, 1], [4.3, 6.5, 4, 1], [3.2, 5.1, 5, 1], [2.6, 4.7, 6, 1],
    [3.3, 6.8, 6, 0], [1.7, 4.0, 7, 0], [3.7, 6.1, 5, 1], [3.3, 6.3, 7, 1], [4.2, 7.7, 6, 1],
    [3.5, 6.2, 5, 1], [2.9, 5.7, 9, 0], [2.1, 4.8, 7, 1], [2.8, 6.2, 8, 0], [4.0, 7.0, 7, 1],
    [3.3, 5.7, 6, 1], [3.7, 6.9, 5, 1], [3.6, 6.6, 5, 1],
])
# fmt: on


def tiles(
    rng: np.random.Generator,
    *,
    positives: int,
    negatives: int,
    separation: float,
    spread: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and normal scores; their true AUC is Phi(separation / sqrt(1 + spread^2))."""
    labels = np.repeat([1, 0], [positives, negatives])
    return labels, separation * labels + spread**labels * rng.normal(size=len(labels))


def tiles_of_slides(
    rng: np.random.Generator, *, slides: int, separation: float, spread: float, kind: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, scores and slides; half the slides are normal, each has its own stain.

    Stain does not depend on tumour, so the true AUC over new slides is
    Phi(separation / sqrt(2 + 2 spread^2)).
    """
    sizes = slide_sizes(rng, kind, slides) if kind else rng.integers(10, 30, size=slides)
    groups = np.repeat(np.arange(slides), sizes)
    tumour_share = np.where(np.arange(slides) % 2, rng.beta(2, 2, size=slides), 0.0)
    labels = (rng.random(len(groups)) < tumour_share[groups]).astype(int)
    stain = spread * rng.normal(size=slides)
    scores = separation * labels + stain[groups] + rng.normal(size=len(groups))
    return labels, scores, groups


def covers(interval: Interval, truth: float) -> bool:
    assert interval.low is not None and interval.high is not None
    return interval.low <= truth <= interval.high


def share(simulate: Callable[[np.random.Generator], bool], seed: int = 0) -> float:
    """Return in what share of the simulations `simulate` comes out true."""
    rng = np.random.default_rng(seed)
    return sum(simulate(rng) for _ in range(SIMULATIONS)) / SIMULATIONS


def written_out_components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong et al. (1988), equations 4 and 5, over all pairs."""
    x, y = scores[labels == 1][:, None], scores[labels == 0][None, :]
    psi = np.where(x > y, 1.0, np.where(x == y, 0.5, 0.0))
    return psi.mean(axis=1), psi.mean(axis=0)


def delongs_variance(labels: np.ndarray, scores: np.ndarray) -> float:
    return intervals._variance(*intervals.components(labels == 1, scores))


@st.composite
def scored_tiles(draw: st.DrawFn, columns: int = 1) -> tuple[np.ndarray, ...]:
    """Return labels of both classes, at least two tiles each, and columns of scores with ties."""
    labels = np.array([0, 0, 1, 1, *draw(st.lists(st.integers(0, 1), max_size=20))])
    scores = hnp.arrays(float, len(labels), elements=st.integers(0, 5).map(float))
    return labels, *(draw(scores) for _ in range(columns))


# AUC, accuracy, log loss


@given(scored_tiles())
def test_auc_is_mann_whitneys_u_over_all_pairs_with_ties_counting_half(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, scores = data
    pairs = [(x, y) for x in scores[labels == 1] for y in scores[labels == 0]]
    expected = sum((x > y) + (x == y) / 2 for x, y in pairs) / len(pairs)
    assert stats.auc(labels, scores) == pytest.approx(expected, abs=1e-12)


@given(scored_tiles())
def test_auc_depends_on_the_order_alone(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = data
    area = stats.auc(labels, scores)
    assert stats.auc(labels, np.exp(scores) - 7) == area
    assert stats.auc(1 - labels, -scores) == pytest.approx(area, abs=1e-12)


def test_summary_agrees_with_scikit_learn_on_a_holdout_of_66_000_tiles() -> None:
    rng = np.random.default_rng(0)
    labels, logits = tiles(rng, positives=26_735, negatives=39_265, separation=2.0)
    probabilities = expit(4 * logits).astype(np.float32)  # many are exactly 1
    result = stats.summary(labels, probabilities)
    resolution = np.finfo(np.float32).eps
    clipped = np.clip(probabilities.astype(float), resolution, 1 - resolution)
    assert result == pytest.approx(
        {
            "auc": sklearn.metrics.roc_auc_score(labels, probabilities),
            "accuracy": sklearn.metrics.accuracy_score(labels, probabilities > 0.5),
            "log_loss": sklearn.metrics.log_loss(labels, clipped),
        },
        rel=1e-6,
    )


def test_log_loss_of_a_wrong_certainty_is_finite() -> None:
    assert stats.log_loss([1, 1], [0.0, 1.0]) == pytest.approx(math.log(2**23) / 2)


def test_accuracy_counts_the_threshold_itself_as_negative() -> None:
    assert stats.accuracy([0, 0, 0, 1], [0.4, 0.5, 0.6, 0.6]) == 0.75
    assert stats.accuracy([0, 0, 0, 1], [0.4, 0.5, 0.6, 0.6], threshold=0.3) == 0.25


# DeLong


def test_delongs_variance_of_a_published_example() -> None:
    """Values of pROC's own tests (test-auc.R and test-var.R) for the marker wfns."""
    grades = np.tile(np.arange(1, 6), 2)
    scores = np.repeat(grades, WFNS_GOOD + WFNS_POOR)
    labels = np.repeat([0, 1], [sum(WFNS_GOOD), sum(WFNS_POOR)])
    interval = stats.auc_interval(labels, scores)
    assert interval.estimate == pytest.approx(0.823678861788618, rel=1e-12)
    assert delongs_variance(labels, scores) == pytest.approx(0.00146991470882363, rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [(0, 2, 0.9102063472010351), (1, 2, 0.45613970750747357), (0, 1, 0.11182821012069626)],
)
def test_delongs_test_of_delongs_example_agrees_with_another_implementation(
    first: int, second: int, p_value: float
) -> None:
    """The p-values are those of MLstatkit 0.1.91, `Delong_test`."""
    labels = OVARIAN_CANCER[:, 3]
    markers = OVARIAN_CANCER[:, :3] * [1, 1, -1]
    comparison = stats.delong_test(labels, markers[:, first], markers[:, second])
    assert comparison.p_value == pytest.approx(p_value, rel=1e-12)


@given(scored_tiles())
def test_delongs_variance_is_written_out(data: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = data
    positives, negatives = written_out_components(labels, scores)
    variance = positives.var(ddof=1) / len(positives) + negatives.var(ddof=1) / len(negatives)
    assert delongs_variance(labels, scores) == pytest.approx(variance, rel=1e-9, abs=1e-15)


@given(scored_tiles())
def test_the_bounds_part_what_a_score_test_rejects_from_what_it_does_not(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, scores = data
    interval = stats.auc_interval(labels, scores)
    area = interval.estimate
    placed = binormal.placements(scores[labels == 1], scores[labels == 0])
    expected = placed.variance(area)
    factor = max(1, delongs_variance(labels, scores) / expected) if expected else 1

    def rejected(other: float) -> bool:
        return abs(other - area) > 1.959964 * (factor * placed.variance(other)) ** 0.5

    for bound, outwards in ((interval.low, -1e-6), (interval.high, 1e-6)):
        assert 0 <= bound <= 1
        if 1e-5 < bound < 1 - 1e-5:
            assert rejected(bound + outwards)
            assert not rejected(bound - outwards)


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.6])
def test_the_variance_of_normal_scores_is_what_they_have(ratio: float) -> None:
    """Hanley and McNeil's formula, its bivariate normal probabilities by another way."""
    area = 0.8
    place = scipy.stats.norm.ppf(area)
    one_positive, one_negative = (
        scipy.stats.multivariate_normal([0, 0], [[1, share], [share, 1]]).cdf([place, place])
        for share in (ratio**2 / (1 + ratio**2), 1 / (1 + ratio**2))
    )
    own = area * (1 - area) + 24 * (one_positive - area**2) + 14 * (one_negative - area**2)
    expected = own / (15 * 25)
    found = binormal.binormal_variance(area, ratio, 15, 25)
    assert found == pytest.approx(expected, rel=1e-4)
    # The same tiles with the classes' names exchanged.
    assert binormal.binormal_variance(area, 1 / ratio, 25, 15) == pytest.approx(found)
    rng = np.random.default_rng(0)
    above = place * (1 + ratio**2) ** 0.5 + ratio * rng.normal(size=(4000, 15, 1))
    drawn = (above > rng.normal(size=(4000, 1, 25))).mean(axis=(1, 2))
    assert np.var(drawn) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.6])
def test_the_spread_is_found_from_the_order_alone(ratio: float) -> None:
    rng = np.random.default_rng(0)
    labels, scores = tiles(rng, positives=2000, negatives=20_000, separation=1.5, spread=ratio)
    area = stats.auc(labels, scores)
    placed = binormal.placements(scores[labels == 1], scores[labels == 0])
    assert placed.likely_ratio(area) == pytest.approx(ratio, rel=0.05)
    warped = np.exp(scores)
    again = binormal.placements(warped[labels == 1], warped[labels == 0])
    assert again.likely_ratio(area) == placed.likely_ratio(area)
    # Where positive tiles are the many, it is the negative ones' spread by theirs.
    turned = binormal.placements(-scores[labels == 0], -scores[labels == 1])
    assert turned.likely_ratio(area) == pytest.approx(placed.likely_ratio(area))


@given(scored_tiles(columns=2))
def test_delongs_test_has_the_written_out_covariance(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    labels, first, second = data
    one, other = written_out_components(labels, first), written_out_components(labels, second)
    covariance = sum(np.cov(one[k], other[k]) / len(one[k]) for k in (0, 1))
    error = math.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0))
    comparison = stats.delong_test(labels, first, second)
    difference = one[0].mean() - other[0].mean()
    assert comparison.difference.estimate == pytest.approx(difference, abs=1e-12)
    if comparison.difference.low is None:
        assert error == pytest.approx(0, abs=1e-7)
    else:
        expected = 2 * scipy.stats.norm.sf(abs(difference) / error)
        assert comparison.p_value == pytest.approx(expected, rel=1e-6)
        bounds = scipy.stats.norm.interval(0.95, difference, error)
        found = comparison.difference.low, comparison.difference.high
        assert found == pytest.approx(bounds, abs=1e-7)


def test_exchanging_the_runs_turns_the_sign_and_keeps_the_p_value() -> None:
    rng = np.random.default_rng(0)
    labels, first = tiles(rng, positives=40, negatives=60, separation=1.0)
    second = first + rng.normal(size=100)
    groups = np.arange(100) % 20
    for test in (
        stats.delong_test,
        lambda *arguments: stats.bootstrap_test(*arguments, groups),
    ):
        there, back = test(labels, first, second), test(labels, second, first)
        assert there.difference.estimate == pytest.approx(-back.difference.estimate)
        assert there.difference.low == pytest.approx(-back.difference.high)
        assert there.p_value == pytest.approx(back.p_value)


@pytest.mark.parametrize("separation", [1.0, 3.0])
def test_delongs_interval_covers_the_true_auc(separation: float) -> None:
    truth = scipy.stats.norm.cdf(separation / math.sqrt(2))

    def simulate(rng: np.random.Generator) -> bool:
        data = tiles(rng, positives=80, negatives=120, separation=separation)
        return covers(stats.auc_interval(*data), truth)

    assert 0.92 <= share(simulate) <= 0.98


def test_delongs_test_of_two_equal_runs_finds_a_difference_in_one_of_twenty() -> None:
    def simulate(rng: np.random.Generator) -> bool:
        labels, common = tiles(rng, positives=80, negatives=120, separation=1.5)
        first, second = (common + 0.7 * rng.normal(size=200) for _ in range(2))
        return stats.delong_test(labels, first, second).p_value <= 0.05

    assert 0.02 <= share(simulate) <= 0.08


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
def test_a_perfect_auc_of_few_tiles_proves_little(labels: list[int]) -> None:
    interval = stats.auc_interval(labels, [1, 2, 3, 4, 5, 6, 7])
    assert interval.estimate in (0, 1)
    far = 1 - interval.low if interval.estimate == 1 else interval.high
    assert 0.4 < far < 0.5
    assert interval.estimate in (interval.low, interval.high)


@studies
@pytest.mark.parametrize(
    ("positives", "number_of_tiles"),
    [
        (15, 300),
        *(
            pytest.param(*own, marks=pytest.mark.soak)
            for own in ((3, 300), (30, 300), (150, 300), (14, 1424))
        ),
    ],
)
@pytest.mark.parametrize("area", [0.7, 0.9, 0.97, 0.995])
@pytest.mark.parametrize("spread", [1.0, 1.6, 0.6])
def test_the_interval_over_tiles_covers(
    area: float, positives: int, number_of_tiles: int, spread: float, number: int
) -> None:
    """Few positive tiles, an AUC near one, and scores that positive tiles spread otherwise."""
    separation = scipy.stats.norm.ppf(area) * math.sqrt(1 + spread**2)
    rng = np.random.default_rng(0)
    negatives = number_of_tiles - positives
    missed_low = missed_high = 0
    for _ in range(number):
        found = stats.auc_interval(
            *tiles(
                rng, positives=positives, negatives=negatives, separation=separation, spread=spread
            )
        )
        assert found.low is not None and found.high is not None
        missed_low += found.low > area
        missed_high += found.high < area
    covered = 1 - (missed_low + missed_high) / number
    wider = "" if spread == 1 else f", spread {spread}"
    case = f"AUC {area}, {positives} of {number_of_tiles} positive{wider}"
    record("AUC over tiles", case, covered, number)
    assert covered >= at_least(0.93, number)


# Bootstrap


@given(scored_tiles(), st.data())
def test_a_resample_has_the_auc_of_its_tiles_written_out(
    data: tuple[np.ndarray, np.ndarray], draws: st.DataObject
) -> None:
    labels, scores = data
    counts = draws.draw(hnp.arrays(np.intp, len(labels), elements=st.integers(0, 3)))
    counts[[0, 2]] += 1  # a tile of each class
    expected = stats.auc(np.repeat(labels, counts), np.repeat(scores, counts))
    found = bootstrap._aucs_of_counts(labels == 1, [scores], [np.arange(len(labels))])(counts)
    assert found == pytest.approx(expected)


def test_the_jackknife_over_tiles_is_about_the_score_interval() -> None:
    data = tiles(np.random.default_rng(0), positives=800, negatives=1200, separation=1.5)
    each = np.arange(len(data[0]))
    naive, delong = stats.auc_jackknife(*data, each), stats.auc_interval(*data)
    assert naive.estimate == delong.estimate
    assert naive.high - naive.low == pytest.approx(delong.high - delong.low, rel=0.1)


def test_copies_of_a_tile_on_its_slide_add_no_information() -> None:
    labels, scores = tiles(np.random.default_rng(0), positives=40, negatives=60, separation=1.0)
    once = stats.auc_jackknife(labels, scores, range(100))
    copied = stats.auc_jackknife(*(np.repeat(column, 5) for column in (labels, scores, range(100))))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=2e-3)


def test_the_jackknife_gives_the_same_interval_at_every_call_and_for_every_name_of_a_slide() -> (
    None
):
    labels, scores, groups = tiles_of_slides(
        np.random.default_rng(0), slides=20, separation=2.0, spread=0.5
    )
    names = np.array([f"slide {number:03}" for number in groups])
    interval = stats.auc_jackknife(labels, scores, groups)
    assert stats.auc_jackknife(labels, scores, names) == interval


@given(scored_tiles(), st.data())
def test_a_slide_is_left_out_as_written(
    data: tuple[np.ndarray, np.ndarray], draws: st.DataObject
) -> None:
    labels, scores = data
    groups = draws.draw(hnp.arrays(np.intp, len(labels), elements=st.integers(0, 3)))
    groups[:4] = [4, 5, 4, 5]
    units = np.unique(groups, return_inverse=True)[1]
    ordered, pairs = slides._pairs_without(labels == 1, scores, units)
    for unit in np.unique(units):
        kept = units != unit
        assert ordered[unit] / pairs[unit] == pytest.approx(stats.auc(labels[kept], scores[kept]))


@studies
@pytest.mark.parametrize("kind", ["equal", "lognormal", "pareto"])
@pytest.mark.parametrize("number_of_slides", [20, 50, pytest.param(100, marks=pytest.mark.soak)])
def test_the_interval_over_slides_covers(number_of_slides: int, kind: str, number: int) -> None:
    truth = scipy.stats.norm.cdf(3.0 / math.sqrt(2 + 2 * 0.6**2))
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(number):
        labels, scores, groups = tiles_of_slides(
            rng, slides=number_of_slides, separation=3.0, spread=0.6, kind=kind
        )
        covered += covers(stats.auc_jackknife(labels, scores, groups), truth)
    record("AUC over slides", f"{number_of_slides} {kind}", covered / number, number)
    assert covered / number >= at_least(0.93, number)


@studies
@pytest.mark.parametrize("n", [6, 10, 16])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_seed_noise_holds_two_new_runs(n: int, shared: float, number: int) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(number):
        common = shared**0.5 * rng.normal(size=n)
        first, second = (common + (1 - shared) ** 0.5 * rng.normal(size=n) for _ in range(2))
        held += abs(rng.normal() - rng.normal()) <= stats.seed_noise(first, second)
    record("seed noise", f"{n} seeds, arms share {shared:g}", held / number, number)
    assert held / number >= at_least(0.93, number)


def test_the_interval_over_slides_covers_where_the_one_over_tiles_does_not() -> None:
    truth = scipy.stats.norm.cdf(2.0 / math.sqrt(2 + 2 * 0.6**2))
    covered = {"slides": 0, "tiles": 0}
    rng = np.random.default_rng(0)
    for _ in range(SIMULATIONS):
        data = tiles_of_slides(rng, slides=30, separation=2.0, spread=0.6)
        covered["slides"] += covers(stats.auc_jackknife(*data), truth)
        covered["tiles"] += covers(stats.auc_interval(*data[:2]), truth)
    assert 0.92 <= covered["slides"] / SIMULATIONS <= 0.98
    assert covered["tiles"] / SIMULATIONS < 0.85


def test_two_equal_runs_on_slides_differ_in_one_of_twenty_over_slides_and_more_over_tiles() -> None:
    found = {"slides": 0, "tiles": 0}
    rng = np.random.default_rng(0)
    for _ in range(SIMULATIONS):
        labels, common, groups = tiles_of_slides(rng, slides=30, separation=2.0, spread=0.4)
        taste = 0.6 * rng.normal(size=(2, 30))
        first, second = common + taste[0, groups], common + taste[1, groups]
        over_slides = stats.bootstrap_test(labels, first, second, groups, resamples=200)
        found["slides"] += over_slides.p_value <= 0.05
        found["tiles"] += stats.delong_test(labels, first, second).p_value <= 0.05
    assert 0.02 <= found["slides"] / SIMULATIONS <= 0.08
    assert found["tiles"] / SIMULATIONS > 0.15


def test_the_test_over_slides_has_as_many_degrees_of_freedom_as_tumour_slides_allow() -> None:
    labels, first, groups = tiles_of_slides(
        np.random.default_rng(0), slides=9, separation=1.0, spread=0.5
    )
    second = first + np.random.default_rng(1).normal(size=len(first))
    comparison = stats.bootstrap_test(labels, first, second, groups)
    student = scipy.stats.t(len(np.unique(groups[labels == 1])) - 1)
    error = (comparison.difference.high - comparison.difference.estimate) / student.ppf(0.975)
    expected = 2 * student.sf(abs(comparison.difference.estimate) / error)
    assert comparison.p_value == pytest.approx(expected)


def test_perfect_scores_on_few_slides_prove_little() -> None:
    labels, groups = [0, 0, 1, 1] * 4, np.repeat(np.arange(4), 4)
    interval = stats.auc_jackknife(labels, labels, groups)
    assert interval.high == 1
    assert interval.low == pytest.approx(0.025 ** (1 / 2))  # two pairs share no slide


def test_one_slide_with_tumour_gives_no_interval_but_a_note() -> None:
    labels, scores = [0, 0, 0, 1, 0, 1], [1, 2, 3, 4, 5, 6]
    groups = [1, 1, 2, 3, 3, 3]
    interval = stats.auc_jackknife(labels, scores, groups)
    assert (interval.low, interval.high) == (None, None)
    assert "fewer than two slides" in interval.note
    comparison = stats.bootstrap_test(labels, scores, scores[::-1], groups)
    assert comparison.p_value is None
    assert "fewer than two slides" in comparison.difference.note


# Runs without variance


@pytest.mark.parametrize("test", [stats.delong_test, stats.bootstrap_test])
def test_runs_that_order_the_tiles_alike_do_not_differ(test: Callable[..., object]) -> None:
    labels, scores = tiles(np.random.default_rng(0), positives=8, negatives=8, separation=1.0)
    comparison = test(labels, scores, expit(scores))
    assert comparison.difference.estimate == 0
    assert comparison.difference.low is None and "no variance" in comparison.difference.note
    assert comparison.p_value == 1


@pytest.mark.parametrize("test", [stats.delong_test, stats.bootstrap_test])
def test_a_difference_without_variance_gets_no_p_value(test: Callable[..., object]) -> None:
    labels = [0, 0, 1, 1]
    comparison = test(labels, labels, [0, 0, 0, 0])
    assert comparison.difference.estimate == 0.5
    assert comparison.p_value is None


def test_a_single_positive_tile_gives_no_interval_but_a_note() -> None:
    interval = stats.auc_interval([0, 0, 1], [1, 3, 2])
    assert interval == Interval(0.5, None, None, interval.note)
    assert "fewer than two tiles" in interval.note
    assert stats.delong_test([0, 0, 1], [1, 3, 2], [1, 2, 3]).p_value is None


def test_an_interval_prints_its_bounds_or_its_note_and_is_plain_json() -> None:
    assert str(Interval(0.93, 0.9, 0.95)) == "0.9300 [0.9000, 0.9500]"
    assert str(Interval(0.93, None, None, "too few")) == "0.9300 (too few)"
    interval = stats.auc_interval([0, 1, 0, 1], [1, 2, 3, 4])
    assert json.loads(json.dumps(asdict(interval), allow_nan=False))["confidence"] == 0.95


# Pairs of seeds


def arms(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUCs of one arm run twice: seeds in common, and its own noise each time."""
    seed_effect = 0.9 + 0.02 * rng.normal(size=n)
    return seed_effect + 0.01 * rng.normal(size=n), seed_effect + 0.01 * rng.normal(size=n)


@pytest.mark.parametrize("n", [6, 10])
def test_an_arm_against_itself(n: int) -> None:
    """The interval covers and the p-value keeps its level."""
    rng = np.random.default_rng(0)
    results = [stats.paired_difference(*arms(rng, n)) for _ in range(SIMULATIONS)]
    found = np.mean([result.p_value <= 0.05 for result in results])
    covered = np.mean([covers(result.difference, 0) for result in results])
    assert found <= 0.08
    assert found >= 0.02 or n == 6  # 2 / 2**6 = 0.031 is the level that six seeds allow
    assert 0.92 <= covered <= 0.985


@given(hnp.arrays(float, st.integers(6, 11), elements=st.integers(-3, 6).map(float)))
def test_interval_and_p_value_of_paired_seeds_agree(differences: np.ndarray) -> None:
    result = stats.paired_difference(differences, np.zeros(len(differences)))
    if result.p_value is not None:
        excluded = not covers(result.difference, 0)
        assert excluded == (result.p_value <= 0.05)


@pytest.mark.parametrize("comparisons", [1, 4])
@pytest.mark.parametrize("n", [17, 20, 40])
def test_interval_and_p_value_agree_where_sign_flips_are_drawn(n: int, comparisons: int) -> None:
    """Differences whose p lies at the corrected 5 %, where two draws would answer differently."""
    rng = np.random.default_rng(0)
    edge = scipy.stats.t.ppf(1 - 0.025 / comparisons, n - 1) / np.sqrt(n)
    shown = []
    for _ in range(40):
        noise = rng.normal(size=n)
        noise = (noise - noise.mean()) / noise.std(ddof=1)
        differences = 0.01 * (noise + edge * rng.uniform(0.98, 1.02))
        result = stats.paired_difference(differences, np.zeros(n), comparisons=comparisons)
        assert result.is_shown == (not covers(result.difference, 0))
        shown.append(result.is_shown)
    assert 0 < sum(shown) < 40


def test_correction_is_bonferronis() -> None:
    """Eight seeds that agree: p is four times as large, the interval that of 98.75 %."""
    differences = 0.01 * np.arange(1, 9)
    one = stats.paired_difference(differences, np.zeros(8))
    four = stats.paired_difference(differences, np.zeros(8), comparisons=4)
    assert (one.p_value, four.p_value) == (2 / 2**8, 8 / 2**8)
    assert four.difference.confidence == pytest.approx(0.9875)
    assert four.difference.low < one.difference.low
    assert four.difference.high > one.difference.high
    assert four.difference.low == pytest.approx(0.01)
    assert stats.paired_difference(differences[:7], np.zeros(7), comparisons=4).p_value is None


@pytest.mark.parametrize(("comparisons", "needed"), [(1, 6), (2, 7), (3, 7), (4, 8), (10, 9)])
def test_fewest_seeds_are_those_whose_smallest_p_is_5_percent(
    comparisons: int, needed: int
) -> None:
    assert stats.min_seeds(comparisons) == needed
    assert comparisons * 2 / 2**needed <= 0.05 < comparisons * 2 / 2 ** (needed - 1)
    note = stats.paired_difference([0.9] * 5, [0.8] * 5, comparisons=comparisons).difference.note
    assert f"these are 5 of the {needed} seeds" in note


def test_the_sign_flip_p_value_counts_all_sign_vectors() -> None:
    differences = np.array([0.03, 0.01, -0.005, 0.02, 0.04, 0.015, 0.01])
    signs = 1 - 2 * (np.arange(2**7)[:, None] >> np.arange(7) & 1)
    sums = (signs * differences).sum(axis=1)
    expected = np.mean(np.abs(sums) >= differences.sum() - 1e-12)
    assert stats.paired_difference(differences, np.zeros(7)).p_value == pytest.approx(expected)


def test_six_seeds_that_agree_are_a_conclusion_with_an_interval_from_least_to_most() -> None:
    first, second = [0.91, 0.92, 0.93, 0.94, 0.95, 0.96], [0.90, 0.90, 0.90, 0.90, 0.90, 0.90]
    result = stats.paired_difference(first, second)
    assert (result.n, result.p_value) == (6, 2 / 2**6)
    assert (result.difference.low, result.difference.high) == pytest.approx((0.01, 0.06))
    assert result.difference.estimate == pytest.approx(0.035)
    assert result.sd == pytest.approx(np.std([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], ddof=1))
    assert stats.paired_difference(second, first).difference.low == pytest.approx(-0.06)
    assert stats.paired_difference(first, second) == result


@pytest.mark.parametrize("n", [17, 20, 70])
def test_many_seeds_get_about_students_interval(n: int) -> None:
    first, second = arms(np.random.default_rng(0), n)
    result = stats.paired_difference(first, second)
    student = scipy.stats.ttest_rel(first, second)
    bounds = student.confidence_interval(0.95)
    assert (result.difference.low, result.difference.high) == pytest.approx(bounds, abs=1e-3)
    assert result.p_value == pytest.approx(student.pvalue, abs=0.02)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_than_six_seeds_allow_no_conclusion(n: int) -> None:
    result = stats.paired_difference(np.linspace(0.91, 0.95, n), np.full(n, 0.9))
    assert (result.n, result.p_value) == (n, None)
    assert (result.sd is None) == (n == 1)
    assert result.difference.low is None
    assert f"these are {n} of the 6 seeds" in result.difference.note


@pytest.mark.parametrize("shift", [0.0, 0.01])
def test_seeds_without_effect_allow_no_conclusion(shift: float) -> None:
    first = np.array([0.91, 0.92, 0.93, 0.94, 0.95, 0.96])
    result = stats.paired_difference(first, first - shift)
    assert result.p_value is None
    assert "all differences are equal" in result.difference.note


# Calibration


def test_calibration_error_is_scikit_learns_curve_weighted_by_tiles() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(500)
    labels = rng.random(500) < probabilities
    shares, means = calibration_curve(labels, probabilities, n_bins=10)
    counts = np.histogram(probabilities, bins=10, range=(0, 1))[0]
    expected = np.average(np.abs(shares - means), weights=counts[counts > 0])
    assert stats.expected_calibration_error(labels, probabilities, bins=10) == pytest.approx(
        expected
    )


def test_calibration_error_is_nought_for_honest_certainty_and_one_for_wrong_certainty() -> None:
    assert stats.expected_calibration_error([0, 1, 1], [0.0, 1.0, 1.0]) == 0
    assert stats.expected_calibration_error([0, 1, 1], [1.0, 0.0, 0.0]) == 1


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_finds_how_much_too_sure_the_logits_are(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(scale=2, size=20_000)
    labels = rng.random(20_000) < expit(honest)
    found = stats.fit_temperature(labels, honest * true_temperature)
    assert found == pytest.approx(true_temperature, rel=0.05)


def test_temperature_lowers_the_log_loss_and_keeps_the_auc() -> None:
    labels, logits = tiles(np.random.default_rng(0), positives=400, negatives=600, separation=2.0)
    logits = 3 * logits
    calibrated = logits / stats.fit_temperature(labels, logits)
    assert stats.auc(labels, calibrated) == stats.auc(labels, logits)
    assert stats.log_loss(labels, expit(calibrated)) < stats.log_loss(labels, expit(logits))
    for factor in (0.99, 1.01):
        moved = expit(calibrated * factor)
        assert stats.log_loss(labels, expit(calibrated)) < stats.log_loss(labels, moved)


def test_temperature_stays_in_its_range_where_the_best_one_would_not() -> None:
    low, high = stats.TEMPERATURES
    assert stats.fit_temperature([0, 1], [-1, 1]) == pytest.approx(low, rel=1e-2)
    assert stats.fit_temperature([0, 1], [1, -1]) == pytest.approx(high, rel=1e-2)


# Thresholds


@given(scored_tiles(), st.floats(0, 1))
def test_a_confusion_matrix_is_scikit_learns(
    data: tuple[np.ndarray, np.ndarray], threshold: float
) -> None:
    labels, scores = data
    probabilities = expit(scores.astype(float))
    counts = stats.confusion(labels, probabilities, threshold)
    called = probabilities > threshold
    (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(labels, called, labels=[0, 1])
    assert counts == stats.Confusion(threshold, tp, fp, tn, fn)
    assert counts.f1 == pytest.approx(sklearn.metrics.f1_score(labels, called, zero_division=0))
    assert counts.sensitivity.estimate == sklearn.metrics.recall_score(labels, called)
    assert counts.specificity.estimate == sklearn.metrics.recall_score(~(labels == 1), ~called)
    assert counts.accuracy.estimate == stats.accuracy(labels, probabilities, threshold)
    if called.any():
        precision = sklearn.metrics.precision_score(labels, called)
        assert counts.precision.estimate == pytest.approx(precision)
    else:
        assert math.isnan(counts.precision.estimate)
        assert counts.precision.note == "there are none"


@given(scored_tiles())
def test_no_threshold_has_a_larger_sum_of_sensitivity_and_specificity(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, scores = data
    probabilities = expit(scores.astype(float))

    def youden(threshold: float) -> float:
        counts = stats.confusion(labels, probabilities, threshold)
        return counts.sensitivity.estimate + counts.specificity.estimate - 1

    found = youden(stats.best_threshold(labels, probabilities))
    assert found == pytest.approx(max(0, *map(youden, probabilities)))


def test_the_best_threshold_lies_between_its_neighbours() -> None:
    assert stats.best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.7]) == pytest.approx(0.4)
    assert stats.best_threshold([0, 0, 1, 1], [0.9, 0.8, 0.2, 0.1]) == 0.9
    near = np.nextafter(0.3, 1)
    assert stats.best_threshold([0, 1], [0.3, near]) == 0.3
    assert stats.confusion([0, 1], [0.3, near], 0.3).accuracy.estimate == 1


# Faults


def over_slides(labels: list[int], scores: list[float]) -> Interval:
    return stats.auc_jackknife(labels, scores, labels)


OF_SCORES = [stats.auc, stats.auc_interval, over_slides, stats.fit_temperature]
OF_PROBABILITIES = [stats.accuracy, stats.log_loss, stats.expected_calibration_error]


@pytest.mark.parametrize("metric", [*OF_SCORES, *OF_PROBABILITIES, stats.summary])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "no tiles to score"),
        ([0, 1, 1], [0.1, 0.2], r"shape \(3,\) and predictions of shape \(2,\)"),
        ([[0], [1]], [[0.1], [0.2]], "give one label and one prediction per tile"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "label 2 at position 2 is neither 0 nor 1"),
        ([0, 1, 1], [0.1, math.nan, 0.3], "prediction nan at position 1 is not a finite number"),
        ([0, 1, 1], [0.1, 0.2, math.inf], "prediction inf at position 2"),
    ],
)
def test_unusable_predictions_are_refused_with_their_position(
    metric: Callable[..., object], labels: list[int], scores: list[float], message: str
) -> None:
    with pytest.raises(KitError, match=message):
        metric(labels, scores)


@pytest.mark.parametrize("metric", [*OF_SCORES, stats.summary])
@pytest.mark.parametrize(("label", "name"), [(0, "negative"), (1, "positive")])
def test_one_class_is_refused_where_both_are_needed(
    metric: Callable[..., object], label: int, name: str
) -> None:
    with pytest.raises(KitError, match=f"all 3 tiles are {name}"):
        metric([label] * 3, [0.1, 0.2, 0.3])


@pytest.mark.parametrize("metric", OF_PROBABILITIES)
def test_logits_are_refused_where_probabilities_are_needed(metric: Callable[..., object]) -> None:
    with pytest.raises(KitError, match=r"prediction 3\.2 at position 1 is no probability"):
        metric([0, 1], [0.1, 3.2])


def test_groups_of_another_length_are_refused() -> None:
    with pytest.raises(KitError, match="4 tiles but groups of shape"):
        stats.auc_jackknife([0, 1, 0, 1], [1, 2, 3, 4], [1, 2])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], [], "cannot be paired"),
        ([0.9, 0.8], [0.9], "2 and 1 runs cannot be paired by seed"),
        ([0.9, 0.8], [0.9, math.nan], "the metric is nan for pair 1"),
    ],
)
def test_arms_that_do_not_pair_are_refused(
    first: list[float], second: list[float], message: str
) -> None:
    with pytest.raises(KitError, match=message):
        stats.paired_difference(first, second)


def test_the_logit_of_a_mean_is_the_formula_and_does_not_saturate() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 50))
    for weights in (None, [0.1, 0.2, 0.3, 0.4]):
        mean = np.average(1 / (1 + np.exp(-logits)), axis=0, weights=weights)
        expected = np.log(mean / (1 - mean))
        np.testing.assert_allclose(stats.logit_of_mean(logits, weights), expected, rtol=1e-9)
    for one in (-800.0, -40.0, 40.0, 800.0):
        assert stats.logit_of_mean([[one], [one]]) == pytest.approx([one])


# Several runs' holdouts together


def unequal_holdouts(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return labels, two scores, slides and holdouts of 90, 50 and 5 % positive tiles.

    Each run is shifted by an amount of its own, as two trainings are.
    """
    within = np.repeat([0, 1, 2], 300)
    labels = (rng.random(900) < np.array([0.9, 0.5, 0.05])[within]).astype(int)
    shared = 2.2 * labels + rng.normal(size=900)
    first, second = (shared + noise * rng.normal(size=900) - 4.0 * within for noise in (0.1, 1.0))
    return labels, first, second, np.arange(900) // 15, within


@pytest.mark.parametrize("by_slide", [False, True])
def test_tiles_of_different_runs_are_not_compared(by_slide: bool) -> None:
    labels, first, second, slides, within = unequal_holdouts(np.random.default_rng(0))
    groups = slides if by_slide else None
    test = stats.bootstrap_test(labels, first, second, groups, within=within)
    aucs, pairs = [], []
    for part in range(3):
        rows = within == part
        aucs.append(stats.auc(labels[rows], first[rows]) - stats.auc(labels[rows], second[rows]))
        pairs.append(labels[rows].sum() * (1 - labels[rows]).sum())
    assert test.difference.estimate == pytest.approx(np.average(aucs, weights=pairs))
    assert test.p_value is not None and test.p_value < 0.01
    scaled = stats.bootstrap_test(labels, first + 50 * within, second, groups, within=within)
    assert scaled == test
    one = stats.bootstrap_test(labels, first, second, groups, within=np.zeros(900))
    assert one == stats.bootstrap_test(labels, first, second, groups)


def test_a_holdout_of_one_class_has_no_pairs_to_order() -> None:
    labels, first, second, *_ = unequal_holdouts(np.random.default_rng(0))
    kept = labels[:300] == 1
    both = stats.bootstrap_test(labels[300:600], first[300:600], second[300:600])
    rows = np.append(np.flatnonzero(kept), np.arange(300, 600))
    test = stats.bootstrap_test(labels[rows], first[rows], second[rows], within=rows >= 300)
    assert test.difference.estimate == pytest.approx(both.difference.estimate)
    with pytest.raises(KitError, match="no holdout has tiles of both classes"):
        stats.bootstrap_test(labels[rows], first[rows], second[rows], within=labels[rows])
