"""Several comparisons at once: corrected p-values, and how many seeds a difference would take."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from kit.base import KitError
from kit.stats.intervals import CONFIDENCE
from kit.stats.paired import min_seeds

POWER = 0.8
"""The share of studies that should show a difference that is there."""
_MOST_SEEDS = 1000


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values of one family, corrected so that any is falsely at most 5 % in 5 % of cases.

    The smallest of m is multiplied by m, the next by m - 1, and so on, and none is smaller than
    one before it. It never shows less than Bonferroni's correction, and needs no independence.

    References
    ----------
    Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    found = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(found, kind="stable")
    times = np.arange(len(found), 0, -1)
    corrected = np.empty_like(found)
    corrected[order] = np.minimum(1, np.maximum.accumulate(times * found[order]))
    return [float(value) for value in corrected]


def seeds_needed(
    size: float,
    sd: float,
    *,
    held_out_to_trained: float = 0.0,
    comparisons: int = 1,
    power: float = POWER,
) -> int | None:
    """Return how many seeds would show a difference with a given power.

    It is that of the t test at 5 % (Bonferroni's for several comparisons), with which the sign-flip
    test agrees nearly, and never fewer than `min_seeds`.

    Parameters
    ----------
    size
        Of the mean difference, above 0.
    sd
        Standard deviation of the differences of two arms over the seeds.
    held_out_to_trained
        As in `resampled_difference`, to speak of new data; 0 for these tiles.

    Returns
    -------
    int or None
        None where no number of seeds would, up to 1,000.

    Raises
    ------
    KitError
        If the size is not above 0.
    """
    if not size > 0:
        raise KitError(f"a difference of {size:g} cannot be planned for: give one above 0")
    level = (1 - CONFIDENCE) / comparisons
    counts = np.arange(max(2, min_seeds(comparisons)), _MOST_SEEDS + 1)
    error = max(sd, np.finfo(float).tiny) * np.sqrt(1 / counts + held_out_to_trained)
    edge = stats.t.ppf(1 - level / 2, counts - 1)
    # From here on the normal distribution is the same, and the other one overflows.
    off = np.minimum(size / error, 1e3)
    enough = counts[stats.nct.sf(edge, counts - 1, off) >= power]
    return int(enough[0]) if len(enough) else None


def sd_bound(sd: float, n: int) -> float:
    """Return the upper bound of the 95 % interval of a normal standard deviation from n values."""
    return sd * float(np.sqrt((n - 1) / stats.chi2.ppf((1 - CONFIDENCE) / 2, n - 1)))
