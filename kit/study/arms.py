"""Two arms, paired by seed: what they are, and the training of all their runs.

A seed varies the split, the initial tensors, the data order and the augmentation, identically
in both arms.
"""

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit import runs
from kit.base import EpochResult, KitError, Recipe, read_recipe
from kit.data import Store
from kit.runs import Run
from kit.study.figures import Histories
from kit.study.folder import claim
from kit.study.sharing import share_runs

# Arms whose holdouts differ cannot be paired.
_SAME_IN_BOTH = ("per_class", "holdout", "slides", "validate_on")


@dataclass(frozen=True)
class Study:
    """Two arms and the seeds that pair them.

    Attributes
    ----------
    folder
        Holds study.json and runs/ARM-SEED.
    arms
        Two recipes by name. Their own seeds are not used.
    """

    folder: Path
    arms: dict[str, Recipe]
    seeds: tuple[int, ...]

    def run_folder(self, arm: str, seed: int) -> Path:
        """Return where the run of an arm and a seed lies."""
        return self.folder / "runs" / f"{arm}-{seed}"


def parse_arms(specifications: Sequence[str], base: Recipe, given: set[str]) -> dict[str, Recipe]:
    """Read arms from NAME=RECIPE, a recipe's name or file; by default the two places of BatchNorm.

    Parameters
    ----------
    base
        The recipe of the command line.
    given
        Options named on the command line: they hold for both arms.

    Raises
    ------
    KitError
        If there are not two arms of different names, or their holdouts would differ, or the
        model has no place of BatchNorm to choose.
    """
    if not specifications:
        if base.is_backbone:
            raise KitError(
                f"the place of BatchNorm is fixed in {base.model}: name two recipes with --arm"
            )
        return {bn: dataclasses.replace(base, bn=bn) for bn in ("before", "after")}
    named = [specification.partition("=") for specification in specifications]
    if len({name for name, _, _ in named}) != 2 or len(named) != 2:
        raise KitError("a comparison has two arms: --arm NAME=RECIPE --arm OTHER=RECIPE")
    overrides = {name: getattr(base, name) for name in given if hasattr(base, name)}
    arms = {
        name: dataclasses.replace(read_recipe(recipe), **overrides) for name, _, recipe in named
    }
    first, second = arms.values()
    different = [key for key in _SAME_IN_BOTH if getattr(first, key) != getattr(second, key)]
    if different:
        raise KitError(f"the arms cannot be paired: their {different[0]} differs")
    return arms


def train_arms(
    study: Study,
    store: Store,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Histories:
    """Train what is not trained yet, one run per seed and arm, and return all histories.

    Finished runs are kept and unfinished ones resumed, so that a stopped study goes on where
    it was. Machines that call this on one folder share the runs, see `share_runs`.

    Raises
    ------
    KitError
        If the folder holds a study of other arms or other data.
    """
    claim(study.folder, {"arms": study.arms}, store)
    pairs = {
        study.run_folder(arm, seed).name: (arm, seed) for seed in study.seeds for arm in study.arms
    }

    def train_one(name: str) -> Iterable[EpochResult]:
        arm, seed = pairs[name]
        seeded = dataclasses.replace(study.arms[arm], seed=seed)
        return _train_one(seeded, store, study.run_folder(arm, seed), device, workers)

    share_runs(
        list(pairs),
        study.folder,
        train_one,
        is_done=lambda name: (study.run_folder(*pairs[name]) / "metrics.json").exists(),
        storage=storage,
    )
    return {
        arm: [runs.read_history(study.run_folder(arm, seed)) for seed in study.seeds]
        for arm in study.arms
    }


def _train_one(
    recipe: Recipe, store: Store, folder: Path, device: str, workers: int
) -> Iterator[EpochResult]:
    """Yield each epoch's result, those of a resumed run from where it stands."""
    if not (folder / "config.json").exists():
        # Nothing was begun here but a write that a kill cut short.
        shutil.rmtree(folder, ignore_errors=True)
    run = Run(recipe, store, folder, device=device, workers=workers, resume=folder.exists())
    yield from run.train(progress=False)
