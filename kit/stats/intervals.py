"""Intervals, and the AUC on other tiles of the same slides (DeLong)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats
from scipy.special import expit

from kit.base import Bools, Floats
from kit.stats import checks
from kit.stats.binormal import Placements, placements
from kit.stats.scores import share_below

CONFIDENCE = 0.95
UPPER_QUANTILE = (1 + CONFIDENCE) / 2
# Far below what one pair of tiles in the wrong order does to an AUC.
ROUNDING = 1e-12
TOO_FEW = "fewer than two {} hold one of the classes, so nothing says how far they vary"


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
    """A first run or recipe less a second on the same tiles.

    Attributes
    ----------
    p_value
        Two-sided, for no difference, corrected for the number of comparisons; None where the data
        allow none (see `difference.note`).
    """

    difference: Interval
    p_value: float | None

    @property
    def is_shown(self) -> bool:
        """Whether the test shows a difference: p is at most 5 %, and so the interval lacks 0."""
        return self.p_value is not None and self.p_value <= 1 - CONFIDENCE


def auc_interval(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Interval:
    """Return the AUC with a score interval over tiles.

    It holds every AUC t that lies within 1.96 sqrt(k v(t)) of what was seen. v(t) is the variance
    that an AUC of t has with normal scores, which is known where few tiles of a class, or few pairs
    in the wrong order, say little; positive tiles may spread half to twice as widely as negative
    ones, and v takes the most likely spread for t. k is DeLong's variance relative to v, at least
    1. Simulated in docs/statistics.md.

    It treats the tiles as independent. Those of one slide are not, so for new slides it is
    too narrow: see `auc_jackknife`.

    Raises
    ------
    KitError
        As `auc`.

    References
    ----------
    The score interval: Newcombe, Statistics in Medicine 25 (2006) 559-573, method 5, there with
    exponential scores. The spread: `Placements.likely_ratio`. DeLong, DeLong and Clarke-Pearson,
    Biometrics 44 (1988) 837-845; computed from sorted scores in O(n log n), as in Sun and Xu, IEEE
    Signal Processing Letters 21 (2014) 1389-1393.
    """
    positive, scores = checks.both_classes(labels, scores)
    of_tiles = components(positive, scores)
    area = float(of_tiles[0].mean())
    if min(map(len, of_tiles)) < 2:
        return Interval(area, None, None, TOO_FEW.format("tiles"))
    placed = placements(scores[positive], scores[~positive])
    expected = placed.variance(area)
    factor = max(1.0, _variance(*of_tiles) / expected) if expected else 1.0
    low, high = _score_bounds(area, placed, factor)
    return Interval(area, low, high)


def _score_bounds(area: float, placed: Placements, factor: float) -> tuple[float, float]:
    """Return the least and the largest AUC that a score test does not reject."""
    quantile = float(stats.norm.ppf(UPPER_QUANTILE))

    def distance(other: float) -> float:
        return abs(other - area) - quantile * float(np.sqrt(factor * placed.variance(other)))

    # At the very ends there is no variance, and so no test.
    start = min(max(area, ROUNDING), 1 - ROUNDING)
    low = optimize.brentq(distance, ROUNDING, start) if distance(ROUNDING) > 0 else 0.0
    high = optimize.brentq(distance, start, 1 - ROUNDING) if distance(1 - ROUNDING) > 0 else 1.0
    return float(low), float(high)


def delong_test(labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> Comparison:
    """Compare the AUCs of two runs on the same tiles by DeLong's test for correlated curves.

    It asks whether these two sets of weights differ on such tiles, which are taken as
    independent; another seed could give another answer.

    Parameters
    ----------
    labels
        0 or 1, one per tile.
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
    one = components(*checks.both_classes(labels, first))
    other = components(*checks.both_classes(labels, second))
    positives, negatives = one[0] - other[0], one[1] - other[1]
    difference = float(positives.mean())
    if min(len(positives), len(negatives)) < 2:
        return Comparison(Interval(difference, None, None, TOO_FEW.format("tiles")), None)
    error = float(np.sqrt(_variance(positives, negatives)))
    return compare(difference, error, stats.norm)


def on_logit_scale(area: float, centre: float, margin: float) -> Interval:
    return Interval(area, float(expit(centre - margin)), float(expit(centre + margin)))


def separated_interval(area: float, pairs: int) -> Interval:
    """Return the interval of an AUC of 0 or 1 from the number of independent pairs."""
    bounds = stats.binomtest(int(area * pairs), int(pairs)).proportion_ci(CONFIDENCE)
    return Interval(area, float(bounds.low), float(bounds.high))


def compare(
    difference: float, error: float, distribution: Any, *, level: float = 1 - CONFIDENCE
) -> Comparison:
    """Return the interval and p-value of a difference from its standard error.

    A level below 5 % is Bonferroni's for several comparisons, and corrects p as well.
    """
    # Of two equal areas, added up in different orders.
    difference = 0.0 if abs(difference) < ROUNDING else difference
    if error < ROUNDING:
        note = "the difference has no variance on these tiles, so it has no interval"
        p_value = None if difference else 1.0
        return Comparison(Interval(difference, None, None, note, 1 - level), p_value)
    margin = float(distribution.ppf(1 - level / 2)) * error
    p_value = float(2 * distribution.sf(abs(difference) / error)) * (1 - CONFIDENCE) / level
    interval = Interval(difference, difference - margin, difference + margin, "", 1 - level)
    return Comparison(interval, min(1.0, p_value))


def components(positive: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """Return DeLong's structural components of the positive and of the negative tiles.

    A tile's component is the share of the other class that it is ordered rightly with, ties
    counting half. The mean of either is the AUC.
    """
    above, below = scores[positive], scores[~positive]
    return share_below(above, below), 1 - share_below(below, above)


def _variance(positives: Floats, negatives: Floats) -> float:
    """Return the variance of a mean from its structural components of both classes."""
    return float(positives.var(ddof=1) / len(positives) + negatives.var(ddof=1) / len(negatives))
