"""Several comparisons at once: corrected p-values, and the best of several without its luck."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kit.base import Floats
from kit.stats.intervals import ROUNDING
from kit.stats.paired import paired_values


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


def shrunk_gains(
    arms: Sequence[npt.ArrayLike], control: npt.ArrayLike, held_out_to_trained: float
) -> Floats:
    """Return the mean gains of several recipes over one, drawn to each other.

    The largest of several is too large on average, the more so the less they differ. With V the
    variance of the mean gains, and W what it would be of recipes that are alike (the mean variance
    of a gain less the mean covariance of two, both as `resampled_difference` takes them), each
    keeps the share max(0, 1 - W / V) of its distance from the gains' mean.

    Parameters
    ----------
    arms, control
        One value per seed each, in the same order of seeds, two or more. One recipe alone keeps its
        gain.
    held_out_to_trained
        As in `resampled_difference`.

    References
    ----------
    Morris, Journal of the American Statistical Association 78 (1983) 47-55; Efron and Morris, ibid.
    70 (1975) 311-319.
    """
    differences = np.array([paired_values(one, control) for one in arms])
    gains: Floats = differences.mean(axis=1)
    number, seeds = differences.shape
    spread = float(gains.var(ddof=1)) if number > 1 else 0.0
    if spread < ROUNDING**2:
        return gains
    covariance = np.cov(differences) * (1 / seeds + held_out_to_trained)
    apart = ~np.eye(number, dtype=bool)
    alike = float(np.diag(covariance).mean() - covariance[apart].mean())
    kept = max(0.0, 1 - alike / spread)
    shrunk: Floats = gains.mean() + kept * (gains - gains.mean())
    return shrunk


def repicked_gain(arms: Sequence[npt.ArrayLike], control: npt.ArrayLike) -> Floats:
    """Return for each seed the gain of the recipe that the other seeds pick as the best.

    The best of several looks better than it is on the seeds that picked it. On a seed that had no
    part in picking, the gain is as large as that of picking by one seed fewer is on average; so it
    is judged like any other difference paired by seed. It speaks of the pool of tiles that all
    seeds share as far as the test does that it is given to.

    Parameters
    ----------
    arms, control
        As for `shrunk_gains`.

    References
    ----------
    Varma and Simon, BMC Bioinformatics 7 (2006) 91: choosing within, judging without.
    """
    differences = np.array([paired_values(one, control) for one in arms])
    of_others = differences.sum(axis=1, keepdims=True) - differences
    seeds = np.arange(differences.shape[1])
    gains: Floats = differences[of_others.argmax(axis=0), seeds]
    return gains
