"""Whether probabilities mean what they say."""

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy.special import log_expit, logsumexp

from kit.base import Floats
from kit.stats import checks

TEMPERATURES = (0.05, 20.0)
"""Range in which `fit_temperature` searches."""


def expected_calibration_error(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = 15
) -> float:
    """Return the mean distance between the share of positives and the mean prediction.

    Parameters
    ----------
    labels
        0 or 1, one per tile.
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
    positive, probabilities = checks.probable(labels, probabilities)
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    bin_of_tile = np.searchsorted(inner_edges, probabilities)
    return float(np.abs(np.bincount(bin_of_tile, positive - probabilities)).sum() / len(positive))


def fit_temperature(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
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
    positive, logits = checks.both_classes(labels, logits)
    margins = np.where(positive, logits, -logits)
    fit = optimize.minimize_scalar(
        lambda log_t: np.logaddexp(0, -margins * np.exp(-log_t)).mean(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(fit.x))


def logit_of_mean(logits: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
    """Return the logit of the mean probability along the first axis.

    It is log(sum(w * p)) - log(sum(w * (1 - p))) of probabilities p and weights w. A probability
    that would round to 0 or 1 loses nothing.

    Parameters
    ----------
    logits
        Of the probabilities, such as (runs, tiles).
    weights
        One for each of the first axis, none negative; equal ones by default.
    """
    logits = np.asarray(logits, np.float64)
    if weights is not None:
        weights = np.asarray(weights, np.float64).reshape(-1, *[1] * (logits.ndim - 1))
    of_positive, of_negative = (
        logsumexp(log_expit(side), axis=0, b=weights) for side in (logits, -logits)
    )
    mean: Floats = of_positive - of_negative
    return mean
