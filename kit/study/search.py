"""Hyper-parameter search with Optuna: pruned, resumable, shared by many workers.

OUT/search.json      what is searched: the base recipe, the data, the seeds
OUT/search.journal   Optuna's storage, unless a database is named
OUT/trials/NNNN      a run folder a trial; with several seeds, one a seed in it
OUT/trials.csv       the finished trials
OUT/importance.json  what decided
OUT/best.toml        the best trial's recipe
"""

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
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
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState
from torch import nn
from tqdm import tqdm

import kit
from kit import models
from kit.base import (
    EpochResult,
    FolderLock,
    KitError,
    Recipe,
    competition,
    recipe_values,
    write_text,
)
from kit.data import split
from kit.data.store import Store
from kit.runs import Run
from kit.study import sharing

IMPORTANCE_TRIALS = 10
"""Trials that must finish before importances are computed."""

# How often a trial is begun again that never reached the end of its first epoch: what kills
# it, as a lack of memory does, would otherwise kill the search at the same place for ever.
ATTEMPTS = 3

JOURNAL = "search.journal"

BATCH_SIZES = (32, 64, 128, 256)
SEARCHED = ("lr", "batch_size", "weight_decay", "crop", "size", "augment", "stain_strength")
SEARCHED_SMALL = ("widths", "bn", "bn_momentum")

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


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
    tiles = min(len(split.choose_holdout(seeded, store).train) for seeded in _seeded(recipe, seeds))
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
    sharing.silence()
    space = search_space(recipe, store, seeds=seeds, fixed=fixed)
    with sharing.naming("search", storage, out / JOURNAL):
        study = _open_study(space, store, out, seeds=seeds, storage=storage)
        with tqdm(total=trials, desc="search", unit=" trials", disable=not progress) as bar:
            worker = _Worker(space, store, out, trials, seeds, device, workers, bar)
            worker.work(study, shared_folder=storage is None)
        return _conclude(study, space, out)


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
        lock = self.out / "trials.lock" if shared_folder else None
        while (finished := _count(study, *_FINISHED)) < self.trials:
            self._show(study)
            sharing.give_up_dead(study, lock, _begin_again)
            running = _count(study, TrialState.RUNNING)
            if finished + running < self.trials:
                sharing.optimize_one(study, self._objective, lock, [self._tidy])
            else:
                self._show(study, f"waiting for {running} trials of other workers")
                time.sleep(sharing.POLL)
        self._show(study)

    def _objective(self, trial: Trial) -> float:
        """Train a trial; return its AUC after the last epoch."""
        if _place(trial.study, trial.number) >= self.trials:
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
        with sharing.no_experimental_warning():
            return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


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


def _begin_again(study: Study, trial: FrozenTrial) -> None:
    """Put a failed trial's twin in front of the queue."""
    attempt = trial.user_attrs.get("attempt", 1)
    if trial.intermediate_values or attempt < ATTEMPTS:
        attributes = {"folder": _trial_name(trial), "attempt": attempt + 1}
        study.enqueue_trial(trial.params, user_attrs=attributes)


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
            storage=sharing.open_storage(storage, out / JOURNAL, _begin_again),
            sampler=_NumberedTPE(space.recipe.seed),
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
    with FolderLock(out, wait=True):
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
    """Return a recipe as `read_recipe` takes it; None stands where it is no default."""
    defaults = Recipe()
    values = {
        name: "None" if value is None else value
        for name, value in recipe_values(recipe).items()
        if value is not None or getattr(defaults, name) is not None
    }
    return tomli_w.dumps(values)
