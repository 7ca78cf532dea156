"""AUC, accuracy, log loss and calibration of predictions; intervals; paired comparisons.

Three questions, three kinds of interval. How well would *these weights* do on other tiles
of the same slides: `auc_interval`, `delong_test`. On tiles of other slides: `auc_bootstrap`
and `bootstrap_test` with the slides given as groups. Does one *recipe* beat another, however
it is seeded: `paired_difference`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats
from scipy.special import expit

from kit.base.errors import KitError

CONFIDENCE = 0.95
MIN_SEEDS = 6
"""Fewest pairs that allow a conclusion: a two-sided sign-flip test cannot give less than
2 / 2**n, which is 0.063 for five pairs and 0.031 for six."""
TEMPERATURES = (0.05, 20.0)
"""Range in which `temperature` searches."""

_UPPER_QUANTILE = (1 + CONFIDENCE) / 2
# A prediction of exactly 0 or 1 is a float32 sigmoid that ran out of digits.
_SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)
# Far below what one pair of tiles in the wrong order does to an AUC.
_ROUNDING = 1e-12
_SIGN_FLIPS = 2**16
_TOO_FEW = "fewer than two {} hold one of the classes, so nothing says how far they vary"

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    Attributes
    ----------
    low, high
        The bounds; None where the data allow none, and then `note` says why.
    note
        Why there are no bounds; empty otherwise.
    """

    estimate: float
    low: float | None
    high: float | None
    note: str = ""
    confidence: float = CONFIDENCE

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.estimate:.4f} ({self.note})"
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Comparison:
    """The AUC of a first run less that of a second on the same tiles.

    Attributes
    ----------
    p_value
        Two-sided, for no difference; None where the data allow none (see `difference.note`).
    """

    difference: Interval
    p_value: float | None


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a first arm less that of a second, paired by seed.

    Attributes
    ----------
    n
        Number of pairs.
    sd
        Standard deviation of the differences; None for one pair.
    difference
        The mean difference and the interval that the verdict should rest on: the one that
        goes with `p_value`.
    bca
        The BCa bootstrap interval, which is too narrow for few seeds.
    p_value
        Of the two-sided sign-flip test; None where no conclusion is possible.
    """

    n: int
    sd: float | None
    difference: Interval
    bca: Interval
    p_value: float | None


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the area under the ROC curve.

    It is the chance that a positive tile is scored above a negative one, ties counting half
    (Mann and Whitney's U over the number of pairs).

    Parameters
    ----------
    labels
        0 or 1, one a tile.
    scores
        Probabilities, logits, or anything else that grows with them. Logits are safer:
        float32 probabilities near 1 run together.

    Raises
    ------
    KitError
        If there are no tiles, only one class, a length that differs, or a score that is not
        a number.
    """
    positive, scores = _both_classes(labels, scores)
    # Looking up sorted values is three times as fast.
    return float(_share_below(np.sort(scores[positive]), scores[~positive]).mean())


