"""Arms that are paired by seed: what they are, and the training of all their runs.

A seed varies the split, the initial tensors, the data order and the augmentation, identically
in all arms.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kit.base import OWN_ONLY, EpochResult, KitError, Recipe, read_recipe, refuse_unused
from kit.data import Store
from kit.runs import still_taught
from kit.study.checks import check_kept, check_recipes
from kit.study.figures import Outcomes, read_outcome
from kit.study.folder import claim_folder, settle_precision, surroundings
from kit.study.opening import open_run
from kit.study.sharing import share_runs
from kit.training import TrainingBar

# Options that decide the holdout: arms that hold out different tiles cannot be paired.
_SAME_IN_BOTH = ("per_class", "holdout", "slides", "validate_on", "leave_out", "folds", "fold")

# An arm names a folder and a column of tables that have these columns, too.
_NAME = re.compile(r"\w[\w.+-]{0,63}")
_OTHER_COLUMNS = ("seed", "id", "label")


@dataclass(frozen=True)
class Study:
    """Arms and the seeds that pair them.

    Attributes
    ----------
    folder
        Holds study.json and runs/ARM-SEED.
    arms
        Recipes by name, in the order of their comparison. Their own seeds are not used.
    control
        Of three arms or more the one that the others are compared with; None compares all.
    """

    folder: Path
    arms: dict[str, Recipe]
    seeds: tuple[int, ...]
    control: str | None = None

    def run_folder(self, arm: str, seed: int) -> Path:
        """Return where the run of an arm and a seed lies."""
        return self.folder / "runs" / f"{arm}-{seed}"

    def seeded(self, arm: str) -> list[Recipe]:
        """Return an arm's recipes, one per seed."""
        return [replace(self.arms[arm], seed=seed) for seed in self.seeds]

    def recipes(self) -> dict[Path, Recipe]:
        """Return the recipes of all runs by their folders, in the order of training."""
        return {
            self.run_folder(arm, seed): replace(recipe, seed=seed)
            for seed in self.seeds
            for arm, recipe in self.arms.items()
        }


def choose_seeds(first: int, count: int, listed: Sequence[int], given: set[str]) -> tuple[int, ...]:
    """Return the seeds of a study: those listed, or so many from the first one on.

    Parameters
    ----------
    given
        Options named on the command line.

    Raises
    ------
    KitError
        If a seed is listed twice, or seeds are given in both ways.
    """
    if not listed:
        return tuple(range(first, first + count))
    refuse_unused(given, ("seed", "seeds"), "beside --seed-list")
    if len(set(listed)) < len(listed):
        raise KitError(f"--seed-list {' '.join(map(str, listed))} names a seed twice")
    return tuple(listed)


def parse_arms(specifications: Sequence[str], base: Recipe, given: Set[str]) -> dict[str, Recipe]:
    """Read arms from NAME=RECIPE, a recipe's name or file; by default the two places of BatchNorm.

    Parameters
    ----------
    base
        The recipe of the command line.
    given
        Options named on the command line: they hold for all arms.

    Raises
    ------
    KitError
        If there are no two arms, or two of one name, a name cannot name a folder, an option fits
        one arm only, both arms are one recipe, their holdouts would differ, or the place of
        BatchNorm is fixed by the model or by name.
    """
    if not specifications:
        if not base.is_built_in or base.norm == "none":
            where = base.model if not base.is_built_in else "a network with --norm none"
            raise KitError(f"the place of norms is fixed in {where}: name two recipes with --arm")
        if "bn" in given:
            raise KitError("the arms differ in --bn: leave it out, or name two recipes with --arm")
        return {bn: replace(base, bn=bn) for bn in ("before", "after")}
    named = dict(map(_split_arm, specifications))
    if len(named) < 2 or len(specifications) != len(named):
        raise KitError(
            "a comparison has two arms or more, with different names: --arm NAME=RECIPE --arm "
            "OTHER=RECIPE"
        )
    options = {name: getattr(base, name) for name in given if hasattr(base, name)}
    arms = {name: _read_arm(name, recipe, options) for name, recipe in named.items()}
    for one, other in itertools.combinations(arms.items(), 2):
        _check_pair(dict([one, other]))
    return arms


