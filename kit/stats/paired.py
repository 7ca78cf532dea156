"""Whether one recipe beats another, however it is seeded: differences paired by seed."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from kit.base import Floats, KitError
from kit.stats import checks
from kit.stats.intervals import CONFIDENCE, ROUNDING, Interval

MIN_SEEDS = 6
"""Fewest pairs that allow a conclusion: a two-sided sign-flip test cannot give less than
2 / 2**n, which is 0.063 for five pairs and 0.031 for six."""

_SIGN_FLIPS = 2**16


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


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> PairedDifference:
    """Compare two arms by a metric of runs that are paired by seed.

    The verdict should rest on `p_value` and on `difference`, which agree: the interval holds
    every shift of the second arm that the sign-flip test does not reject at 5 %. Both are
    exact for up to 16 pairs, whatever the distribution, if the differences scatter
    symmetrically. With six pairs the interval runs from the smallest to the largest.

    Parameters
    ----------
    first, second
        One value per seed, in the same order of seeds.

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


def _differences(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise KitError(
            f"{one.size} and {other.size} runs cannot be paired by seed: give both arms the same"
            " seeds, at least one"
        )
    message = "the metric is {} for pair {}: see whether that run diverged, and run it again"
    checks.refuse(~np.isfinite(one), one, message)
    checks.refuse(~np.isfinite(other), other, message)
    return one - other


def _no_conclusion(differences: Floats) -> str:
    """Return why paired differences allow no conclusion; empty if they do."""
    n = len(differences)
    if n < MIN_SEEDS:
        return (
            f"no conclusion is possible from {n} of the {MIN_SEEDS} seeds that it takes: even if"
            f" all agree, a sign-flip test cannot give less than {2 / 2**n:.2g}"
        )
    if np.ptp(differences) < ROUNDING:
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
