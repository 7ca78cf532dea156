"""Training a part of a search within its time: a slow machine gets fewer epochs, not a late end."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from kit.base import KitError, Recipe, parse_recipe
from kit.data import Store
from kit.runs import Run, begin_run, fold_recipes, pool_folds, read_config
from kit.study.best.plan import Cost, shortened
from kit.study.opening import clear_folder
from kit.training import TrainingBar

# Between two checkpoints; an epoch has one at its end, too.
_CHECKPOINT_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class PartTraining:
    """A part that is trained: a run, or a run per fold.

    Attributes
    ----------
    cost
        Of the whole part.
    end
        When it has to be over, the test tiles predicted, by `time.monotonic()`.
    label
        Returns what the bar says of it, asked after each epoch.
    refit_of
        The finished run whose recipe it is, see `Run`.
    """

    recipe: Recipe
    store: Store
    folder: Path
    device: str
    cost: Cost
    end: float
    label: Callable[[], str]
    refit_of: Path | None = None

    def train(self, bar: TrainingBar) -> None:
        """Train it, going on with what is there.

        Where an epoch takes longer than planned, a run is given fewer, and its schedule goes on as
        that number has it.
        """
        recipes = {self.folder: self.recipe}
        if self.recipe.folds:
            recipes = dict(fold_recipes(self.recipe, self.folder))
        waiting = {folder: own for folder, own in recipes.items() if not _is_finished(folder)}
        for number, (folder, own) in enumerate(waiting.items()):
            now = time.monotonic()
            share = (self.end - now) / (len(waiting) - number)
            self._train_run(folder, own, bar, now + share)
        if self.recipe.folds:
            # Folds may differ in their epochs.
            pool_folds(self.folder, force=True)

    def _train_run(self, folder: Path, recipe: Recipe, bar: TrainingBar, end: float) -> None:
        """Train one run that is over at `end`, with fewer epochs where it must be."""
        run = self._open(folder, recipe)
        while (epochs := self._train_until(run, bar, end)) < run.recipe.epochs:
            bar.say(f"{folder.name}: slower than measured, so {epochs} epochs in all")
            run = self._begin(folder, replace(run.recipe, epochs=epochs), resume=True, force=True)

    def _train_until(self, run: Run, bar: TrainingBar, end: float) -> int:
        """Train a run; return its epochs, or as many as there is time for, where it was stopped."""
        bar.label = self.label()
        with closing(run), closing(run.train(progress=bar)) as results:
            for result in results:
                bar.label = self.label()
                pace = sum(epoch.seconds for epoch in run.history) / result.epoch
                left = end - time.monotonic() - self._rest(pace)
                epochs = shortened(run.recipe.epochs, result.epoch, pace=pace, seconds=left)
                if epochs < run.recipe.epochs:
                    return epochs
        return run.recipe.epochs

    def _rest(self, pace: float) -> float:
        """Return what a run takes beside its epochs, if these take `pace` seconds each."""
        rest = self.cost.seconds(0) / (self.recipe.folds or 1)
        planned = self.cost.epoch / (self.recipe.folds or 1)
        return rest * max(1.0, pace / planned) if planned else rest

    def _open(self, folder: Path, recipe: Recipe) -> Run:
        """Open a run, where it stands if it can go on, with the epochs that it has by now."""
        if (folder / "config.json").exists():
            try:
                begun = parse_recipe(read_config(folder)["recipe"], source=f"{folder}/config.json")
                return self._begin(folder, replace(recipe, epochs=begun.epochs), resume=True)
            except KitError as error:
                # The disk or another process is to blame, and not what lies there.
                if isinstance(error.__cause__, OSError):
                    raise
            clear_folder(folder)
        return self._begin(folder, recipe)

    def _begin(
        self, folder: Path, recipe: Recipe, *, resume: bool = False, force: bool = False
    ) -> Run:
        return begin_run(
            recipe,
            self.store,
            folder,
            device=self.device,
            refit_of=self.refit_of,
            checkpoint_steps=_CHECKPOINT_STEPS,
            resume=resume,
            force=force,
        )


def _is_finished(folder: Path) -> bool:
    return (folder / "metrics.json").is_file()
