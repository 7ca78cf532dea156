"""The AUC on tiles of other slides: bootstraps over tiles or whole slides.

Simulated with slides of 20 to 40 tiles, half of them without a positive one. The nominal 95 % of
`auc_bootstrap` covers 96 to 98 % with 10 slides, 93 to 96 % with 20 to 100. The percentile and BCa
intervals of the same resamples cover 81 to 88 % with 10 slides and 87 to 91 % with 20; an interval
over tiles covers 55 to 80 %, whatever the number of slides. Of two equal runs `bootstrap_test`
finds a difference at 5 % in about 1 % of cases with 10 slides, 1 to 4 % with 20, 4 to 5 % with 100.
"""

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
    parts = _parts(positive, None)
    counts = itertools.islice(_tile_counts(positive, units, parts), resamples)
    area_of = _aucs_of_counts(positive, [scores], parts)
    areas = np.array([area_of(times)[0] for times in counts])
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
    within: npt.ArrayLike | None = None,
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
    within
        Where the tiles are those of several pairs of runs: the pair of each tile. An AUC is then
        the share of the pairs of a positive and a negative tile that are ordered rightly, among
        pairs within one run: scores of different runs do not compare, and holdouts differ in
        their share of positive tiles.
    resamples
        Number of bootstrap samples.

    Raises
    ------
    KitError
        As `auc_bootstrap`; or if no part of `within` holds both classes.
    """
    positive, first = checks.both_classes(labels, first)
    _, second = checks.both_classes(labels, second)
    units, parts = _units(positive, groups), _parts(positive, within)
    areas = _aucs_of_counts(positive, [first, second], parts)
    one, other = areas(np.ones(len(positive), np.int64))
    difference = float(one - other)
    smaller = _smaller_class(positive, units)
    if smaller < 2:
        note = TOO_FEW.format(_unit_name(groups))
        return Comparison(Interval(difference, None, None, note), None)
    counts = itertools.islice(_tile_counts(positive, units, parts), resamples)
    resampled = np.array([areas(times) for times in counts])
    error = float((resampled[:, 0] - resampled[:, 1]).std(ddof=1))
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


def _parts(positive: Bools, within: npt.ArrayLike | None) -> list[Indices]:
    """Return the rows of each part whose tiles are compared with each other, both classes in it."""
    if within is None:
        return [np.arange(len(positive))]
    numbers = np.unique(np.asarray(within), return_inverse=True)[1]
    parts = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
    parts = [rows for rows in parts if 0 < np.count_nonzero(positive[rows]) < len(rows)]
    if not parts:
        raise KitError("no holdout has tiles of both classes, and an AUC needs both")
    return parts


def _tile_counts(positive: Bools, units: Indices, parts: Sequence[Indices]) -> Iterator[Indices]:
    """Yield without end how often each tile is in a resample, with both classes in some part."""
    rng = np.random.default_rng(0)
    number = units.max() + 1
    holders = [
        (np.unique(units[rows[positive[rows]]]), np.unique(units[rows[~positive[rows]]]))
        for rows in parts
    ]
    while True:
        counts = np.bincount(rng.integers(number, size=number), minlength=number)
        if any(counts[first].any() and counts[second].any() for first, second in holders):
            yield counts[units]


def _aucs_of_counts(
    positive: Bools, columns: Sequence[Floats], parts: Sequence[Indices]
) -> Callable[[Indices], Floats]:
    """Return the function from how often each tile counts to each column's AUC within the parts."""
    sorted_parts = [
        [_pairs_of_counts(positive, scores, rows) for rows in parts] for scores in columns
    ]

    def aucs_of(counts: Indices) -> Floats:
        sums = [np.sum([pairs_of(counts) for pairs_of in own], axis=0) for own in sorted_parts]
        return np.array([ordered / pairs for ordered, pairs in sums])

    return aucs_of


def _pairs_of_counts(
    positive: Bools, scores: Floats, rows: Indices
) -> Callable[[Indices], tuple[float, float]]:
    """Return the function from how often each tile counts to the pairs ordered rightly, and all.

    A pair is of a positive and a negative tile of `rows`; ties count half. It sorts once.
    """
    order = rows[np.argsort(scores[rows])]
    positives, negatives = order[positive[order]], order[~positive[order]]
    smaller = np.searchsorted(scores[negatives], scores[positives], side="left")
    not_larger = np.searchsorted(scores[negatives], scores[positives], side="right")

    def pairs_of(counts: Indices) -> tuple[float, float]:
        below = np.append(0, np.cumsum(counts[negatives]))
        weights = counts[positives]
        ordered = weights @ (below[smaller] + below[not_larger]) / 2
        return float(ordered), float(weights.sum() * below[-1])

    return pairs_of
