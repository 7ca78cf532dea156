"""By how much each tile or slide moves a difference of two AUCs off its mean."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kit.base import Array, Floats
from kit.stats import checks
from kit.stats.intervals import components
from kit.stats.slides import smaller_class, units_of

Holdout = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
"""The labels of one seed's held-out tiles, two recipes' scores of them, and the tiles' units: their
slides, or their own ids."""


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


def unit_shares(holdouts: Sequence[Holdout]) -> tuple[Floats, Floats]:
    """Return each seed's difference, and its tiles' shares summed by unit: (seeds, units)."""
    shares = [tile_shares(labels, first, second) for labels, first, second, _ in holdouts]
    units = [np.asarray(own[3]) for own in holdouts]
    names = np.unique(np.concatenate(units))
    by_unit = [
        np.bincount(np.searchsorted(names, own), of_tiles, minlength=len(names))
        for own, (_, of_tiles) in zip(units, shares, strict=True)
    ]
    return np.array([difference for difference, _ in shares]), np.array(by_unit)


def scarcer_units(labels: npt.ArrayLike, units: Array) -> int:
    """Return how many units hold the class that fewer units hold."""
    positive = np.asarray(labels) == 1
    return smaller_class(positive, units_of(positive, units))


def mean_covariance(by_unit: Floats) -> float:
    """Return the mean over pairs of seeds of the sums of their products, from (seeds, units)."""
    products = by_unit @ by_unit.T
    return float(products[~np.eye(len(by_unit), dtype=bool)].mean())
