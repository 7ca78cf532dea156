"""Hyper-parameter search with Optuna: pruned, resumable, shared by many workers.

OUT/search.json      what is searched: the base recipe, the data, the seeds
OUT/search.journal   Optuna's storage, unless a database is named
OUT/trials/NNNN      a run folder per trial; with several seeds, one per seed in it

`result` writes what a search finds.

The first trial is the recipe itself. The others are drawn by TPE over all parameters at once
(Bergstra et al. 2011; Falkner et al. 2018). A trial is pruned when its best AUC so far is below
the median of the finished trials' at that epoch: a rule that needs no minimum of epochs or trials,
and that a single bad epoch does not trip, as BatchNorm gives them. What counts in the end is the
model that a trial keeps.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna import Study, Trial, TrialPruned
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, TrialState

from kit.base import (
    EpochResult,
    FolderLock,
    KeptError,
    KitError,
    Recipe,
    recipe_values,
    write_json,
)
from kit.data import Store
from kit.runs import Run
from kit.study import sharing
from kit.study.checks import check_recipes
from kit.study.figures import read_outcome
from kit.study.folder import (
    check_same,
    read_record,
    require_no_run,
    settle_precision,
    surroundings,
)
from kit.study.opening import open_run
from kit.study.search.result import SearchResult, conclude
from kit.study.search.space import Space, search_space, seeded_recipes
from kit.study.search.trials import (
    FINISHED,
    NumberedTPE,
    begin_again,
    count_trials,
    place_of,
    run_folders,
    trial_folder,
)
from kit.training import TrainingBar

JOURNAL = "search.journal"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, and how long.

    Attributes
    ----------
    folder
        Without a database workers find each other by it; its file system must have locks (flock),
        as local disks and NFS do.
    recipe
        The first trial; it gives every value that is not searched.
    trials
        To finish in all, by whichever worker.
    seeds
        Runs per trial, with the recipe's seed and those that follow it.
    fixed
        Names of options that keep the recipe's value.
    """

    folder: Path
    recipe: Recipe
    trials: int = 40
    seeds: int = 1
    fixed: Collection[str] = ()


def run_search(
    search: Search,
    store: Store,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
    progress: bool = True,
) -> SearchResult:
    """Search until enough trials are finished, by this worker and all that share the storage.

    The same call on an existing search goes on with it, or joins its workers. If a worker dies,
    another one goes on with its trial from the last checkpoint; with one worker, the search then
    is the one that was never interrupted. A worker that finds nothing left to begin waits for the
    others, to take over the trials of those that die.

    Parameters
    ----------
    storage
        An SQLAlchemy URL. Its study has the name of the search's folder.

    Raises
    ------
    KitError
        If the recipe cannot be trained, the folder or the storage holds another search, the
        storage cannot be used, or no trial reached its last epoch.
    """
    if search.trials < 1 or search.seeds < 1:
        raise KitError(
            f"{search.trials} trials of {search.seeds} seeds: a search needs one or more of both"
        )
    sharing.silence()
    check_recipes(seeded_recipes(search.recipe, search.seeds), store, device=device)
    if storage is None:
        # Workers of a database may share no folder that could keep it.
        settled = settle_precision(search.folder, {"recipe": search.recipe}, device)
        search = replace(search, recipe=settled["recipe"])
    space = search_space(search.recipe, store, seeds=search.seeds, fixed=search.fixed)
    shared = surroundings([search.recipe], store, device)
    with sharing.naming("search", storage, search.folder / JOURNAL):
        study = _open_study(search, space, shared, storage)
        # The pace is that of the trials to come.
        begun = min(count_trials(study, *FINISHED), search.trials)
        with TrainingBar(search.trials, shown=progress) as bar:
            bar.skip(begun)
            _Worker(search, space, store, device, workers, bar).work(
                study, shares_folder=storage is None
            )
        return conclude(study, space, search.folder, search.seeds)


