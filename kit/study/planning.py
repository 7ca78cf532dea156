"""How many seeds a study would take to show a difference, and what they would cost."""

import math
from collections.abc import Sequence

import pandas as pd

from kit import stats
from kit.base import KitError
from kit.study.figures import PRIMARY, Outcomes, figures_by_run
from kit.study.populations import THESE_TILES, Holdouts
from kit.study.several import Pair
from kit.study.tables import StudyTable


def require_spread(seeds: int) -> None:
    """Refuse to plan with one seed, before it is trained.

    Raises
    ------
    KitError
        Saying how many it takes.
    """
    if seeds < 2:
        raise KitError("one seed has no spread to plan with: give --seeds 2 or more")


def plan_table(
    outcomes: Outcomes, pairs: Sequence[Pair], holdouts: Holdouts, size: float
) -> StudyTable:
    """Return for each pair how many seeds would show a difference of a size, from the first seeds.

    Only the spread of the differences is used and told, never who is ahead, so the study may be
    judged afterwards as if nobody had looked.

    Parameters
    ----------
    size
        Of the difference in validation AUC.

    Raises
    ------
    KitError
        If there are fewer than two seeds.
    """
    tables = figures_by_run(outcomes)
    done = len(next(iter(outcomes.values())))
    require_spread(done)
    seconds = _seconds_per_seed(outcomes)
    rows = []
    for one, other in pairs:
        sd = float((tables[one][PRIMARY] - tables[other][PRIMARY]).std())
        for population, ratio in _populations(holdouts):
            needed = [
                stats.seeds_needed(size, spread, held_out_to_trained=ratio, comparisons=len(pairs))
                for spread in (sd, stats.sd_bound(sd, done))
            ]
            hours = math.nan if needed[0] is None else needed[0] * seconds / 3600
            power = stats.power(size, sd, done, held_out_to_trained=ratio, comparisons=len(pairs))
            columns = {
                "sd": sd,
                f"power of {done}": power,
                "seeds": needed[0],
                "at most": needed[1],
                "hours": hours,
            }
            rows.append({"arms": f"{one} and {other}", **columns, "on": population})
    # Whole numbers, or nothing.
    frame = pd.DataFrame(rows, dtype=object).fillna(math.nan).set_index("arms")
    return StudyTable(
        frame, _notes(size, done, arms=len(outcomes), has_gaps=bool(frame.isna().to_numpy().any()))
    )


def _notes(size: float, done: int, *, arms: int, has_gaps: bool) -> tuple[str, ...]:
    """Say what the columns of a plan mean."""
    notes = [
        f"Seeds that show a difference of {size:g} {PRIMARY} in {stats.POWER:.0%} of studies, from "
        f"the spread (sd) over {done} seeds; at most as many, if it is as wide as the upper bound "
        "of its 95 % interval.",
        f"Power of {done}: the share of studies of {done} seeds that show such a difference.",
        f"Hours are of training on one device, for all seeds and {arms} arms, as fast as "
        "these were trained.",
    ]
    if has_gaps:
        notes.append(
            "Empty cells: no number of seeds up to 1,000 would; more held-out tiles or slides may."
        )
    return tuple(notes)


def _populations(holdouts: Holdouts) -> list[tuple[str, float]]:
    """Return what can be planned for, and what its test adds to the variance."""
    here = [(THESE_TILES, 0.0)]
    ratio, widest = holdouts.held_out_to_trained, holdouts.population
    return here if widest == THESE_TILES or ratio is None else [(widest, ratio), *here]


def _seconds_per_seed(outcomes: Outcomes) -> float:
    """Return how long a seed's runs of all arms were trained, on average."""
    sums = [sum(epoch.seconds for epoch in one.history) for arm in outcomes.values() for one in arm]
    return len(outcomes) * sum(sums) / len(sums)
