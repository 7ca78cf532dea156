"""Intervals, and the AUC on other tiles of the same slides (DeLong)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit

from kit.base import Bools, Floats
from kit.stats import checks
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
    positive, scores = checks.both_classes(labels, scores)
    of_tiles = components(positive, scores)
    area = float(of_tiles[0].mean())
    smaller = min(map(len, of_tiles))
    if smaller < 2:
        return Interval(area, None, None, TOO_FEW.format("tiles"))
    if area in (0, 1):
        return separated_interval(area, smaller)
    error = np.sqrt(_variance(*of_tiles)) / (area * (1 - area))
    margin = stats.norm.ppf(UPPER_QUANTILE) * error
    return on_logit_scale(area, np.log(area / (1 - area)), margin)


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
    if error < ROUNDING:
        note = "the difference has no variance on these tiles, so it has no interval"
        p_value = 1.0 if abs(difference) < ROUNDING else None
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
