"""Hyper-parameter search with Optuna: pruned, resumable, shared by many workers.

OUT/search.json      what is searched: the base recipe, the data, the seeds
OUT/search.journal   Optuna's storage, unless a database is named
OUT/trials/NNNN      a run folder a trial; with several seeds, one a seed in it
OUT/trials.csv       the finished trials
OUT/importance.json  what decided
OUT/best.toml        the best trial's recipe
"""

import fcntl
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import tomli_w
import torch
from optuna import Study, Trial, TrialPruned
from optuna.distributions import BaseDistribution
from optuna.exceptions import (
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from torch import nn
from tqdm import tqdm

import kit
from kit import competition, config, models, runs
from kit.config import Count, Recipe, RunOptions
from kit.errors import KitError
from kit.files import write_text
from kit.runs import Run
from kit.store import Store
from kit.training import EpochResult

IMPORTANCE_TRIALS = 10
"""Trials that must finish before importances are computed."""

# How often a trial is begun again that never reached the end of its first epoch: what kills
# it, as a lack of memory does, would otherwise kill the search at the same place for ever.
ATTEMPTS = 3

BATCH_SIZES = (32, 64, 128, 256)
SEARCHED = ("lr", "batch_size", "weight_decay", "crop", "size", "augment", "stain_strength")
SEARCHED_SMALL = ("widths", "bn", "bn_momentum")

# Seconds between a database worker's signs of life, until it is given up, and between looks
# at trials that others run.
_HEARTBEAT = 20
_GRACE = 60
_POLL = 1.0

_STORAGE_ERRORS = (SQLAlchemyError, StorageInternalError, OSError)
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(RunOptions):
    """The recipe that a search starts from, what it runs on, and how long."""

    out: Path = Path("studies/search")
    """The search's folder; the same command goes on with it, or joins in."""
    trials: Count = 40
    """Trials to finish in all, whichever worker runs them."""
    seeds: Count = 1
    """Runs a trial, each with a seed and so a holdout of its own; their mean AUC counts."""
    storage: str | None = None
    """Database for workers that share no folder, as postgresql://...; a file in --out if none."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    recipe
        The best trial's, as best.toml holds it.
    auc
        The best trial's validation AUC after its last epoch: optimistic, as it is the highest
        of many on one holdout.
    folder
        The best trial's run folder, on the machine that trained it.
    importances
        Share of each parameter in what sets the best quarter of the finished trials apart;
        they sum to 1. Empty where fewer than `IMPORTANCE_TRIALS` finished.
    complete, pruned
        Trials that were trained to the end, and trials that were stopped.
    """

    recipe: Recipe
    auc: float
    folder: Path
    importances: dict[str, float]
    complete: int
    pruned: int


@dataclass(frozen=True)
class Space:
    """What a search varies of a recipe, and how far.

    Attributes
    ----------
    free
        The recipe's options that are searched; all others keep their values.
    sizes
        Of the network's input, in pixels.
    """

    recipe: Recipe
    free: frozenset[str]
    batch_sizes: tuple[int, ...]
    sizes: range

    def suggest(self, trial: BaseTrial) -> Recipe:
        """Draw a recipe, of which a model can always be built."""
        lr, sizes = self.recipe.lr, self.sizes
        draws: dict[str, Callable[[], Any]] = {
            "lr": lambda: trial.suggest_float("lr", lr / 10, lr * 10, log=True),
            "batch_size": lambda: trial.suggest_categorical("batch_size", self.batch_sizes),
            "weight_decay": lambda: trial.suggest_float("weight_decay", 1e-5, 0.3, log=True),
            "crop": lambda: trial.suggest_int("crop", 32, competition.TILE_SIZE, step=16),
            "size": lambda: trial.suggest_int("size", sizes[0], sizes[-1], step=sizes.step),
            "augment": lambda: trial.suggest_categorical("augment", ("none", "d4", "stain")),
            "bn": lambda: trial.suggest_categorical("bn", ("before", "after")),
            "bn_momentum": lambda: (
                1 - trial.suggest_float("bn_momentum_in_pytorch", 1e-3, 0.5, log=True)
            ),
        }
        recipe = replace(
            self.recipe, **{name: draw() for name, draw in draws.items() if name in self.free}
        )
        if "stain_strength" in self.free and recipe.augment == "stain":
            strength = trial.suggest_float("stain_strength", 0.25, 2)
            recipe = replace(recipe, stain_strength=strength)
        if "widths" in self.free:
            recipe = replace(recipe, widths=_suggest_widths(trial, recipe.size))
        return recipe


def search_space(
    recipe: Recipe, store: Store, *, seeds: int = 1, fixed: Collection[str] = ()
) -> Space:
    """Find what of a recipe can be searched on a store.

    Parameters
    ----------
    fixed
        Names of options that keep the recipe's value.

    Raises
    ------
    KitError
        If the recipe's own model cannot be built, or nothing is left to search.
    """
    model = models.create_model(replace(recipe, pretrained=False, weights=None))
    free = set(SEARCHED) - set(fixed)
    if not recipe.is_backbone:
        free |= set(SEARCHED_SMALL) - set(fixed)
    sizes = _sizes(recipe, model, widths_are_free="widths" in free)
    tiles = min(len(runs.choose_holdout(seeded, store).train) for seeded in _seeded(recipe, seeds))
    batch_sizes = tuple(size for size in BATCH_SIZES if size <= tiles)
    free -= {name for name, values in (("size", sizes), ("batch_size", batch_sizes)) if not values}
    if not free:
        raise KitError("nothing is left to search: give fewer options by name")
    return Space(recipe, frozenset(free), batch_sizes, sizes)


def run(
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
    # The bar tells what they would; what ends a search is told once, as an error.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
    space = search_space(recipe, store, seeds=seeds, fixed=fixed)
    with _named_storage(out, storage):
        study = _open_study(space, store, out, seeds=seeds, storage=storage)
        with tqdm(total=trials, desc="search", unit=" trials", disable=not progress) as bar:
            worker = _Worker(space, store, out, trials, seeds, device, workers, bar)
            worker.work(study, shared_folder=storage is None)
        return _conclude(study, space, out)


class _SurplusTrial(Exception):
    """Ends a trial that was begun although enough of them were under way."""


class _LeaveTrial(BaseException):
    """Passes by Optuna's handlers, so that the trial stays as a killed worker would leave it."""


@dataclass(frozen=True)
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
        while (finished := _count(study, *_FINISHED)) < self.trials:
            self._show(study)
            _begin_dead_again(study, self.out / "trials.lock" if shared_folder else None)
            running = _count(study, TrialState.RUNNING)
            if finished + running < self.trials:
                self._train_one(study)
            else:
                self._show(study, f"waiting for {running} trials of other workers")
                time.sleep(_POLL)
        self._show(study)

    def _train_one(self, study: Study) -> None:
        try:
            with _locked(self.out / "trials.lock", fcntl.LOCK_SH):
                study.optimize(
                    self._objective, n_trials=1, catch=(_SurplusTrial,), callbacks=[self._tidy]
                )
        except _LeaveTrial as left:
            assert left.__cause__ is not None
            raise left.__cause__ from None

    def _objective(self, trial: Trial) -> float:
        """Train a trial; return its AUC after the last epoch."""
        if _place(trial.study, trial.number) >= self.trials:
            raise _SurplusTrial
        try:
            return self._train(trial)
        except UpdateFinishedTrialError as error:
            raise _LeaveTrial from KitError(
                f"trial {trial.number} was given up: nothing was heard of this machine for "
                f"{_GRACE} seconds. Type the same command again to go on ({error})"
            )
        except (KitError, KeyboardInterrupt, *_STORAGE_ERRORS) as error:
            raise _LeaveTrial from error

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
        folder = self.out / "trials" / _trial_name(trial)
        resume = "folder" in trial.user_attrs
        if self.seeds == 1:
            return [self._open_run(recipe, folder, resume=resume)]
        return [
            self._open_run(seeded, folder / f"seed-{seeded.seed}", resume=resume)
            for seeded in _seeded(recipe, self.seeds)
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
        for checkpoint in (self.out / "trials" / _trial_name(trial)).rglob("last.pt"):
            checkpoint.unlink()
        if _count(study, TrialState.COMPLETE):
            _conclude(study, self.space, self.out)

    def _show(self, study: Study, doing: str = "") -> None:
        """Move the bar to the trials that are finished, by any worker."""
        self.bar.n = min(_count(study, *_FINISHED), self.trials)
        best = f"best AUC {study.best_value:.4f}" if _count(study, TrialState.COMPLETE) else ""
        self.bar.set_postfix_str("; ".join(filter(None, (best, doing))))


class _NumberedTPE(BaseSampler):
    """TPE whose draws follow from a seed and the trial's place, not from who runs it.

    One sampler's state for all trials would make workers of one seed draw the same trials,
    and a search that goes on draw its first ones again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.tpe = self._create(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.tpe = self._create(_place(study, trial.number))

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
        with _no_experimental_warning():
            return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


class _JournalLock(JournalFileOpenLock):
    """A lock that ends with its process; Optuna's own outlive a killed one by half a minute."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        self.file = self.path.open("a")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self.file.close()


def _suggest_widths(trial: BaseTrial, size: int) -> tuple[int, ...]:
    """Draw widths that double from layer to layer, as the study's do."""
    width = trial.suggest_int("width", 16, 64, step=8)
    deepest = sum(_smallest_input(convolutions) <= size for convolutions in (1, 2, 3))
    convolutions = trial.suggest_int("convolutions", 2, 3) if deepest == 3 else deepest
    return tuple(width * 2**layer for layer in range(convolutions + 1))


def _sizes(recipe: Recipe, model: nn.Module, *, widths_are_free: bool) -> range:
    """Return the inputs to try, in pixels, that the model can take."""
    if not recipe.is_backbone:
        smallest = 32 if widths_are_free else _smallest_input(len(recipe.widths) - 1)
        return range(max(32, 16 * math.ceil(smallest / 16)), competition.TILE_SIZE + 1, 16)
    if getattr(model, "default_cfg", {}).get("fixed_input_size"):
        return range(0)
    # Backbones halve their input five times, and were trained on larger ones.
    return range(96, 193, 32)


def _smallest_input(convolutions: int) -> int:
    """Return the smallest input of the small CNN, from its last pixel upwards."""
    side = 1
    for _ in range(convolutions):
        side = 3 * side + 2
    return side


def _seeded(recipe: Recipe, seeds: int) -> list[Recipe]:
    return [replace(recipe, seed=recipe.seed + offset) for offset in range(seeds)]


def _epochs(run: Run) -> Iterator[EpochResult]:
    """Yield a run's epochs, those of a resumed one from the first."""
    yield from tuple(run.history)
    yield from run.train(progress=False)


def _prune(trial: Trial, reason: str) -> None:
    trial.set_user_attr("reason", reason)
    raise TrialPruned(reason)


def _count(study: Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _place(study: Study, number: int) -> int:
    """Count the trials before one, without those that were begun again or given up."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.number < number and trial.state != TrialState.FAIL for trial in trials)


def _trial_name(trial: Trial | FrozenTrial) -> str:
    """Return the name of a trial's folder, which stays with it when it is begun again."""
    return str(trial.user_attrs.get("folder", f"{trial.number:04d}"))


def _begin_dead_again(study: Study, lock: Path | None) -> None:
    """Begin the trials again whose workers died.

    A worker holds a shared lock while it trains, and loses it with its life: who gets the
    lock for itself alone knows that no trial is being trained. Workers that share a database
    and perhaps no folder have the database's heartbeats instead.
    """
    if lock is None:
        with _no_experimental_warning():
            optuna.storages.fail_stale_trials(study)
        return
    with suppress(BlockingIOError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            _begin_again(study, trial)


def _begin_again(study: Study, trial: FrozenTrial) -> None:
    """Put a failed trial's twin in front of the queue."""
    attempt = trial.user_attrs.get("attempt", 1)
    if trial.intermediate_values or attempt < ATTEMPTS:
        attributes = {"folder": _trial_name(trial), "attempt": attempt + 1}
        study.enqueue_trial(trial.params, user_attrs=attributes)


def _open_study(space: Space, store: Store, out: Path, *, seeds: int, storage: str | None) -> Study:
    """Open or create the search in a folder and a storage, or refuse another one."""
    record = {
        **config.recipe_values(space.recipe),
        "searched": sorted(space.free),
        "seeds": seeds,
        "data": store.fingerprint,
        "kit": kit.__version__,
    }
    name = "search" if storage is None else out.resolve().name
    place = {"storage": _storage_name(storage, Path()), "study": name}
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out / "search.lock", fcntl.LOCK_EX):
        path = out / "search.json"
        if path.exists():
            _check_same(out, json.loads(path.read_text("utf-8")), record | place)
        study = optuna.create_study(
            study_name=name,
            direction="maximize",
            storage=_open_storage(storage, out),
            sampler=_NumberedTPE(space.recipe.seed),
            # The first epochs say little, least of all of a slow learner.
            pruner=MedianPruner(n_startup_trials=5, n_warmup_steps=space.recipe.epochs // 4),
            load_if_exists=True,
        )
        _check_same(_storage_name(storage, out), study.user_attrs.get("search", record), record)
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


def _open_storage(storage: str | None, out: Path) -> BaseStorage:
    if storage is None:
        path = out / "search.journal"
        lock = _JournalLock(out / "journal.lock")
        try:
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        except ValueError as error:
            raise KitError(f"{path} is damaged: choose another --out ({error})") from error
    try:
        with _no_experimental_warning():
            return RDBStorage(
                storage,
                # A connection may be cut while nothing is said for an epoch.
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=_HEARTBEAT,
                grace_period=_GRACE,
                heartbeat_stale_trial_callback=_begin_again,
            )
    except (ImportError, RuntimeError) as error:
        # No driver for it, or tables of another version of Optuna.
        raise KitError(f"cannot use {_storage_name(storage, out)}: {error}") from error


def _storage_name(storage: str | None, out: Path) -> str:
    """Return a storage's address, without who uses it by what password."""
    return str(out / "search.journal") if storage is None else storage.rpartition("@")[2]


@contextmanager
def _named_storage(out: Path, storage: str | None) -> Iterator[None]:
    """Say of which storage it is that an error comes."""
    try:
        yield
    except _STORAGE_ERRORS as error:
        reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
        raise KitError(
            f"cannot keep the search in {_storage_name(storage, out)}: {reason}. What is "
            "finished is kept: the same command goes on"
        ) from error


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    """Hold a lock that ends with the process, however that ends."""
    with path.open("a") as file:
        fcntl.flock(file, operation)
        yield


@contextmanager
def _no_experimental_warning() -> Iterator[None]:
    """Silence Optuna's note that an interface may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _conclude(study: Study, space: Space, out: Path) -> SearchResult:
    """Write what the search found by now, and return it."""
    finished = study.get_trials(deepcopy=False, states=_FINISHED)
    complete = _count(study, TrialState.COMPLETE)
    if not complete:
        reasons = [str(trial.user_attrs.get("reason", "pruned")) for trial in finished]
        raise KitError(f"none of {len(finished)} trials reached its last epoch: {reasons[0]}")
    best = study.best_trial
    result = SearchResult(
        recipe=space.suggest(FixedTrial(best.params)),
        auc=study.best_value,
        folder=out / "trials" / _trial_name(best),
        importances=_importances(study) if complete >= IMPORTANCE_TRIALS else {},
        complete=complete,
        pruned=len(finished) - complete,
    )
    # Workers of one folder end at the same moment.
    with _locked(out / "search.lock", fcntl.LOCK_EX):
        write_text(out / "trials.csv", _table(finished).to_csv(index=False, lineterminator="\n"))
        write_text(out / "importance.json", _importance_json(result))
        write_text(out / "best.toml", _best_toml(result, out))
    return result


def _importances(study: Study) -> dict[str, float]:
    """Return each parameter's share by PED-ANOVA (Watanabe et al., IJCAI 2023)."""
    # Of the tenth that is Optuna's default a search of this size leaves a trial or two.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
    with warnings.catch_warnings():
        # Of parameters that fewer than two trials have: they get no share.
        warnings.simplefilter("ignore", UserWarning)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _table(trials: list[FrozenTrial]) -> pd.DataFrame:
    """Return a row a finished trial; the AUC is that of its last epoch."""
    parameters = sorted({name for trial in trials for name in trial.params})
    rows = [
        {
            "trial": _trial_name(trial),
            "state": trial.state.name.lower(),
            "auc": trial.value,
            "epochs": trial.last_step or 0,
            **{name: trial.params.get(name) for name in parameters},
            "reason": trial.user_attrs.get("reason"),
        }
        for trial in trials
    ]
    return pd.DataFrame(rows, dtype=object)


def _importance_json(result: SearchResult) -> str:
    values = {
        "complete": result.complete,
        "needed": IMPORTANCE_TRIALS,
        "importances": result.importances,
    }
    return json.dumps(values, indent=2) + "\n"


def _best_toml(result: SearchResult, out: Path) -> str:
    return (
        f"# The best of {result.complete + result.pruned} trials of the search in {out}: "
        f"validation AUC {result.auc:.4f} in trials/{result.folder.name}.\n"
        "# It is optimistic: the recipe was chosen for it, on that very holdout.\n"
        + _recipe_toml(result.recipe)
    )


def _recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as `config.read_recipe` takes it; None stands where it is no default."""
    defaults = Recipe()
    values = {
        name: "None" if value is None else value
        for name, value in config.recipe_values(recipe).items()
        if value is not None or getattr(defaults, name) is not None
    }
    return tomli_w.dumps(values)
