"""Hyper-parameter search with Optuna: pruned, resumable, shared by many workers.

OUT/search.json      what is searched: the base recipe, the data, the seeds
OUT/search.journal   Optuna's storage, unless a database is named
OUT/trials/NNNN      a run folder per trial; with several seeds, one per seed in it

`search_result` writes what a search finds.
"""

import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna import Study, Trial, TrialPruned
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from kit.base import (
    EpochResult,
    FolderLock,
    KitError,
    Recipe,
    StoppedError,
    recipe_values,
    write_text,
)
from kit.data import Store
from kit.runs import Run
from kit.study import sharing
from kit.study.checks import check_recipes
from kit.study.figures import read_outcome
from kit.study.folder import check_same, read_json, surroundings
from kit.study.opening import open_run
from kit.study.search_result import SearchResult, conclude
from kit.study.space import Space, search_space, seeded_recipes
from kit.study.trials import (
    FINISHED,
    NumberedTPE,
    begin_again,
    count_trials,
    place_of,
    run_folders,
    trial_folder,
)

JOURNAL = "search.journal"


def run_search(
    recipe: Recipe,
    store: Store,
    out: Path,
    *,
    trials: int = 40,
    seeds: int = 1,
    storage: str | None = None,
    fixed: Collection[str] = (),
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
) -> SearchResult:
    """Search until `trials` trials are finished, by this worker and all that share the storage.

    The same call on an existing search goes on with it, or joins its workers. If a worker dies,
    another one goes on with its trial from the last checkpoint; with one worker, the search then
    is the one that was never interrupted. A worker that finds nothing left to begin waits for the
    others, to take over the trials of those that die.

    The first trial is the recipe itself. The others are drawn by TPE over all parameters at once
    (Bergstra et al. 2011; Falkner et al. 2018). A trial is pruned when its best AUC so far is below
    the median of the finished trials' at that epoch: a rule that needs no minimum of epochs or
    trials, and that a single bad epoch does not trip, as BatchNorm gives them. What counts is the
    model that a trial keeps.

    Parameters
    ----------
    recipe
        Gives every value that is not searched. The ranges of the learning rate are a tenth
        of its own to ten times it.
    out
        The search's folder. Without `storage` workers find each other by it; its file system
        must have locks (flock), as local disks and NFS do.
    seeds
        Runs per trial, with the recipe's seed and those that follow it.
    storage
        An SQLAlchemy URL. Its study has the name of `out`.
    fixed
        Names of options that keep the recipe's value.

    Raises
    ------
    KitError
        If `out` or the storage holds another search, the storage cannot be used, or no trial
        reached its last epoch.
    """
    if trials < 1 or seeds < 1:
        raise KitError(f"{trials} trials of {seeds} seeds: a search needs one or more of both")
    sharing.silence()
    check_recipes(seeded_recipes(recipe, seeds), store, device=device)
    space = search_space(recipe, store, seeds=seeds, fixed=fixed)
    record = {
        **surroundings([recipe], store, device),
        **recipe_values(recipe),
        "searched": sorted(space.free),
        "seeds": seeds,
    }
    with sharing.naming("search", storage, out / JOURNAL):
        study = _open_study(space, out, record, storage)
        # The pace is that of the trials to come.
        begun = min(count_trials(study, *FINISHED), trials)
        with tqdm(
            total=trials, desc="search", unit=" trials", initial=begun, disable=not progress
        ) as bar:
            worker = _Worker(
                space=space,
                store=store,
                out=out,
                trials=trials,
                seeds=seeds,
                device=device,
                workers=workers,
                bar=bar,
            )
            worker.work(study, shared_folder=storage is None)
        return conclude(study, space, out, seeds)


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """One of the processes that train a search's trials."""

    space: Space
    store: Store
    out: Path
    trials: int
    seeds: int
    device: str
    workers: int
    bar: "tqdm[Any]"

    def work(self, study: Study, *, shared_folder: bool) -> None:
        """Train trials until enough are finished, here or elsewhere."""
        lock = self.out / "trials.lock" if shared_folder else None
        while (finished := count_trials(study, *FINISHED)) < self.trials:
            self._show(study)
            sharing.give_up_dead(study, lock, begin_again)
            running = count_trials(study, TrialState.RUNNING)
            if finished + running < self.trials:
                sharing.optimize_one(study, self._objective, lock, [self._tidy])
            else:
                self._show(study, f"waiting for {running} trials of other workers")
                time.sleep(sharing.POLL)
        self._show(study)

    def _objective(self, trial: Trial) -> float:
        """Train a trial; return the AUC of what it keeps."""
        if place_of(trial.study, trial.number) >= self.trials:
            raise sharing.SurplusTrial
        with sharing.leaving(trial):
            return self._train(trial)

    def _train(self, trial: Trial) -> float:
        recipe = self.space.suggest(trial)
        folders = run_folders(self.out, trial, recipe, self.seeds)
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
        for checkpoint in trial_folder(self.out, trial).rglob("last.pt"):
            checkpoint.unlink()
        if count_trials(study, TrialState.COMPLETE):
            conclude(study, self.space, self.out, self.seeds)

    def _show(self, study: Study, doing: str = "") -> None:
        """Move the bar to the trials that are finished, by any worker."""
        self.bar.n = min(count_trials(study, *FINISHED), self.trials)
        complete = count_trials(study, TrialState.COMPLETE)
        best = f"best AUC {study.best_value:.4f}" if complete else ""
        self.bar.set_postfix_str("; ".join(filter(None, (best, doing))))


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
        # A request to stop is no fault of the recipe, nor is what the disk or the network refuses.
        if isinstance(error, StoppedError) or isinstance(error.__cause__, OSError):
            raise
        memory = "out of memory: " if isinstance(error, torch.OutOfMemoryError) else ""
        trial.set_user_attr("reason", f"{memory}{error}")
        raise TrialPruned(str(error)) from error


def _open_study(space: Space, out: Path, record: dict[str, Any], storage: str | None) -> Study:
    """Open or create the search in a folder and a storage, or refuse another one."""
    name = "search" if storage is None else out.resolve().name
    place = {"storage": sharing.storage_name(storage, Path(JOURNAL)), "study": name}
    with FolderLock(out, wait=True):
        path = out / "search.json"
        if path.exists():
            check_same(out, read_json(path), record | place, what="search")
        study = optuna.create_study(
            study_name=name,
            direction="maximize",
            storage=sharing.open_storage(storage, out / JOURNAL, begin_again),
            sampler=NumberedTPE(space.recipe.seed),
            # The first epochs say little, least of all of a slow learner.
            pruner=MedianPruner(n_startup_trials=5, n_warmup_steps=space.recipe.epochs // 4),
            load_if_exists=True,
        )
        known = study.user_attrs.get("search", record)
        check_same(sharing.storage_name(storage, out / JOURNAL), known, record, what="search")
        study.set_user_attr("search", record)
        if not study.get_trials(deepcopy=False):
            # What a search finds is to be compared with the recipe that it starts from.
            study.enqueue_trial(space.own_parameters())
        write_text(path, json.dumps(record | place, indent=2) + "\n")
    return study