def train_arms(
    study: Study,
    store: Store,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Outcomes:
    """Train what is not trained yet, one run per seed and arm, and return all outcomes.

    All runs are checked before the first is trained. Finished runs are kept and unfinished ones
    resumed, so that a stopped study goes on where it was. Machines that call this on one folder
    share the runs, see `share_runs`.

    Raises
    ------
    KitError
        If a run cannot be, or the folder holds another study, or a run that this one would not
        train; or if a figure of a finished run is no number.
    """
    _check_study(study, store, device)
    study = replace(study, arms=settle_precision(study.folder, study.arms, device))
    recipes = study.recipes()
    shared = surroundings(study.arms.values(), store, device)
    control = {} if study.control is None else {"control": study.control}
    claim_folder(study.folder, {"kind": "arms", **shared, "arms": study.arms, **control})
    check_kept(recipes, store, device=device)
    folders = {folder.name: folder for folder in recipes}

    def train_one(name: str, bar: TrainingBar) -> Iterator[EpochResult]:
        folder = folders[name]
        run = open_run(recipes[folder], store, folder, device=device, workers=workers)
        yield from run.train(progress=bar)
        # A figure that is no number is told after the first run, not after the last.
        read_outcome(folder)

    share_runs(
        list(folders),
        study.folder,
        train_one,
        is_done=lambda name: (folders[name] / "metrics.json").exists(),
        storage=storage,
    )
    return {
        arm: [read_outcome(study.run_folder(arm, seed)) for seed in study.seeds]
        for arm in study.arms
    }


def _check_study(study: Study, store: Store, device: str) -> None:
    """Check all runs before the first is trained, and that their holdouts pair them."""
    holdouts = {
        arm: check_recipes(
            [still_taught(own, study.run_folder(arm, own.seed)) for own in study.seeded(arm)],
            store,
            device=device,
            arm=arm,
        )
        for arm in study.arms
    }
    for seed, one_seed in zip(study.seeds, zip(*holdouts.values(), strict=True), strict=True):
        if not all(np.array_equal(one_seed[0].valid, other.valid) for other in one_seed):
            raise KitError(f"the arms of seed {seed} hold out different tiles")


def _split_arm(specification: str) -> tuple[str, str]:
    """Split NAME=RECIPE; the name becomes part of a folder's name and a column of tables."""
    name, _, recipe = specification.partition("=")
    if not recipe:
        raise KitError(f"--arm {specification}: an arm is NAME=RECIPE, as after=notebook")
    if not _NAME.fullmatch(name) or name in _OTHER_COLUMNS:
        raise KitError(
            f"--arm {specification}: {name!r} cannot name an arm. Take up to 64 letters, digits, "
            f"'_', '-', '+' and '.', and none of {', '.join(_OTHER_COLUMNS)}"
        )
    return name, recipe


def _read_arm(name: str, recipe: str, given: Mapping[str, object]) -> Recipe:
    """Read an arm's recipe and give it the options of the command line."""
    own = read_recipe(recipe)
    try:
        arm = replace(own, **given)  # type: ignore[arg-type]
        arm.reject_unused(set(given))
    except (ValueError, KitError) as error:
        raise KitError(
            f"arm {name} ({recipe}): {error}. Options of the command line hold for all arms: "
            "write those of one into its recipe's file"
        ) from error
    return arm


def _check_pair(arms: Mapping[str, Recipe]) -> None:
    """Refuse two arms that cannot be paired, or that are one."""
    (one, first), (other, second) = arms.items()
    for key in _SAME_IN_BOTH:
        if getattr(first, key) != getattr(second, key):
            option = "--" + key.replace("_", "-")
            raise KitError(
                f"the arms cannot be paired: their {key} differs ({one}: {getattr(first, key)}, "
                f"{other}: {getattr(second, key)}). {option} sets it for all"
            )
    if _essence(first) == _essence(second):
        raise KitError(f"arms {one} and {other} are one recipe: nothing could tell them apart")


def _essence(recipe: Recipe) -> Recipe:
    """Return a recipe without what a study, or its model, does not use."""
    unused = ("seed", *(() if recipe.is_built_in else OWN_ONLY))
    return replace(recipe, **{name: getattr(Recipe, name) for name in unused})
