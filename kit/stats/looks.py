"""How often a verdict is false that was looked at more than once."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from kit.stats.intervals import CONFIDENCE

_STUDIES = 20_000


def false_share(looks: Sequence[int], held_out_to_trained: float = 0.0) -> float:
    """Return the share of studies of two equal arms that call one better at one of several looks.

    It is simulated: each look is the corrected resampled t test at 5 % of the first so many
    seeds, whose differences are normal and correlated as that test takes them to be. A look at
    fewer than two seeds shows nothing.

    Parameters
    ----------
    looks
        Numbers of seeds.
    held_out_to_trained
        As in `resampled_difference`; 0 for the seeds' own noise alone.
    """
    rng = np.random.default_rng(0)
    shared = held_out_to_trained / (1 + held_out_to_trained)
    own = rng.normal(size=(_STUDIES, max(looks))) * np.sqrt(1 - shared)
    differences = own + np.sqrt(shared) * rng.normal(size=(_STUDIES, 1))
    found = np.zeros(_STUDIES, bool)
    for seeds in looks:
        if seeds < 2:
            continue
        seen = differences[:, :seeds]
        error = seen.std(axis=1, ddof=1) * np.sqrt(1 / seeds + held_out_to_trained)
        edge = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)
        found |= np.abs(seen.mean(axis=1)) > edge * error
    return float(found.mean())
