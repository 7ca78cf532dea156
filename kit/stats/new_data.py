"""Whether one recipe beats another on tiles or slides that no run has met.

Runs of several seeds share the tiles that they are judged on, so what these tiles have in common
does not average out with more seeds. All tests add it to the error.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from kit.base import Floats, KitError
from kit.stats.intervals import CONFIDENCE, TOO_FEW, Comparison, Interval, compare
from kit.stats.paired import min_seeds, paired_values
from kit.stats.shares import Holdout, mean_covariance, scarcer_units, unit_shares
from kit.stats.slides import freedom_of_squares


def resampled_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    held_out_to_trained: float,
    *,
    comparisons: int = 1,
) -> Comparison:
    """Compare two recipes on new data, where each seed splits one pool again.

    The corrected resampled t test of J differences d with variance s² takes
    s² (1/J + n2/n1) as the variance of their mean, with J - 1 degrees of freedom. Without
    n2/n1 it would shrink with the seeds to nothing, though the pool stays one sample. It takes
    the differences of two seeds to be correlated by the share that is held out, n2/(n1 + n2),
    which is too little where rules depend on what they are trained on: see `intersection_union`.

    Parameters
    ----------
    first, second
        One value per seed, in the same order of seeds.
    held_out_to_trained
        n2/n1: held-out units per unit trained on, units being what is split, tiles or slides.
    comparisons
        As in `paired_difference`.

    Raises
    ------
    KitError
        As `paired_difference`.

    References
    ----------
    Nadeau and Bengio, Machine Learning 52 (2003) 239-281, section 3, statistic 5.
    """
    differences = paired_values(first, second)
    n, mean = len(differences), float(differences.mean())
    level = (1 - CONFIDENCE) / comparisons
    if n < min_seeds(comparisons):
        return _too_few_seeds(mean, n, comparisons)
    error = _resampled_error(differences, held_out_to_trained)
    return compare(mean, error, stats.t(n - 1), level=level)


def runs_difference(holdouts: Sequence[Holdout], *, comparisons: int = 1) -> Comparison:
    """Compare the runs of two recipes, as they were trained, on new tiles or slides.

    The variance of the mean difference of all seeds is the sum over units of the square of what
    each moves it by (DeLong's components), whatever the number of seeds that hold it out. It knows
    nothing of other trainings; but it is a sum over all units, and so better known than a variance
    over a few seeds. Degrees of freedom are those of `freedom_of_squares`.

    Parameters
    ----------
    holdouts
        One per seed, or per part of a cross-validation.
    comparisons
        As in `paired_difference`.

    Raises
    ------
    KitError
        As `auc`.

    References
    ----------
    LeDell, Petersen and van der Laan, Electronic Journal of Statistics 9 (2015) 1583-1607: the
    influence curve of a cross-validated AUC; of stable rules: Bayle, Bayle, Janson and Mackey,
    NeurIPS 2020.
    """
    differences, by_unit = unit_shares(holdouts)
    mean = float(differences.mean())
    labels, units = (np.concatenate([np.asarray(one[k]) for one in holdouts]) for k in (0, 3))
    smaller = scarcer_units(labels, units)
    if smaller < 2:
        return _too_few_units(mean, "units")
    moved = by_unit.mean(axis=0)
    error = float(np.sqrt(np.square(moved).sum() * smaller / (smaller - 1)))
    freedom = min(smaller - 1, freedom_of_squares(moved))
    return compare(mean, error, stats.t(freedom), level=(1 - CONFIDENCE) / comparisons)


def intersection_union(one: Comparison, other: Comparison) -> Comparison:
    """Return what two tests of one difference say together: it is shown if both show it.

    The larger p, and the interval of all that not both reject. It errs at most as often as the
    better one of both. So what is claimed of new data must stand out from what the seeds vary by,
    as `resampled_difference` or `parts_difference` sees it, and from what the tiles or slides do,
    as `runs_difference` sees it: few seeds take a spread for too small by chance, and neither
    knows all of what trainings on one pool share.

    References
    ----------
    Berger, Technometrics 24 (1982) 295-300.
    """
    mine, others = one.difference, other.difference
    if one.p_value is None or mine.low is None or mine.high is None:
        return one
    if other.p_value is None or others.low is None or others.high is None:
        return other
    interval = replace(mine, low=min(mine.low, others.low), high=max(mine.high, others.high))
    return Comparison(interval, max(one.p_value, other.p_value))


def parts_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> Comparison:
    """Compare two ways of choosing by the parts of one cross-validation, on new data.

    Each part of k is judged by what was chosen on the others, which share their tiles: the
    variance is that of `resampled_difference` with n2/n1 = 1 / (k - 1).

    Parameters
    ----------
    first, second
        One value per part.

    Raises
    ------
    KitError
        As `paired_difference`.

    References
    ----------
    Bouckaert and Frank, PAKDD 2004, 3-12, here with one run of the cross-validation.
    """
    differences = paired_values(first, second)
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return Comparison(Interval(mean, None, None, "one part says nothing of others"), None)
    return compare(mean, _resampled_error(differences, 1 / (n - 1)), stats.t(n - 1))


def _resampled_error(differences: Floats, held_out_to_trained: float) -> float:
    """Return the standard error of a mean of differences that share their pool."""
    variance_share = 1 / len(differences) + held_out_to_trained
    return float(differences.std(ddof=1) * np.sqrt(variance_share))


def crossed_difference(
    labels: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    comparisons: int = 1,
) -> Comparison:
    """Compare the AUCs of two recipes on new tiles or slides, where all seeds hold out the same.

    Seeds and tiles are both taken as drawn, as readers and cases are in radiology: the variance
    of the mean difference of J seeds is s²/J + c, with s² the variance of their differences
    and c the mean covariance of two of them over the tiles, from DeLong's components, or over
    slides, from the sums of these in each slide. Degrees of freedom are Satterthwaite's, with those
    of `freedom_of_squares` for c.

    Parameters
    ----------
    labels
        (tiles,), 0 or 1.
    first, second
        (seeds, tiles), scores as in `auc`.
    groups
        The slide of each tile; each tile by itself if None.
    comparisons
        As in `paired_difference`.

    Raises
    ------
    KitError
        As `auc` and `paired_difference`.

    References
    ----------
    Obuchowski and Rockette, Communications in Statistics, Simulation and Computation 24 (1995)
    285-308; Hillis, Statistics in Medicine 26 (2007) 596-619; covariances of clustered tiles:
    Obuchowski, Biometrics 53 (1997) 567-578.
    """
    labels, scores = np.asarray(labels), _paired_scores(first, second)
    units = np.arange(len(labels)) if groups is None else np.asarray(groups)
    smaller = scarcer_units(labels, units)
    differences, by_unit = unit_shares([(labels, *pair, units) for pair in scores])
    n, mean = len(differences), float(differences.mean())
    if n < min_seeds(comparisons):
        return _too_few_seeds(mean, n, comparisons)
    if smaller < 2:
        return _too_few_units(mean, "tiles" if groups is None else "slides")
    error, freedom = _crossed_error(differences, by_unit, smaller)
    return compare(mean, error, stats.t(freedom), level=(1 - CONFIDENCE) / comparisons)


def _paired_scores(first: npt.ArrayLike, second: npt.ArrayLike) -> list[tuple[Floats, Floats]]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise KitError(f"scores of shapes {first.shape} and {second.shape}: give (seeds, tiles)")
    return list(zip(first, second, strict=True))


def _too_few_units(mean: float, kind: str) -> Comparison:
    return Comparison(Interval(mean, None, None, TOO_FEW.format(kind)), None)


def _crossed_error(differences: Floats, by_unit: Floats, smaller: int) -> tuple[float, float]:
    """Return the standard error of the mean over seeds and units, and its degrees of freedom."""
    n = len(differences)
    shared = max(0.0, mean_covariance(by_unit) * smaller / (smaller - 1))
    own = float(differences.var(ddof=1)) / n
    of_units = min(smaller - 1, freedom_of_squares(by_unit.mean(axis=0)))
    return float(np.sqrt(own + shared)), _satterthwaite([own, shared], [n - 1, of_units])


def _satterthwaite(parts: list[float], freedoms: list[float]) -> float:
    """Return the degrees of freedom of a sum of variances that have their own."""
    weighed = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    return sum(parts) ** 2 / weighed if weighed else float(freedoms[0])


def _too_few_seeds(mean: float, n: int, comparisons: int) -> Comparison:
    note = f"these are {n} of the {min_seeds(comparisons)} seeds that it takes"
    level = (1 - CONFIDENCE) / comparisons
    return Comparison(Interval(mean, None, None, note, 1 - level), None)
