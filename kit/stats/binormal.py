"""The variance of an AUC of normal scores that spread otherwise among positive tiles."""

from dataclasses import dataclass

import numpy as np
from scipy import special

from kit.base import Floats

# Half to twice as wide: what few tiles say of more than that is little.
_LOGS = np.linspace(-np.log(2), np.log(2), 29)
_MAX_CELLS = 100


@dataclass(frozen=True)
class Placements:
    """Where the tiles of the scarcer class stand among those of the other, on a normal scale.

    Attributes
    ----------
    low, high
        (cells,), between which normal scores of the other class the tiles of a cell lie.
    counts
        (cells,), how many tiles of the scarcer class those are.
    sizes
        Numbers of tiles of the scarcer class and of the other.
    """

    low: Floats
    high: Floats
    counts: Floats
    sizes: tuple[int, int]

    def variance(self, area: float) -> float:
        """Return the variance of an AUC, of the spread that is the most likely for this area."""
        # An area of 0 or 1 has none, whatever the spread.
        ratio = self.likely_ratio(area) if 0 < area < 1 else 1.0
        return binormal_variance(area, ratio, *self.sizes)

    def likely_ratio(self, area: float) -> float:
        """Return how many times as wide the scarcer class spreads, the most likely given the area.

        Between 1/2 and 2. The other class is standard normal, the scarcer one of spread r about
        m = z sqrt(1 + r^2) with z the area's normal quantile, and a tile in a cell of the other's
        normal scores is known no better than by this cell.

        References
        ----------
        Cai and Moskowitz, Biostatistics 5 (2004) 573-586: pseudo maximum likelihood from
        placements; in cells: Metz, Herman and Shen, Statistics in Medicine 17 (1998) 1033-1053.
        """
        ratios = np.exp(_LOGS)[:, None]
        middle = special.ndtri(area) * np.sqrt(1 + ratios**2)
        chances = special.ndtr((self.high - middle) / ratios)
        chances -= special.ndtr((self.low - middle) / ratios)
        likelihood = np.log(np.maximum(chances, 1e-300)) @ self.counts
        best = int(np.clip(likelihood.argmax(), 1, len(_LOGS) - 2))
        left, centre, right = likelihood[best - 1 : best + 2]
        bend = left - 2 * centre + right
        # The top of a parabola through three points.
        step = 0.0 if bend >= 0 else float(np.clip((left - right) / (2 * bend), -1, 1))
        return float(np.exp(_LOGS[best] + step * (_LOGS[1] - _LOGS[0])))


def placements(above: Floats, below: Floats) -> Placements:
    """Return where the scarcer class stands, from the scores of positive and negative tiles."""
    few, many = (above, below) if len(above) <= len(below) else (-below, -above)
    many = np.sort(many)
    few = np.sort(few)
    cells = [(one[0], one[-1], len(one)) for one in np.array_split(few, min(len(few), _MAX_CELLS))]
    first, last, counts = np.array(cells).T
    low = np.searchsorted(many, first, side="left") / (len(many) + 1)
    high = (np.searchsorted(many, last, side="right") + 1) / (len(many) + 1)
    return Placements(special.ndtri(low), special.ndtri(high), counts, (len(few), len(many)))


def binormal_variance(area: float, ratio: float, positives: int, negatives: int) -> float:
    """Return the variance of an AUC of normal scores, spread `ratio` times among positive tiles.

    With q the chance that one positive tile is above two negative ones, and r that two are above
    one, it is (a (1 - a) + (n - 1) (q - a^2) + (m - 1) (r - a^2)) / (m n). Both are bivariate
    normal probabilities, whose correlations are the shares of the variance that the one tile has.

    References
    ----------
    Hanley and McNeil, Radiology 143 (1982) 29-36.
    """
    if not 0 < area < 1:
        return 0.0
    place, square = special.ndtri(area), ratio**2
    slopes = np.array([(1 + 2 * square) ** -0.5, ratio * (2 + square) ** -0.5])
    both = area - 2 * special.owens_t(place, slopes)
    one_positive, one_negative = np.maximum(0.0, both - area**2)
    pairs = positives * negatives
    shared = (negatives - 1) * one_positive + (positives - 1) * one_negative
    return float(area * (1 - area) + shared) / pairs
