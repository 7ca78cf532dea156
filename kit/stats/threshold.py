"""Probabilities at a threshold: the confusion matrix, and the figures that follow from it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from kit.stats import checks
from kit.stats.intervals import CONFIDENCE, Interval


@dataclass(frozen=True)
class Confusion:
    """How many tiles of each class were called positive, and how many negative.

    A tile is called positive if its probability is above the threshold.
    """

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def sensitivity(self) -> Interval:
        """The share of positive tiles called positive; also called recall."""
        return share_interval(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> Interval:
        """The share of negative tiles called negative."""
        return share_interval(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def precision(self) -> Interval:
        """The share of tiles called positive that are positive."""
        return share_interval(self.true_positives, self.true_positives + self.false_positives)

    @property
    def accuracy(self) -> Interval:
        """The share of tiles called what they are."""
        right = self.true_positives + self.true_negatives
        return share_interval(right, right + self.false_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and sensitivity, 2 tp / (2 tp + fp + fn)."""
        found = 2 * self.true_positives
        return found / (found + self.false_positives + self.false_negatives)


def confusion(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float = 0.5
) -> Confusion:
    """Count the tiles of both classes on either side of a threshold.

    Raises
    ------
    KitError
        As `auc`; also if a probability is outside [0, 1].
    """
    checks.probable(labels, probabilities)
    positive, probabilities = checks.both_classes(labels, probabilities)
    called = probabilities > threshold
    return Confusion(
        threshold,
        true_positives=int(np.count_nonzero(called & positive)),
        false_positives=int(np.count_nonzero(called & ~positive)),
        true_negatives=int(np.count_nonzero(~called & ~positive)),
        false_negatives=int(np.count_nonzero(~called & positive)),
    )


def best_threshold(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Return the threshold of the largest sum of sensitivity and specificity (Youden's J).

    It lies halfway between two neighbouring probabilities. Figures at it are optimistic on the
    tiles that it was chosen on. Where none is better than chance nothing is called positive.

    Raises
    ------
    KitError
        As `confusion`.

    References
    ----------
    Youden, Cancer 3 (1950) 32-35.
    """
    checks.probable(labels, probabilities)
    positive, probabilities = checks.both_classes(labels, probabilities)
    values, place = np.unique(probabilities, return_inverse=True)
    positives = np.bincount(place[positive], minlength=len(values))
    negatives = np.bincount(place[~positive], minlength=len(values))
    # Of each value: the sensitivity and specificity - 1 where all smaller ones are negative.
    found = 1 - (np.cumsum(positives) - positives) / positives.sum()
    spared = (np.cumsum(negatives) - negatives) / negatives.sum() - 1
    best = int(np.argmax(found + spared))
    if found[best] + spared[best] <= 0:
        return float(values[-1])
    below, above = float(values[best - 1]), float(values[best])
    middle = (below + above) / 2
    return middle if middle < above else below


def share_interval(successes: int, number: int) -> Interval:
    """Return a share with Wilson's interval, which takes the tiles as independent.

    References
    ----------
    Wilson, Journal of the American Statistical Association 22 (1927) 209-212.
    """
    if not number:
        return Interval(float("nan"), None, None, "there are none")
    found = binomtest(successes, number).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / number, float(found.low), float(found.high))
