"""How much of a difference's spread is the seeds' and how much the slides'."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kit.base import KitError
from kit.stats.shares import Holdout, mean_covariance, scarcer_units, unit_shares


@dataclass(frozen=True)
class Spread:
    """Parts of the variance of one seed's difference in AUC, on slides that were not there.

    Attributes
    ----------
    number
        Of seeds.
    seeds
        What seeds would differ by on any number of slides: initial weights, order, augmentation,
        and the split where each seed splits again.
    slides_by_seed
        What the choice of slides does to each seed in its own way.
    slides
        What it does to all seeds alike: no further seed takes any of it away.
    """

    number: int
    seeds: float
    slides_by_seed: float
    slides: float

    @property
    def total(self) -> float:
        """Variance of one seed's difference."""
        return self.seeds + self.slides_by_seed + self.slides

    def error(self, *, seeds: float = 1.0, slides: float = 1.0) -> float:
        """Return the standard error of the mean with so many times the seeds and the slides."""
        own = self.seeds + self.slides_by_seed / slides
        return float(np.sqrt(own / (self.number * seeds) + self.slides / slides))


def slide_spread(holdouts: Sequence[Holdout], held_out_to_trained: float = 0.0) -> Spread:
    """Split the spread of a difference of two AUCs into the seeds' and the slides' parts.

    Of each seed, the tiles' shares in its difference (DeLong's components) are summed by slide,
    Y_jk. V is the mean over seeds of the sum of Y_jk^2, C the mean over pairs of seeds of the sum
    of Y_jk Y_lk, both times k / (k - 1) for the k slides of the scarcer class, and s^2 the variance
    of the differences over the seeds. Then the slides' part is C for all seeds alike and V - C
    for each by itself; the seeds' is s^2 - (V - C). Where all seeds hold out the same slides these
    are the moments of the two-way analysis of variance with random seeds and slides. Parts
    below 0 are 0.

    Parameters
    ----------
    holdouts
        One per seed, of two seeds or more.
    held_out_to_trained
        As in `resampled_difference` where each seed splits the slides again: what the slides do to
        all seeds alike is then n2/n1 s^2, as that test takes it, or C if that is larger.

    Raises
    ------
    KitError
        As `auc`; or if there are fewer than two seeds, or than two slides of a class.

    References
    ----------
    Searle, Casella and McCulloch, Variance Components, Wiley 1992, section 4.3; for readers and
    cases: Gallas, Academic Radiology 13 (2006) 353-362.
    """
    if len(holdouts) < 2:
        raise KitError("one seed has no spread: give two or more")
    differences, by_slide = unit_shares(holdouts)
    smaller = min(scarcer_units(labels, np.asarray(slides)) for labels, _, _, slides in holdouts)
    if smaller < 2:
        raise KitError("fewer than two slides hold one of the classes: they have no spread")
    factor = smaller / (smaller - 1)
    variance = factor * float(np.square(by_slide).sum(axis=1).mean())
    alike = max(0.0, factor * mean_covariance(by_slide))
    over_seeds = float(differences.var(ddof=1))
    by_seed = min(max(0.0, variance - alike), over_seeds)
    return Spread(
        number=len(holdouts),
        seeds=over_seeds - by_seed,
        slides_by_seed=by_seed,
        slides=max(alike, held_out_to_trained * over_seeds),
    )
