"""Whether one recipe beats another on tiles or slides that no run has met.

Runs of several seeds share the tiles that they are judged on, so what these tiles have in common
does not average out with more seeds. Both tests add it to the error.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

from kit.base import Floats, KitError
from kit.stats import checks
from kit.stats.intervals import CONFIDENCE, TOO_FEW, Comparison, Interval, compare, components
from kit.stats.paired import min_seeds, paired_values
from kit.stats.slides import freedom_of_squares, smaller_class, units_of


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
    the differences of two seeds to be correlated by the share that is held out,
    n2/(n1 + n2).

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
    shares = _shares_by_seed(labels, first, second)
    differences = np.array([difference for difference, _ in shares])
    positive = np.asarray(labels) == 1
    units = units_of(positive, groups)
    smaller = smaller_class(positive, units)
    n, mean = len(differences), float(differences.mean())
    if n < min_seeds(comparisons):
        return _too_few_seeds(mean, n, comparisons)
    if smaller < 2:
        return _too_few_units(mean, "tiles" if groups is None else "slides")
    by_unit = np.array([np.bincount(units, own) for _, own in shares])
    error, freedom = _crossed_error(differences, by_unit, smaller)
    return compare(mean, error, stats.t(freedom), level=(1 - CONFIDENCE) / comparisons)


def _shares_by_seed(
    labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike
) -> list[tuple[float, Floats]]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise KitError(f"scores of shapes {first.shape} and {second.shape}: give (seeds, tiles)")
    return [tile_shares(labels, *pair) for pair in zip(first, second, strict=True)]


def _too_few_units(mean: float, kind: str) -> Comparison:
    return Comparison(Interval(mean, None, None, TOO_FEW.format(kind)), None)


def _crossed_error(differences: Floats, by_unit: Floats, smaller: int) -> tuple[float, float]:
    """Return the standard error of the mean over seeds and units, and its degrees of freedom."""
    n = len(differences)
    shared = max(0.0, mean_covariance(by_unit) * smaller / (smaller - 1))
    own = float(differences.var(ddof=1)) / n
    of_units = min(smaller - 1, freedom_of_squares(by_unit.mean(axis=0)))
    return float(np.sqrt(own + shared)), _satterthwaite([own, shared], [n - 1, of_units])


def mean_covariance(by_unit: Floats) -> float:
    """Return the mean over pairs of seeds of the sums of their products, from (seeds, units)."""
    products = by_unit @ by_unit.T
    return float(products[~np.eye(len(by_unit), dtype=bool)].mean())


def tile_shares(
    labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike
) -> tuple[float, Floats]:
    """Return a difference of two AUCs, and by how much each tile moves it off its mean."""
    positive, first = checks.both_classes(labels, first)
    _, second = checks.both_classes(labels, second)
    one, other = components(positive, first), components(positive, second)
    shares = np.empty(len(positive))
    difference = float((one[0] - other[0]).mean())
    for side, mine, theirs in zip((positive, ~positive), one, other, strict=True):
        shares[side] = (mine - theirs - difference) / len(mine)
    return difference, shares


def _satterthwaite(parts: list[float], freedoms: list[float]) -> float:
    """Return the degrees of freedom of a sum of variances that have their own."""
    weighed = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    return sum(parts) ** 2 / weighed if weighed else float(freedoms[0])


def _too_few_seeds(mean: float, n: int, comparisons: int) -> Comparison:
    note = f"these are {n} of the {min_seeds(comparisons)} seeds that it takes"
    level = (1 - CONFIDENCE) / comparisons
    return Comparison(Interval(mean, None, None, note, 1 - level), None)
