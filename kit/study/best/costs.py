"""The parts of a search with their costs: measured when a plan first asks for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kit import runs, training
from kit.base import EpochResult, KitError, Recipe
from kit.data import Store, recipe_holdout
from kit.study.best.parts import Part
from kit.study.best.plan import (
    Candidate,
    Cost,
    Planned,
    Sides,
    candidate,
    cost_of,
    least_seconds,
    new_pace,
    plan_parts,
)
from kit.study.best.record import Journal

FOLDS = 5
REFIT = "-refit"
# A part that is trained again on all tiles has at least this weight in the mean.
_WORTH_REFITTING = 0.15


@dataclass(frozen=True)
class Portfolio:
    """What may be trained here.

    Attributes
    ----------
    folder
        Of the parts' folders.
    parts
        In the order in which time is spent.
    """

    folder: Path
    parts: Sequence[Part]
    store: Store
    device: str
    journal: Journal

    def place(self, name: str) -> Path:
        """Return the folder of a part."""
        return self.folder / name

    def recipe(self, name: str) -> Recipe:
        """Return the recipe that a part, or a refit of one, is trained by here."""
        if name.endswith(REFIT):
            return runs.refit_recipe(self.place(name.removesuffix(REFIT)))
        part = next(part for part in self.parts if part.name == name)
        return self._recipe(part, self.journal.folds)

    def cost(self, name: str) -> Cost:
        """Return what a part, or a refit of one, costs."""
        recipe, speed = self.recipe(name), self._speed(name.removesuffix(REFIT))
        sides = self._sides(recipe, refit=name.endswith(REFIT))
        return cost_of(recipe, speed, sides).times(self.journal.pace)

    def learn_pace(self, name: str, epochs: int, took: float) -> None:
        """Correct what parts cost by what one took, its test tiles apart."""
        cost = self.cost(name)
        expected = cost.seconds(epochs) - cost.test
        self.journal.pace = new_pace(self.journal.pace, expected, took)

    def choose_folds(self, seconds: float) -> int:
        """Return the folds of a cross-validation, if all main parts fit into the time as folds."""
        for part in self.parts:
            if part.is_main and seconds > 0:
                recipe = self._recipe(part, FOLDS)
                cost = cost_of(recipe, self._speed(part.name), self._sides(recipe))
                seconds -= cost.seconds(recipe.epochs)
        return FOLDS if seconds > 0 else 0

    def plan(self, left: Callable[[], float]) -> list[Planned]:
        """Plan what is trained in the time left; measure no more than that needs.

        Parameters
        ----------
        left
            Returns the seconds that are left by now: measuring takes some.
        """
        candidates: list[Candidate] = []
        plan: list[Planned] = []
        for part in self.parts if left() > 0 else ():
            # The seed decides the folds.
            other = bool(self.journal.folds) and part.recipe.seed != self.parts[0].recipe.seed
            if part.name not in self.journal.parts and not other:
                candidates.append(self.candidate(part.name))
                seconds = left()
                plan = plan_parts(candidates, seconds)
                room = seconds - sum(one.seconds for one in plan)
                if plan and room < least_seconds(candidates):
                    break
        return plan

    def candidate(self, name: str) -> Candidate:
        """Return a part with its cost, and the epochs that it is worth training for."""
        recipe = self.recipe(name)
        return candidate(name, recipe, self.cost(name), self._sides(recipe).train)

    def remaining(self, name: str, epochs: int) -> Planned:
        """Return what a part that was begun still takes."""
        cost, recipe, place = self.cost(name), self.recipe(name), self.place(name)
        folders = [place]
        if recipe.folds:
            folders = [folder for folder, _ in runs.fold_recipes(recipe, place)]
        done = sum(len(_history(folder)) for folder in folders) / len(folders)
        seconds = cost.seconds(0) + max(0.0, epochs - done) * cost.epoch
        return Planned(name, epochs, seconds)

    def refits(self, weights: Mapping[str, float]) -> Iterator[Candidate]:
        """Yield the refits that are worth their time, by the weights of parts in the mean."""
        for name in sorted(weights, key=lambda part: -weights[part]):
            refit = f"{name}{REFIT}"
            if weights[name] >= _WORTH_REFITTING and refit not in self.journal.parts:
                try:
                    epochs = self.recipe(refit).epochs
                except KitError:
                    continue
                yield Candidate(refit, self.cost(refit), epochs, epochs)

    def _recipe(self, part: Part, folds: int | None) -> Recipe:
        precision = self.journal.precisions.get(part.name, part.recipe.precision)
        if not folds:
            return replace(part.recipe, precision=precision)
        return replace(part.recipe, folds=folds, validate_on=(), precision=precision)

    def _sides(self, recipe: Recipe, *, refit: bool = False) -> Sides:
        train, valid = map(len, recipe_holdout(self.store, recipe))
        test = len(self.store.test)
        return (
            Sides(train + valid, 0, test) if refit else Sides(train, valid, test, recipe.folds or 1)
        )

    def _speed(self, name: str) -> runs.Speed:
        """Return how fast a part is computed here, measured once for all its seeds."""
        if name not in self.journal.speeds:
            part = next(part for part in self.parts if part.name == name)
            recipe = _in_faster_precision(part.recipe, self.device)
            speed = runs.measure_speed(recipe, self.store, device=self.device)
            for one in self.parts:
                if replace(one.recipe, seed=0) == replace(part.recipe, seed=0):
                    self.journal.speeds[one.name] = speed
                    self.journal.precisions[one.name] = recipe.precision
        return self.journal.speeds[name]


def _in_faster_precision(recipe: Recipe, device: str) -> Recipe:
    """Return a recipe in the precision in which it trains faster here, where it leaves that open.

    `train.py` asks this of timm models alone; here each part is asked, the kit's networks as well.
    """
    if recipe.precision != "auto" or recipe.is_probe:
        return recipe
    seconds = training.step_seconds([recipe], device=device)
    return replace(recipe, precision=min(seconds, key=seconds.__getitem__, default="auto"))


def _history(folder: Path) -> list[EpochResult]:
    return runs.read_history(folder) if (folder / "history.jsonl").exists() else []
