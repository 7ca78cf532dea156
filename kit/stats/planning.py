"""What a study can show: how often it shows a difference, and how many seeds that takes."""

import numpy as np
from scipy import stats

from kit.base import Floats, Indices, KitError
from kit.stats.intervals import CONFIDENCE
from kit.stats.paired import min_seeds

POWER = 0.8
"""The share of studies that should show a difference that is there."""
_MOST_SEEDS = 1000
_QUANTILES = 100


def power(
    size: float,
    sd: float,
    seeds: int,
    *,
    held_out_to_trained: float = 0.0,
    comparisons: int = 1,
) -> float:
    """Return the share of studies of so many seeds that show a difference of a size.

    It is that of the t test at 5 % (Bonferroni's for several comparisons), with which the sign-flip
    test agrees nearly; 0 for fewer than `min_seeds`. Of new data a test over tiles must show the
    difference as well (`intersection_union`), which is taken to know the error; where seeds vary by
    more than their tiles, that test is less strict, and the power a little higher.

    Parameters
    ----------
    size
        Of the mean difference, above 0.
    sd
        Standard deviation of the differences of two arms over the seeds.
    held_out_to_trained
        As in `resampled_difference`, to speak of new data; 0 for these tiles.

    Raises
    ------
    KitError
        If the size is not above 0.
    """
    if seeds < max(2, min_seeds(comparisons)):
        return 0.0
    counts = np.array([seeds])
    return float(_shares(size, sd, counts, held_out_to_trained, comparisons)[0])


def seeds_needed(
    size: float,
    sd: float,
    *,
    held_out_to_trained: float = 0.0,
    comparisons: int = 1,
    power: float = POWER,
) -> int | None:
    """Return how many seeds would show a difference with a given power, at least `min_seeds`.

    Parameters
    ----------
    size, sd, held_out_to_trained
        As for `power`, which says what is meant.

    Returns
    -------
    int or None
        None where no number of seeds would, up to 1,000.

    Raises
    ------
    KitError
        If the size is not above 0.
    """
    counts = np.arange(max(2, min_seeds(comparisons)), _MOST_SEEDS + 1)
    enough = counts[_shares(size, sd, counts, held_out_to_trained, comparisons) >= power]
    return int(enough[0]) if len(enough) else None


def _shares(
    size: float, sd: float, counts: Indices, held_out_to_trained: float, comparisons: int
) -> Floats:
    """Return the power of each number of seeds."""
    if not size > 0:
        raise KitError(f"a difference of {size:g} cannot be planned for: give one above 0")
    level = (1 - CONFIDENCE) / comparisons
    error = max(sd, np.finfo(float).tiny) * np.sqrt(1 / counts + held_out_to_trained)
    edge, freedom = stats.t.ppf(1 - level / 2, counts - 1), counts - 1
    # From here on the normal distribution is the same, and the other one overflows.
    off = np.minimum(size / error, 1e3)
    if not held_out_to_trained:
        return np.asarray(stats.nct.sf(edge, freedom, off))
    # The mean over what the seeds' spread may be found to be.
    quantiles = (np.arange(_QUANTILES)[:, None] + 0.5) / _QUANTILES
    found = np.sqrt(stats.chi2.ppf(quantiles, freedom) / freedom)
    both = np.maximum(edge * found, stats.norm.ppf(1 - level / 2))
    return np.asarray(stats.norm.sf(both - off).mean(axis=0))


def sd_bound(sd: float, n: int) -> float:
    """Return the upper bound of the 95 % interval of a normal standard deviation from n values."""
    return sd * float(np.sqrt((n - 1) / stats.chi2.ppf((1 - CONFIDENCE) / 2, n - 1)))