@dataclass(frozen=True)
class _Worker:
    """One of the processes that train a search's trials."""

    search: Search
    space: Space
    store: Store
    device: str
    workers: int
    bar: TrainingBar

    def work(self, study: Study, *, shares_folder: bool) -> None:
        """Train trials until enough are finished, here or elsewhere."""
        lock = self.search.folder / "trials.lock" if shares_folder else None
        while (finished := count_trials(study, *FINISHED)) < self.search.trials:
            self._show(study)
            sharing.give_up_dead(study, lock, begin_again)
            running = count_trials(study, TrialState.RUNNING)
            if finished + running < self.search.trials:
                sharing.optimize_one(study, self._objective, lock, [self._tidy])
            else:
                self._show(study, f"waiting for {running} trials of other workers")
                time.sleep(sharing.POLL)
        self._show(study)

    def _objective(self, trial: Trial) -> float:
        """Train a trial; return the AUC of what it keeps."""
        if place_of(trial.study, trial.number) >= self.search.trials:
            raise sharing.SurplusTrial
        with sharing.leaving(trial):
            return self._train(trial)

    def _train(self, trial: Trial) -> float:
        recipe = self.space.suggest(trial)
        folders = run_folders(self.search.folder, trial, recipe, self.search.seeds)
        with _blaming(trial):
            check_recipes(folders.values(), self.store, device=self.device)
        trial_runs = [
            open_run(
                seeded,
                self.store,
                folder,
                device=self.device,
                workers=self.workers,
                resume="folder" in trial.user_attrs,
            )
            for folder, seeded in folders.items()
        ]
        with _blaming(trial):
            self._follow(trial, trial_runs)
        # What is judged is what is kept, and not the curve.
        return float(np.mean([read_outcome(folder).auc for folder in folders]))

    def _follow(self, trial: Trial, trial_runs: Sequence[Run]) -> None:
        """Train a trial's runs side by side, and stop them if their curve is a poor one."""
        for results in zip(*map(_epochs, trial_runs), strict=True):
            epoch, auc = results[0].epoch, float(np.mean([r.valid_auc for r in results]))
            self._show(trial.study, f"trial {trial.number}, epoch {epoch}: {auc:.4f}")
            trial.report(auc, epoch)
            if epoch < trial_runs[0].recipe.epochs and trial.should_prune():
                raise TrialPruned

    def _tidy(self, study: Study, trial: FrozenTrial) -> None:
        """Remove a finished trial's checkpoints, and write what is known so far."""
        for checkpoint in trial_folder(self.search.folder, trial).rglob("last.pt"):
            checkpoint.unlink()
        if count_trials(study, TrialState.COMPLETE):
            conclude(study, self.space, self.search.folder, self.search.seeds)

    def _show(self, study: Study, doing: str = "") -> None:
        """Move the bar to the trials that are finished, by any worker."""
        finished = min(count_trials(study, *FINISHED), self.search.trials)
        complete = count_trials(study, TrialState.COMPLETE)
        best = f"best AUC {study.best_value:.4f}" if complete else ""
        counted = f"{finished} of {self.search.trials} trials"
        self.bar.label = ", ".join(filter(None, (counted, best, doing)))
        self.bar.reach(finished)


def _epochs(run: Run) -> Iterator[EpochResult]:
    """Yield a run's epochs, those of a resumed one from the first."""
    yield from tuple(run.history)
    yield from run.train(progress=False)


@contextmanager
def _blaming(trial: Trial) -> Iterator[None]:
    """Prune a trial whose recipe cannot be trained, diverges or needs too much memory."""
    try:
        yield
    except (torch.OutOfMemoryError, KitError) as error:
        # No fault of the recipe is a worker that was killed, or what the disk or the network
        # refuses.
        if isinstance(error, KeptError) or isinstance(error.__cause__, OSError):
            raise
        memory = "out of memory: " if isinstance(error, torch.OutOfMemoryError) else ""
        trial.set_user_attr("reason", f"{memory}{error}")
        raise TrialPruned(str(error)) from error


def _open_study(search: Search, space: Space, shared: dict[str, Any], storage: str | None) -> Study:
    """Open or create the search in a folder and a storage, or refuse another one."""
    require_no_run(search.folder)
    searched = {"searched": sorted(space.free), "seeds": search.seeds}
    record = {**shared, **recipe_values(search.recipe), **searched}
    name = "search" if storage is None else search.folder.resolve().name
    place = {"storage": sharing.storage_name(storage, Path(JOURNAL)), "study": name}
    path, journal = search.folder / "search.json", search.folder / JOURNAL
    with FolderLock(search.folder, wait=True):
        if path.exists():
            check_same(search.folder, read_record(path), record | place, what="search")
        study = optuna.create_study(
            study_name=name,
            direction="maximize",
            storage=sharing.open_storage(storage, journal, begin_again),
            sampler=NumberedTPE(search.recipe.seed),
            # The first epochs say little, least of all of a slow learner.
            pruner=MedianPruner(n_startup_trials=5, n_warmup_steps=search.recipe.epochs // 4),
            load_if_exists=True,
        )
        known = study.user_attrs.get("search", record)
        check_same(sharing.storage_name(storage, journal), known, record, what="search")
        study.set_user_attr("search", record)
        if not study.get_trials(deepcopy=False):
            # What a search finds is to be compared with the recipe that it starts from.
            study.enqueue_trial(space.own_parameters())
        write_json(path, record | place)
    return study
