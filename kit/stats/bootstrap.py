"""The AUC on tiles of other slides: bootstraps over tiles or whole slides."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from kit.base import Bools, Floats, Indices, KitError
from kit.stats import checks
from kit.stats.intervals import (
    TOO_FEW,
    UPPER_QUANTILE,
    Comparison,
    Interval,
    compare,
    on_logit_scale,
    separated_interval,
)
from kit.stats.scores import auc


def auc_bootstrap(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
) -> Interval:
    """Return the AUC with a bootstrap interval over tiles, or over the slides in `groups`.

    Whole slides are drawn with replacement, so the interval speaks of new slides; over tiles
    it speaks of more tiles of the same slides and is usually much narrower. Its width is the
    standard deviation of the resampled AUCs on the logit scale times Student's quantile with
    one degree of freedom less than there are slides of the scarcer class. Resamples that
    lack a class are drawn again. The draws are the same at every call.

    Parameters
    ----------
    labels
        0 or 1, one per tile.
    scores
        As in `auc`.
    groups
        The slide of each tile; each tile by itself if None.
    resamples
        Number of bootstrap samples.

    Raises
    ------
    KitError
        As `auc`; or if `groups` has another length.

    Notes
    -----
    Simulated coverage of the nominal 95 %, with slides of 20 to 40 tiles, half of them without
    a positive one: 96 to 98 % with 10 slides, 93 to 96 % with 20 to 100. The percentile and
    BCa intervals of the same resamples cover 81 to 88 % with 10 slides and 87 to 91 % with 20;
    an interval over tiles covers 55 to 80 %, whatever the number of slides.
    """
    positive, scores = checks.both_classes(labels, scores)
    units = _units(positive, groups)
    area = auc(positive, scores)
    smaller = _smaller_class(positive, units)
    if smaller < 2:
        return Interval(area, None, None, TOO_FEW.format(_unit_name(groups)))
    if area in (0, 1):
        return separated_interval(area, min(smaller, (units.max() + 1) // 2))
    pairs = positive.sum() * (~positive).sum()
    areas = _resampled_aucs(positive, [scores], units, resamples)[:, 0]
    # Half a pair more on either side keeps a resample without a misordered pair finite.
    logits = np.log((areas * pairs + 0.5) / ((1 - areas) * pairs + 0.5))
    centre = np.log((area * pairs + 0.5) / ((1 - area) * pairs + 0.5))
    margin = stats.t.ppf(UPPER_QUANTILE, smaller - 1) * logits.std(ddof=1)
    return on_logit_scale(area, centre, margin)


def bootstrap_test(
    labels: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    resamples: int = 1000,
) -> Comparison:
    """Compare the AUCs of two runs on the same tiles by a bootstrap over tiles or slides.

    Both runs see the same resamples. Interval and p-value come from the resampled
    differences' standard deviation and Student's distribution, with the degrees of freedom
    of `auc_bootstrap`.

    Parameters
    ----------
    labels
        0 or 1, one per tile.
    first, second
        Scores of the two runs, as in `auc`.
    groups
        The slide of each tile; each tile by itself if None.
    resamples
        Number of bootstrap samples.

    Raises
    ------
    KitError
        As `auc_bootstrap`.

    Notes
    -----
    Of two equal runs, simulated as in `auc_bootstrap`, it finds a difference at 5 % in about
    1 % of cases with 10 slides, 1 to 4 % with 20, and 4 to 5 % with 100.
    """
    positive, first = checks.both_classes(labels, first)
    _, second = checks.both_classes(labels, second)
    units = _units(positive, groups)
    difference = auc(positive, first) - auc(positive, second)
    smaller = _smaller_class(positive, units)
    if smaller < 2:
        note = TOO_FEW.format(_unit_name(groups))
        return Comparison(Interval(difference, None, None, note), None)
    areas = _resampled_aucs(positive, [first, second], units, resamples)
    error = float((areas[:, 0] - areas[:, 1]).std(ddof=1))
    return compare(difference, error, stats.t(smaller - 1))


def _units(positive: Bools, groups: npt.ArrayLike | None) -> Indices:
    """Return for each tile the number of the unit that is resampled: its slide, or itself."""
    if groups is None:
        return np.arange(len(positive))
    groups = np.asarray(groups)
    if groups.shape != positive.shape:
        raise KitError(
            f"{len(positive)} tiles but groups of shape {groups.shape}: give one slide per tile"
        )
    return np.unique(groups, return_inverse=True)[1]


def _unit_name(groups: npt.ArrayLike | None) -> str:
    return "tiles" if groups is None else "slides"


def _smaller_class(positive: Bools, units: Indices) -> int:
    """Return how many units hold the class that fewer units hold."""
    return min(len(np.unique(units[positive])), len(np.unique(units[~positive])))


def _resampled_aucs(
    positive: Bools, columns: Sequence[Floats], units: Indices, resamples: int
) -> Floats:
    """Return the AUC of every column of scores on every resample: (resamples, columns)."""
    aucs = [_auc_of_counts(positive, scores) for scores in columns]
    resampled = itertools.islice(_tile_counts(positive, units), resamples)
    return np.array([[auc_of(counts) for auc_of in aucs] for counts in resampled])


def _tile_counts(positive: Bools, units: Indices) -> Iterator[Indices]:
    """Yield without end how often each tile stands in a resample with both classes."""
    rng = np.random.default_rng(0)
    number = units.max() + 1
    with_positive, with_negative = np.unique(units[positive]), np.unique(units[~positive])
    while True:
        counts = np.bincount(rng.integers(number, size=number), minlength=number)
        if counts[with_positive].any() and counts[with_negative].any():
            yield counts[units]


def _auc_of_counts(positive: Bools, scores: Floats) -> Callable[[Indices], float]:
    """Return the function from how often each tile stands there to the AUC; it sorts once."""
    order = np.argsort(scores)
    positives, negatives = order[positive[order]], order[~positive[order]]
    smaller = np.searchsorted(scores[negatives], scores[positives], side="left")
    not_larger = np.searchsorted(scores[negatives], scores[positives], side="right")

    def auc_of(counts: Indices) -> float:
        below = np.append(0, np.cumsum(counts[negatives]))
        weights = counts[positives]
        twice = weights @ (below[smaller] + below[not_larger])
        return float(twice / (2 * weights.sum() * below[-1]))

    return auc_of
