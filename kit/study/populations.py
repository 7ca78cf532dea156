"""Of what a comparison's verdict speaks: these tiles, new tiles of these slides, new slides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kit import stats
from kit.base import Floats, Indices, Recipe, Strings
from kit.data import Holdout, Store, check_holdouts, read_recipe_slides
from kit.stats import Comparison, PairedDifference
from kit.study.tables import StudyTable, explain_empty, test_columns

THESE_TILES = "these tiles"
NEW_TILES = "new tiles of these slides"
NEW_SLIDES = "new slides"

MIN_SLIDES = 50
"""Slides with the scarcer class that seeds must split: with fewer the corrected test of new slides
finds a difference of equal arms in more than 6 % of simulated studies (docs/statistics.md)."""
MIN_HELD_OUT = 10
"""The same where all seeds hold out the same slides; of these, those held out."""

EXACT = "exact sign flips"
RESAMPLED = "corrected resampled t test"
BOTH = f"{RESAMPLED} and t test over {{}}"
CROSSED = "t test over seeds and {}"


@dataclass(frozen=True)
class Judgement:
    """A difference of two arms, as far as one population is concerned.

    Attributes
    ----------
    method
        The test's name.
    """

    test: Comparison | PairedDifference
    method: str


Judgements = Mapping[str, Judgement]
"""By their populations, the widest first; the last one is `THESE_TILES`."""


@dataclass(frozen=True)
class Holdouts:
    """What the seeds of a study are judged on, and so of what their figures can speak.

    Attributes
    ----------
    held_out_to_trained
        Held-out tiles or slides per tile or slide trained on, where each seed splits them
        again; None where all seeds hold out the same tiles.
    slides
        The slide of each tile by its id, where holdouts keep slides apart.
    scarcer
        The number of slides with the class that fewer of them hold: of all slides that seeds
        split, or of those held out by all seeds.
    """

    held_out_to_trained: float | None
    slides: Mapping[str, str] | None = None
    scarcer: int = 0

    @property
    def needed(self) -> int:
        """How many slides of the scarcer class it takes to speak of new slides."""
        return MIN_HELD_OUT if self.held_out_to_trained is None else MIN_SLIDES

    @property
    def population(self) -> str:
        """The widest population that a verdict can speak of."""
        if self.slides is not None and self.scarcer >= self.needed:
            return NEW_SLIDES
        # Runs that are judged by slides have not met other tiles of the slides they hold out.
        splits_slides = self.slides is not None and self.held_out_to_trained is not None
        return THESE_TILES if splits_slides else NEW_TILES

    @property
    def note(self) -> str:
        """Why a verdict speaks of nothing wider."""
        if self.slides is None:
            return (
                "Nothing is said of new slides: no holdout keeps slides apart, so each run has met "
                "the slides that it is judged on (--slides keeps them apart)."
            )
        if self.scarcer < self.needed:
            return (
                f"Nothing is said of new slides: {self.scarcer} hold the scarcer class, and it "
                f"takes {self.needed}."
            )
        if self.held_out_to_trained is None:
            return "All seeds train on the same slides: it is not said what others would teach."
        return ""


def find_holdouts(recipes: Sequence[Recipe], store: Store) -> Holdouts:
    """Return what the seeds of a study are judged on, from one arm's recipes, one per seed.

    Raises
    ------
    KitError
        As `kit.data.check_holdouts`.
    """
    chosen = check_holdouts(store, recipes)
    table = recipes[0].slides
    slides = None if table is None else read_recipe_slides(table, store)
    units = np.arange(len(store.labels)) if slides is None else slides
    same = all(np.array_equal(chosen[0].valid, other.valid) for other in chosen)
    is_named = bool(recipes[0].validate_on) or (same and len(chosen) > 1)
    ratio = None if is_named else max(_ratio(one, units) for one in chosen)
    if slides is None:
        return Holdouts(ratio)
    rows = chosen[0].valid if is_named else np.concatenate(chosen[0])
    by_id = dict(zip(store.train.ids.tolist(), slides.tolist(), strict=True))
    holders = [len(np.unique(slides[rows][store.labels[rows] == label])) for label in (0, 1)]
    return Holdouts(ratio, by_id, min(holders))


def judge_pair(
    values: tuple[Floats, Floats],
    holdouts: Holdouts,
    *,
    predictions: pd.DataFrame | None = None,
    arms: tuple[str, str] = ("", ""),
    comparisons: int = 1,
) -> Judgements:
    """Test two arms' difference on each population that the data allow, the widest first.

    Parameters
    ----------
    values
        One per seed and arm.
    predictions
        From `pooled_predictions`, for AUCs. They hold the verdict on new tiles to what tiles or
        slides do; where all seeds hold out the same, new ones are spoken of by these alone.
    arms
        The two columns of `predictions`.
    comparisons
        As in `stats.paired_difference`.
    """
    found = {}
    population = holdouts.population
    known = None if predictions is None or predictions.empty else predictions
    if population != THESE_TILES and holdouts.held_out_to_trained is not None:
        ratio = holdouts.held_out_to_trained
        test = stats.resampled_difference(*values, ratio, comparisons=comparisons)
        found[population] = Judgement(test, RESAMPLED)
        if known is not None:
            of_runs = stats.runs_difference(
                _by_seed(known, arms, holdouts), comparisons=comparisons
            )
            both = stats.intersection_union(test, of_runs)
            found[population] = Judgement(both, BOTH.format(_units(holdouts)))
    elif population != THESE_TILES and known is not None:
        test = _crossed(known, arms, holdouts, comparisons)
        found[population] = Judgement(test, CROSSED.format(_units(holdouts)))
    here = stats.paired_difference(*values, comparisons=comparisons)
    return found | {THESE_TILES: Judgement(here, EXACT)}


def _units(holdouts: Holdouts) -> str:
    return "slides" if holdouts.population == NEW_SLIDES else "tiles"


def is_conclusive(judged: Judgements) -> bool:
    """Whether the test of the widest population could have shown a difference."""
    return next(iter(judged.values())).test.p_value is not None


def population_table(judged: Judgements, holdouts: Holdouts) -> StudyTable:
    """Return a row per population that the verdict speaks of, the widest first."""
    rows = {
        f"on {name}": {**test_columns(one.test), "test": one.method} for name, one in judged.items()
    }
    reasons = {f"on {name}": one.test.difference.note for name, one in judged.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("population")
    notes = [*explain_empty(reasons), *filter(None, [holdouts.note])]
    return StudyTable(frame, tuple(notes))


def _crossed(
    predictions: pd.DataFrame, arms: tuple[str, str], holdouts: Holdouts, comparisons: int
) -> Comparison:
    one, other = (predictions.pivot_table(index="seed", columns="id", values=arm) for arm in arms)
    labels = predictions.drop_duplicates("id").set_index("id")["label"].loc[one.columns]
    groups: Strings | None = None
    if holdouts.population == NEW_SLIDES and holdouts.slides is not None:
        groups = one.columns.map(holdouts.slides).to_numpy(str)
    scores = (one.to_numpy(), other.to_numpy())
    return stats.crossed_difference(labels.to_numpy(), *scores, groups, comparisons=comparisons)


def _by_seed(
    predictions: pd.DataFrame, arms: tuple[str, str], holdouts: Holdouts
) -> list[stats.Holdout]:
    """Return each seed's labels, both arms' scores, and the units that a verdict speaks of."""
    units = predictions["id"]
    if holdouts.population == NEW_SLIDES and holdouts.slides is not None:
        units = units.map(holdouts.slides)
    named = predictions.assign(unit=units.to_numpy(str))
    one, other = arms
    return [
        (table["label"], table[one], table[other], table["unit"])
        for _, table in named.groupby("seed")
    ]


def _ratio(chosen: Holdout, units: Strings | Indices) -> float:
    """Return held-out units per unit trained on: the larger one of tiles' and of slides'."""
    of_units = len(np.unique(units[chosen.valid])) / len(np.unique(units[chosen.train]))
    return max(of_units, len(chosen.valid) / len(chosen.train))
