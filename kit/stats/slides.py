"""The AUC on tiles of other slides: a jackknife that leaves out one slide at a time.

Its interval keeps 94 to 96 % in simulations with 20 to 100 slides of equal, lognormal or Pareto
sizes (docs/statistics.md). With Student's quantile a bootstrap of the same slides covers 92 to
98 %, a bootstrap-t 87 to 95 %, an interval over tiles 22 to 80 %.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

from kit.base import Bools, Floats, Indices, KitError
from kit.stats import checks
from kit.stats.intervals import (
    TOO_FEW,
    UPPER_QUANTILE,
    Interval,
    components,
    on_logit_scale,
    separated_interval,
)
from kit.stats.scores import auc


def auc_jackknife(labels: npt.ArrayLike, scores: npt.ArrayLike, slides: npt.ArrayLike) -> Interval:
    """Return the AUC with an interval for tiles of other slides.

    With l the logit of the AUC and l_i that without slide i of k, the variance of l is
    (k - 1) / k times the sum of (l_i - l)^2. The interval takes Student's quantile with the degrees
    of freedom of `freedom_of_squares`, which few large slides lower, and at most one less than
    there are slides of the scarcer class. An AUC of exactly 0 or 1 has the bound of Clopper and
    Pearson for as many pairs as share no slide.

    Parameters
    ----------
    labels
        0 or 1, one per tile.
    scores
        As in `auc`.
    slides
        The slide of each tile.

    Raises
    ------
    KitError
        As `auc`; or if `slides` has another length.

    References
    ----------
    Efron and Stein, Annals of Statistics 9 (1981) 586-596: on average it is not too small.
    """
    positive, scores = checks.both_classes(labels, scores)
    units = units_of(positive, slides)
    area = auc(positive, scores)
    smaller = smaller_class(positive, units)
    if smaller < 2:
        return Interval(area, None, None, TOO_FEW.format("slides"))
    if area in (0, 1):
        return separated_interval(area, min(smaller, (units.max() + 1) // 2))
    ordered, pairs = _pairs_without(positive, scores, units)
    # Half a pair more on either side keeps a slide without a misordered pair finite.
    logits = np.log((ordered + 0.5) / (pairs - ordered + 0.5))
    every = float(positive.sum() * (~positive).sum())
    centre = np.log((area * every + 0.5) / ((1 - area) * every + 0.5))
    number = len(logits)
    error = np.sqrt((number - 1) / number * np.square(logits - centre).sum())
    freedom = min(smaller - 1, freedom_of_squares(logits - centre))
    return on_logit_scale(area, centre, stats.t.ppf(UPPER_QUANTILE, freedom) * error)


def freedom_of_squares(contributions: Floats) -> float:
    """Return the degrees of freedom of a variance that is the sum of squared contributions.

    Satterthwaite's for squares of unequal variance v_i, each with one degree of freedom, are
    (sum v_i)^2 / (sum v_i^2); with normal contributions c_i the square of v_i is c_i^4 / 3 on
    average. So equal slides give nearly their number, and one that outweighs all others gives 3.

    References
    ----------
    Satterthwaite, Biometrics Bulletin 2 (1946) 110-114; of contributions, as here: Lipsitz,
    Ibrahim and Parzen, Journal of the Royal Statistical Society D 48 (1999) 495-506.
    """
    squares = np.square(contributions)
    fourth = float(np.square(squares).sum())
    return 3 * float(squares.sum()) ** 2 / fourth if fourth else float(len(squares))


def _pairs_without(positive: Bools, scores: Floats, units: Indices) -> tuple[Floats, Floats]:
    """Return, without each slide, the pairs that are ordered rightly and all pairs.

    A pair is of a positive and a negative tile; ties count half.
    """
    above, below = components(positive, scores)
    positives, negatives = (
        np.bincount(units[side], minlength=units.max() + 1) for side in (positive, ~positive)
    )
    count = units.max() + 1
    lost = np.bincount(units[positive], above, count) * len(below)
    lost += np.bincount(units[~positive], below, count) * len(above)
    for unit in np.flatnonzero((positives > 0) & (negatives > 0)):
        # Pairs within the slide were taken away twice.
        own = units == unit
        lost[unit] -= auc(positive[own], scores[own]) * positives[unit] * negatives[unit]
    pairs = (len(above) - positives) * (len(below) - negatives)
    return above.sum() * len(below) - lost, pairs.astype(float)


def units_of(positive: Bools, groups: npt.ArrayLike | None) -> Indices:
    """Return for each tile the number of the unit that is resampled: its slide, or itself."""
    if groups is None:
        return np.arange(len(positive))
    groups = np.asarray(groups)
    if groups.shape != positive.shape:
        raise KitError(
            f"{len(positive)} tiles but groups of shape {groups.shape}: give one slide per tile"
        )
    return np.unique(groups, return_inverse=True)[1]


def smaller_class(positive: Bools, units: Indices) -> int:
    """Return how many units hold the class that fewer units hold."""
    return min(len(np.unique(units[positive])), len(np.unique(units[~positive])))
