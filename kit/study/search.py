"""Hyper-parameter search with Optuna: pruned, resumable, shared by many workers.

OUT/search.json      what is searched: the base recipe, the data, the seeds
OUT/search.journal   Optuna's storage, unless a database is named
OUT/trials/NNNN      a run folder a trial; with several seeds, one a seed in it

What it finds is told by the files of `search_result`.
"""

import json
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
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

import kit
from kit.base import EpochResult, FolderLock, KitError, Recipe, recipe_values, write_text
from kit.data import Store
from kit.runs import Run
from kit.study import sharing
from kit.study.search_result import SearchResult, conclude
from kit.study.space import Space, search_space, seeded_recipes
from kit.study.trials import FINISHED, NumberedTPE, begin_again, count_trials, place_of, trial_name

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

    The same call on an existing search goes on with it, or joins its workers. A trial whose
    worker died is taken up from its last checkpoint; with one worker the search is then the
    one that was never interrupted. A worker that finds nothing left to begin waits for the
    others' trials, to take up those that die.

    Trials are drawn by TPE over all parameters at once (Bergstra et al. 2011; Falkner et al.
    2018). A trial is pruned when its best AUC so far is below the median of the finished
    trials' at that epoch: a rule that needs no minimum of epochs or trials, and that a single
    bad epoch does not trip, as BatchNorm gives them.

    Parameters
    ----------
    recipe
        Gives every value that is not searched. The ranges of the learning rate are a tenth
        of its own to ten times it.
    out
        The search's folder. Without `storage` workers find each other by it; its file system
        must have locks (flock), as local disks and NFS do.
    seeds
        Runs a trial, with the seeds that follow the recipe's.
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
    space = search_space(recipe, store, seeds=seeds, fixed=fixed)
    with sharing.naming("search", storage, out / JOURNAL):
        study = _open_study(space, store, out, seeds=seeds, storage=storage)
        with tqdm(total=trials, desc="search", unit=" trials", disable=not progress) as bar:
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
        return conclude(study, space, out)


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
        """Train a trial; return its AUC after the last epoch."""
        if place_of(trial.study, trial.number) >= self.trials:
            raise sharing.SurplusTrial
        with sharing.leaving(trial):
            return self._train(trial)

    def _train(self, trial: Trial) -> float:
        recipe = self.space.suggest(trial)
        trial_runs = self._open_runs(trial, recipe)
        auc = float("nan")
        try:
            for results in zip(*map(_epochs, trial_runs), strict=True):
                epoch, auc = results[0].epoch, float(np.mean([r.valid_auc for r in results]))
                self._show(trial.study, f"trial {trial.number}, epoch {epoch}: {auc:.4f}")
                trial.report(auc, epoch)
                if epoch < recipe.epochs and trial.should_prune():
                    raise TrialPruned
        except torch.OutOfMemoryError as error:
            _prune(trial, f"out of memory: {error}")
        except KitError as error:
            # What the disk or the network refuses is no fault of the recipe; divergence is.
            if isinstance(error.__cause__, OSError):
                raise
            _prune(trial, str(error))
        return auc

    def _open_runs(self, trial: Trial, recipe: Recipe) -> list[Run]:
        folder = self.out / "trials" / trial_name(trial)
        resume = "folder" in trial.user_attrs
        if self.seeds == 1:
            return [self._open_run(recipe, folder, resume=resume)]
        return [
            self._open_run(seeded, folder / f"seed-{seeded.seed}", resume=resume)
            for seeded in seeded_recipes(recipe, self.seeds)
        ]

    def _open_run(self, recipe: Recipe, folder: Path, *, resume: bool) -> Run:
        """Open a trial's run where a dead worker left it, or anew."""
        if resume:
            # It may not have got so far, or have been another version's or device's.
            with suppress(KitError):
                return Run(
                    recipe,
                    self.store,
                    folder,
                    device=self.device,
                    workers=self.workers,
                    resume=True,
                )
            shutil.rmtree(folder, ignore_errors=True)
        return Run(recipe, self.store, folder, device=self.device, workers=self.workers)

    def _tidy(self, study: Study, trial: FrozenTrial) -> None:
        """Drop a finished trial's checkpoints, and tell what is known by now."""
        for checkpoint in (self.out / "trials" / trial_name(trial)).rglob("last.pt"):
            checkpoint.unlink()
        if count_trials(study, TrialState.COMPLETE):
            conclude(study, self.space, self.out)

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


def _prune(trial: Trial, reason: str) -> None:
    trial.set_user_attr("reason", reason)
    raise TrialPruned(reason)


def _open_study(space: Space, store: Store, out: Path, *, seeds: int, storage: str | None) -> Study:
    """Open or create the search in a folder and a storage, or refuse another one."""
    record = {
        **recipe_values(space.recipe),
        "searched": sorted(space.free),
        "seeds": seeds,
        "data": store.fingerprint,
        "kit": kit.__version__,
    }
    name = "search" if storage is None else out.resolve().name
    place = {"storage": sharing.storage_name(storage, Path(JOURNAL)), "study": name}
    with FolderLock(out, wait=True):
        path = out / "search.json"
        if path.exists():
            _check_same(out, json.loads(path.read_text("utf-8")), record | place)
        study = optuna.create_study(
            study_name=name,
            direction="maximize",
            storage=sharing.open_storage(storage, out / JOURNAL, begin_again),
            sampler=NumberedTPE(space.recipe.seed),
            # The first epochs say little, least of all of a slow learner.
            pruner=MedianPruner(n_startup_trials=5, n_warmup_steps=space.recipe.epochs // 4),
            load_if_exists=True,
        )
        _check_same(
            sharing.storage_name(storage, out / JOURNAL),
            study.user_attrs.get("search", record),
            record,
        )
        study.set_user_attr("search", record)
        write_text(path, json.dumps(record | place, indent=2) + "\n")
    return study


def _check_same(where: Path | str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a search of something else."""
    changed = [key for key in now if then.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise KitError(
            f"{where} holds another search: its {key} is {then.get(key)!r}, not {now[key]!r}. "
            "Choose another --out"
        )