def accuracy(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float = 0.5) -> float:
    """Return the share of tiles on their own side; above `threshold` is positive, as in Keras.

    Raises
    ------
    KitError
        As `auc`, but one class is enough; also if a probability is outside [0, 1].
    """
    positive, probabilities = _probabilities(labels, probabilities)
    return float(np.mean((probabilities > threshold) == positive))


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Return the mean negative log-likelihood of the labels in nats.

    The probability of the true class is taken as at least 1.2e-7, the resolution of float32,
    so that one tile costs 15.9 at most.

    Raises
    ------
    KitError
        As `accuracy`.
    """
    positive, probabilities = _probabilities(labels, probabilities)
    of_true_class = np.where(positive, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(of_true_class, _SMALLEST_PROBABILITY)).mean())


def summary(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, float]:
    """Return `auc`, `accuracy` and `log_loss` by name; a few milliseconds for 66,000 tiles."""
    return {
        "auc": auc(labels, probabilities),
        "accuracy": accuracy(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
    }


def auc_interval(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Interval:
    """Return the AUC with DeLong's interval, taken on the logit scale so that it stays in [0, 1].

    It treats the tiles as independent. Those of one slide are not, so for new slides it is
    too narrow: see `auc_bootstrap`. An AUC of exactly 0 or 1 has no variance to estimate; its
    bound is Clopper and Pearson's for as many pairs as share no tile.

    Raises
    ------
    KitError
        As `auc`.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845; computed from sorted
    scores in O(n log n), as in Sun and Xu, IEEE Signal Processing Letters 21 (2014) 1389-1393.
    """
    positive, scores = _both_classes(labels, scores)
    components = _components(positive, scores)
    area = float(components[0].mean())
    smaller = min(map(len, components))
    if smaller < 2:
        return Interval(area, None, None, _TOO_FEW.format("tiles"))
    if area in (0, 1):
        return _separated(area, smaller)
    error = np.sqrt(_variance(*components)) / (area * (1 - area))
    margin = stats.norm.ppf(_UPPER_QUANTILE) * error
    return _on_logit_scale(area, np.log(area / (1 - area)), margin)


def delong_test(labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> Comparison:
    """Compare the AUCs of two runs on the same tiles by DeLong's test for correlated curves.

    It asks whether these two sets of weights differ on such tiles, which are taken as
    independent; another seed could give another answer.

    Parameters
    ----------
    labels
        0 or 1, one a tile.
    first, second
        Scores of the two runs, as in `auc`.

    Raises
    ------
    KitError
        As `auc`.

    References
    ----------
    As in `auc_interval`.
    """
    one = _components(*_both_classes(labels, first))
    other = _components(*_both_classes(labels, second))
    positives, negatives = one[0] - other[0], one[1] - other[1]
    difference = float(positives.mean())
    if min(len(positives), len(negatives)) < 2:
        return Comparison(Interval(difference, None, None, _TOO_FEW.format("tiles")), None)
    error = float(np.sqrt(_variance(positives, negatives)))
    return _comparison(difference, error, stats.norm)


def auc_bootstrap(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
) -> Interval:
    """Return the AUC with a bootstrap interval over tiles, or over the slides in `groups`.

    Whole slides are drawn with replacement, so the interval speaks of new slides; over tiles
    it speaks of more tiles of the same slides and is usually much narrower. Its width is the
    standard deviation of the resampled AUCs on the logit scale times Student's quantile with
    one degree of freedom less than there are slides of the scarcer class. Resamples that
    lack a class are drawn again. The draws are the same at every call.

    Parameters
    ----------
    labels
        0 or 1, one a tile.
    scores
        As in `auc`.
    groups
        The slide of each tile; each tile by itself if None.
    resamples
        Number of bootstrap samples.

    Raises
    ------
    KitError
        As `auc`; or if `groups` has another length.

    Notes
    -----
    Simulated coverage of the nominal 95 %, with slides of 20 to 40 tiles, half of them without
    a positive one: 96 to 98 % with 10 slides, 93 to 96 % with 20 to 100. The percentile and
    BCa intervals of the same resamples cover 81 to 88 % with 10 slides and 87 to 91 % with 20;
    an interval over tiles covers 55 to 80 %, whatever the number of slides.
    """
    positive, scores = _both_classes(labels, scores)
    units = _units(positive, groups)
    area = auc(positive, scores)
    smaller = _smaller_class(positive, units)
    if smaller < 2:
        return Interval(area, None, None, _TOO_FEW.format(_unit_name(groups)))
    if area in (0, 1):
        return _separated(area, min(smaller, (units.max() + 1) // 2))
    pairs = positive.sum() * (~positive).sum()
    areas = _resampled_aucs(positive, [scores], units, resamples)[:, 0]
    # Half a pair more on either side keeps a resample without a misordered pair finite.
    logits = np.log((areas * pairs + 0.5) / ((1 - areas) * pairs + 0.5))
    centre = np.log((area * pairs + 0.5) / ((1 - area) * pairs + 0.5))
    margin = stats.t.ppf(_UPPER_QUANTILE, smaller - 1) * logits.std(ddof=1)
    return _on_logit_scale(area, centre, margin)


def bootstrap_test(
    labels: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
) -> Comparison:
    """Compare the AUCs of two runs on the same tiles by a bootstrap over tiles or slides.

    Both runs see the same resamples. Interval and p-value come from the resampled
    differences' standard deviation and Student's distribution, with the degrees of freedom
    of `auc_bootstrap`.

    Parameters
    ----------
    labels
        0 or 1, one a tile.
    first, second
        Scores of the two runs, as in `auc`.
    groups
        The slide of each tile; each tile by itself if None.
    resamples
        Number of bootstrap samples.

    Raises
    ------
    KitError
        As `auc_bootstrap`.

    Notes
    -----
    Of two equal runs, simulated as in `auc_bootstrap`, it finds a difference at 5 % in about
    1 % of cases with 10 slides, 1 to 4 % with 20, and 4 to 5 % with 100.
    """
    positive, first = _both_classes(labels, first)
    _, second = _both_classes(labels, second)
    units = _units(positive, groups)
    difference = auc(positive, first) - auc(positive, second)
    smaller = _smaller_class(positive, units)
    if smaller < 2:
        note = _TOO_FEW.format(_unit_name(groups))
        return Comparison(Interval(difference, None, None, note), None)
    areas = _resampled_aucs(positive, [first, second], units, resamples)
    error = float((areas[:, 0] - areas[:, 1]).std(ddof=1))
    return _comparison(difference, error, stats.t(smaller - 1))


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> PairedDifference:
    """Compare two arms by a metric of runs that are paired by seed.

    The verdict should rest on `p_value` and on `difference`, which agree: the interval holds
    every shift of the second arm that the sign-flip test does not reject at 5 %. Both are
    exact for up to 16 pairs, whatever the distribution, if the differences scatter
    symmetrically. With six pairs the interval runs from the smallest to the largest.

    Parameters
    ----------
    first, second
        One value a seed, in the same order of seeds.

    Returns
    -------
    PairedDifference
        Without bounds and p-value if there are fewer than `MIN_SEEDS` pairs, or if all
        differences are equal; the notes say so.

    Raises
    ------
    KitError
        If there are no pairs, the lengths differ, or a value is not a number.

    Notes
    -----
    Simulated coverage of the nominal 95 % with 6, 10 and 20 pairs of normal differences: this
    interval 97, 95 and 94 %, BCa 86, 91 and 91 %. Of skewed (exponential) differences: this
    interval 92, 91 and 91 %, BCa 82, 88 and 90 %.

    References
    ----------
    Hartigan, Journal of the American Statistical Association 64 (1969) 1303-1317: the bounds
    are quantiles of the means of all subsets.
    """
    differences = _differences(first, second)
    n, mean = len(differences), float(differences.mean())
    sd = float(differences.std(ddof=1)) if n > 1 else None
    note = _no_conclusion(differences)
    if note:
        unknown = Interval(mean, None, None, note)
        return PairedDifference(n, sd, unknown, unknown, None)
    bootstrap = stats.bootstrap(
        (differences,), np.mean, confidence_level=CONFIDENCE, method="BCa", rng=0
    )
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_SIGN_FLIPS,
        rng=0,
    )
    low, high = bootstrap.confidence_interval
    bca = Interval(mean, float(low), float(high))
    return PairedDifference(n, sd, _sign_flip_interval(differences), bca, float(test.pvalue))


def expected_calibration_error(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = 15
) -> float:
    """Return the mean distance between the share of positives and the mean prediction.

    Parameters
    ----------
    labels
        0 or 1, one a tile.
    probabilities
        Of the positive class, in [0, 1].
    bins
        Number of bins of equal width; each counts by its tiles.

    Raises
    ------
    KitError
        As `accuracy`.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017, equation 3; there with
    the confidence in the predicted class, here with the probability of the positive one.
    """
    positive, probabilities = _probabilities(labels, probabilities)
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    bin_of_tile = np.searchsorted(inner_edges, probabilities)
    return float(np.abs(np.bincount(bin_of_tile, positive - probabilities)).sum() / len(positive))


def temperature(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Return the temperature T for which sigmoid(logits / T) has the least log loss.

    Fit it on the holdout; above 1 the network was too sure of itself. The order of the tiles
    stays, so the AUC does. The search stays within `TEMPERATURES`: separated classes ask for
    0 and get the lower end, logits that order the tiles the wrong way get the upper one.

    Raises
    ------
    KitError
        As `auc`.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017, section 4.2.
    """
    positive, logits = _both_classes(labels, logits)
    margins = np.where(positive, logits, -logits)
    fit = optimize.minimize_scalar(
        lambda log_t: np.logaddexp(0, -margins * np.exp(-log_t)).mean(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(fit.x))


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Return which tiles are positive, and the scores."""
    given, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if given.ndim != 1 or given.shape != scores.shape:
        raise KitError(
            f"labels of shape {given.shape} and predictions of shape {scores.shape} do not"
            " match: give one label and one prediction a tile"
        )
    if not len(given):
        raise KitError("there are no tiles to score: the holdout is empty, make a larger one")
    _refuse((given != 0) & (given != 1), given, "label {} at position {} is neither 0 nor 1")
    message = (
        "prediction {} at position {} is not a finite number, as when training has diverged: try"
        " a smaller --lr, or --precision fp32"
    )
    _refuse(~np.isfinite(scores), scores, message)
    return given == 1, scores


def _refuse(wrong: Bools, values: npt.NDArray[np.generic], message: str) -> None:
    if wrong.any():
        position = int(wrong.argmax())
        raise KitError(message.format(values[position], position))


def _both_classes(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Return which tiles are positive, and the scores; insist on tiles of both classes."""
    positive, scores = _checked(labels, scores)
    if positive.all() or not positive.any():
        raise KitError(
            f"all {len(positive)} tiles are {'positive' if positive[0] else 'negative'}, and an"
            " AUC needs both classes: make a larger or a stratified holdout"
        )
    return positive, scores


def _probabilities(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Return which tiles are positive, and the probabilities; insist on [0, 1]."""
    positive, probabilities = _checked(labels, probabilities)
    message = "prediction {} at position {} is no probability: apply the sigmoid to logits first"
    _refuse((probabilities < 0) | (probabilities > 1), probabilities, message)
    return positive, probabilities


def _components(positive: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """Return DeLong's structural components of the positive and of the negative tiles.

    A tile's component is the share of the other class that it is ordered rightly with, ties
    counting half. The mean of either is the AUC.
    """
    above, below = scores[positive], scores[~positive]
    return _share_below(above, below), 1 - _share_below(below, above)


def _share_below(values: Floats, reference: Floats) -> Floats:
    reference = np.sort(reference)
    smaller = np.searchsorted(reference, values, side="left")
    not_larger = np.searchsorted(reference, values, side="right")
    return (smaller + not_larger) / (2 * len(reference))


def _variance(positives: Floats, negatives: Floats) -> float:
    """Return the variance of a mean from its structural components of both classes."""
    return float(positives.var(ddof=1) / len(positives) + negatives.var(ddof=1) / len(negatives))


def _on_logit_scale(area: float, centre: float, margin: float) -> Interval:
    return Interval(area, float(expit(centre - margin)), float(expit(centre + margin)))


def _separated(area: float, pairs: int) -> Interval:
    """Return the interval of an AUC of 0 or 1 from the number of independent pairs."""
    bounds = stats.binomtest(int(area * pairs), int(pairs)).proportion_ci(CONFIDENCE)
    return Interval(area, float(bounds.low), float(bounds.high))


def _comparison(difference: float, error: float, distribution: Any) -> Comparison:
    """Return the interval and p-value of a difference from its standard error."""
    if error < _ROUNDING:
        note = "the difference has no variance on these tiles, so it has no interval"
        p_value = 1.0 if abs(difference) < _ROUNDING else None
        return Comparison(Interval(difference, None, None, note), p_value)
    margin = float(distribution.ppf(_UPPER_QUANTILE)) * error
    p_value = float(2 * distribution.sf(abs(difference) / error))
    return Comparison(Interval(difference, difference - margin, difference + margin), p_value)


def _units(positive: Bools, groups: npt.ArrayLike | None) -> Ints:
    """Return for each tile the number of the unit that is resampled: its slide, or itself."""
    if groups is None:
        return np.arange(len(positive))
    groups = np.asarray(groups)
    if groups.shape != positive.shape:
        raise KitError(
            f"{len(positive)} tiles but groups of shape {groups.shape}: give one slide a tile"
        )
    return np.unique(groups, return_inverse=True)[1]


def _unit_name(groups: npt.ArrayLike | None) -> str:
    return "tiles" if groups is None else "slides"


def _smaller_class(positive: Bools, units: Ints) -> int:
    """Return how many units hold the class that fewer units hold."""
    return min(len(np.unique(units[positive])), len(np.unique(units[~positive])))


def _resampled_aucs(
    positive: Bools, columns: Sequence[Floats], units: Ints, resamples: int
) -> Floats:
    """Return the AUC of every column of scores on every resample: (resamples, columns)."""
    aucs = [_auc_of_counts(positive, scores) for scores in columns]
    resampled = itertools.islice(_tile_counts(positive, units), resamples)
    return np.array([[auc_of(counts) for auc_of in aucs] for counts in resampled])


def _tile_counts(positive: Bools, units: Ints) -> Iterator[Ints]:
    """Yield without end how often each tile stands in a resample with both classes."""
    rng = np.random.default_rng(0)
    number = units.max() + 1
    with_positive, with_negative = np.unique(units[positive]), np.unique(units[~positive])
    while True:
        counts = np.bincount(rng.integers(number, size=number), minlength=number)
        if counts[with_positive].any() and counts[with_negative].any():
            yield counts[units]


def _auc_of_counts(positive: Bools, scores: Floats) -> Callable[[Ints], float]:
    """Return the function from how often each tile stands there to the AUC; it sorts once."""
    order = np.argsort(scores)
    positives, negatives = order[positive[order]], order[~positive[order]]
    smaller = np.searchsorted(scores[negatives], scores[positives], side="left")
    not_larger = np.searchsorted(scores[negatives], scores[positives], side="right")

    def auc_of(counts: Ints) -> float:
        below = np.append(0, np.cumsum(counts[negatives]))
        weights = counts[positives]
        twice = weights @ (below[smaller] + below[not_larger])
        return float(twice / (2 * weights.sum() * below[-1]))

    return auc_of


def _differences(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise KitError(
            f"{one.size} and {other.size} runs cannot be paired by seed: give both arms the same"
            " seeds, at least one"
        )
    message = "the metric is {} for pair {}: see whether that run diverged, and run it again"
    _refuse(~np.isfinite(one), one, message)
    _refuse(~np.isfinite(other), other, message)
    return one - other


def _no_conclusion(differences: Floats) -> str:
    """Return why paired differences allow no conclusion; empty if they do."""
    n = len(differences)
    if n < MIN_SEEDS:
        return (
            f"no conclusion is possible from {n} of the {MIN_SEEDS} seeds that it takes: even if"
            f" all agree, a sign-flip test cannot give less than {2 / 2**n:.2g}"
        )
    if np.ptp(differences) < _ROUNDING:
        return "no conclusion is possible: all differences are equal, as if the seeds had no effect"
    return ""


def _sign_flip_interval(differences: Floats) -> Interval:
    """Return the shifts that the two-sided sign-flip test of the mean does not reject.

    Flipping the signs of a subset raises the sum just if that subset's mean is negative. So
    the p-value of a shift is twice the share of subsets, the empty one among them, whose mean
    lies beyond it, and the bounds are order statistics of those means.
    """
    n = len(differences)
    if 2**n <= _SIGN_FLIPS:
        subsets = np.arange(1, 2**n)[:, np.newaxis] >> np.arange(n) & 1
    else:
        subsets = np.random.default_rng(0).integers(2, size=(_SIGN_FLIPS, n))
        subsets = subsets[subsets.any(axis=1)]
    means = np.sort(subsets @ differences / subsets.sum(axis=1))
    beyond = math.floor((1 - CONFIDENCE) / 2 * (len(means) + 1))
    return Interval(float(differences.mean()), float(means[beyond - 1]), float(means[-beyond]))
