"""AUC, accuracy and log loss of predictions."""

import numpy as np
import numpy.typing as npt

from kit.base import Floats
from kit.stats import checks

# A prediction of exactly 0 or 1 is a float32 sigmoid that ran out of digits.
_SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the area under the ROC curve.

    It is the chance that a positive tile is scored above a negative one, ties counting half
    (Mann and Whitney's U over the number of pairs).

    Parameters
    ----------
    labels
        0 or 1, one per tile.
    scores
        Probabilities, logits, or anything else that grows with them. Logits are safer:
        float32 probabilities near 1 run together.

    Raises
    ------
    KitError
        If there are no tiles, only one class, a length that differs, or a score that is not
        a number.
    """
    positive, scores = checks.both_classes(labels, scores)
    # Looking up sorted values is three times as fast.
    return float(share_below(np.sort(scores[positive]), scores[~positive]).mean())


def accuracy(labels: npt.ArrayLike, probabilities: npt.ArrayLike, threshold: float = 0.5) -> float:
    """Return the share of tiles on their own side; above `threshold` is positive, as in Keras.

    Raises
    ------
    KitError
        As `auc`, but one class is enough; also if a probability is outside [0, 1].
    """
    positive, probabilities = checks.probable(labels, probabilities)
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
    positive, probabilities = checks.probable(labels, probabilities)
    of_true_class = np.where(positive, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(of_true_class, _SMALLEST_PROBABILITY)).mean())


def summary(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> dict[str, float]:
    """Return `auc`, `accuracy` and `log_loss` by name; a few milliseconds for 66,000 tiles."""
    return {
        "auc": auc(labels, probabilities),
        "accuracy": accuracy(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
    }


def share_below(values: Floats, reference: Floats) -> Floats:
    reference = np.sort(reference)
    smaller = np.searchsorted(reference, values, side="left")
    not_larger = np.searchsorted(reference, values, side="right")
    return (smaller + not_larger) / (2 * len(reference))
