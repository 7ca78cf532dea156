"""The trials of a search: how each is drawn, and which one takes the place of a dead one."""

from pathlib import Path
from typing import Any

import numpy as np
from optuna import Study, Trial
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from kit.base import Recipe
from kit.study import sharing
from kit.study.search.space import seeded_recipes

# How often a trial is started that never reaches the end of its first epoch. What kills it, such
# as a lack of memory, would otherwise stop the search at the same place every time.
ATTEMPTS = 3

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class NumberedTPE(BaseSampler):
    """TPE with draws that follow from a seed and the trial's place, not from who runs it.

    One sampler's state for all trials would make workers of one seed draw the same trials,
    and a search that goes on draw its first ones again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tpe = self._create(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.tpe = self._create(place_of(study, trial.number))

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)

    def _create(self, place: int) -> TPESampler:
        seed = int(np.random.SeedSequence([self.seed, place]).generate_state(1)[0])
        with sharing.no_experimental_warning():
            return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def count_trials(study: Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def place_of(study: Study, number: int) -> int:
    """Count the trials before one, without those that were begun again or given up."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.number < number and trial.state != TrialState.FAIL for trial in trials)


def trial_name(trial: Trial | FrozenTrial) -> str:
    """Return the name of a trial's folder, which stays with it when it is begun again."""
    return str(trial.user_attrs.get("folder", f"{trial.number:04d}"))


def trial_folder(out: Path, trial: Trial | FrozenTrial) -> Path:
    """Return where a trial of the search in `out` lies."""
    return out / "trials" / trial_name(trial)


def run_folders(
    out: Path, trial: Trial | FrozenTrial, recipe: Recipe, seeds: int
) -> dict[Path, Recipe]:
    """Return where the runs of a trial lie, one per seed, and their recipes."""
    folder = trial_folder(out, trial)
    if seeds == 1:
        return {folder: recipe}
    return {folder / f"seed-{one.seed}": one for one in seeded_recipes(recipe, seeds)}


def begin_again(study: Study, trial: FrozenTrial) -> None:
    """Put a failed trial's twin in front of the queue."""
    attempt = trial.user_attrs.get("attempt", 1)
    if trial.intermediate_values or attempt < ATTEMPTS:
        attributes = {"folder": trial_name(trial), "attempt": attempt + 1}
        study.enqueue_trial(trial.params, user_attrs=attributes)
