"""A run that is being trained into its folder."""

import hashlib
import json
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from kit import models
from kit.base import (
    EpochResult,
    Floats,
    FolderLock,
    KitError,
    Recipe,
    StoppedError,
    atomic_path,
    handle_signals,
    parse_recipe,
    write_json,
    write_text,
)
from kit.data import (
    Store,
    check_batch,
    write_split,
)
from kit.runs.architecture import keep_architecture, rebuilding_recipe
from kit.runs.checkpoint import load_checkpoint, write_checkpoint
from kit.runs.custom import keep_code
from kit.runs.folder import inside, read_config, require_free
from kit.runs.holdout import holdout_fingerprint, resumed_holdout, run_holdout
from kit.runs.identity import compare, describe, require_same
from kit.runs.loaders import RunLoaders
from kit.runs.predictions import write_predictions
from kit.runs.refit import refit_record, unjudged, write_refit
from kit.runs.stopping import StopRequest
from kit.runs.teachers import open_teachers, still_taught
from kit.training import (
    Evaluate,
    NonFiniteLossError,
    TrainingBar,
    TrainingState,
    choose_device,
    choose_precision,
    distributed,
    evaluate,
    explain_full_memory,
    fit,
    judge_epoch,
    predict_logits,
    recalibrate,
    settle_on_kept,
)


class Run:
    """A run that is being trained into its folder.

    Nothing is written before all that can be checked was checked. Of several processes (see
    `distributed`) only the one of rank 0 writes.

    Parameters
    ----------
    folder
        Made here; an existing one is refused, or with `resume` taken up where it stands.
    device
        `auto`, `cpu`, `cuda`, ...
    workers
        Processes that load the training tiles; 0 loads them in this one, or holds them in a
        GPU's memory where they fit.
    force
        Resume although epochs, device, precision or versions have changed, or the recipe now
        gives another holdout than split.csv, which is kept.
    checkpoint_steps
        Steps between two checkpoints within an epoch; there is one after each epoch, too.
    refit_of
        A finished run of this recipe, see `refit_recipe`: all its tiles are trained on, and what
        is said of the holdout is what that run has found.
    record
        Further entries of config.json, which say how the run was begun.

    Attributes
    ----------
    on_epoch
        Called, if set, with each epoch's result when it has been kept, in the process of rank 0. A
        request to stop waits for its end.

    Raises
    ------
    KitError
        If the recipe cannot be trained on this data, the folder exists, or there is nothing to
        resume, or the run to resume is another one, or another process trains in it.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        folder: Path,
        *,
        device: str = "auto",
        workers: int = 0,
        resume: bool = False,
        force: bool = False,
        checkpoint_steps: int = 500,
        refit_of: Path | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe = recipe = models.follow_model(recipe)
        self.store = store
        self.folder = folder
        self.device = choose_device(device)
        self.dtype = choose_precision(recipe.precision, self.device)
        self.checkpoint_steps = checkpoint_steps
        self.refit_of = None if refit_of is None else refit_record(refit_of, store)
        self.rank = distributed.rank()
        self.history: list[EpochResult] = []
        self.on_epoch: Callable[[EpochResult], None] | None = None
        begun = self._begun(force=force) if resume else None
        if not resume and self.rank == 0:
            require_free(folder)
        self.holdout = (
            resumed_holdout(folder, recipe, store, force=force, refit=self.is_refit)
            if resume
            else run_holdout(recipe, store, refit=self.is_refit)
        )
        check_batch(len(self.holdout.train), recipe.batch_size)
        taught = still_taught(recipe, folder)
        self.teachers = open_teachers(taught, store, self.holdout, str(self.device))
        self.loaders = RunLoaders(recipe, store, self.holdout, device=self.device, workers=workers)
        self.state = self._restore() if resume else self._new_state(recipe)
        if self.rank == 0:
            self._claim(begun, record or {})

    @property
    def is_refit(self) -> bool:
        """Whether it holds no tiles out."""
        return self.refit_of is not None

    def _begun(self, *, force: bool) -> dict[str, Any]:
        """Return the record of the run to resume, which must be this one."""
        begun = read_config(self.folder)
        require_same(self.folder, compare(begun, self._identity), force=force)
        return begun

    def _new_state(self, recipe: Recipe) -> TrainingState:
        return TrainingState(
            models.create_model(recipe),
            still_taught(recipe, self.folder),
            steps_per_epoch=len(self.holdout.train) // recipe.batch_size,
            device=self.device,
            dtype=self.dtype,
            teachers=self.teachers,
        )

    def _restore(self) -> TrainingState:
        """Return the state of the last checkpoint, or of the start where there is none."""
        path = inside(self.folder, "last.pt")
        if not path.is_file():
            if (self.folder / "history.jsonl").exists():
                raise KitError(
                    f"{path}, which the run would go on from, is gone: train it again with "
                    "another --out"
                )
            return self._new_state(self.recipe)
        # The weights that the run began with are not needed any more. A person's own network is
        # built from the code that the recipe names, which is what the run began with.
        is_custom = "model" in self.recipe.custom
        recipe = self.recipe if is_custom else rebuilding_recipe(self.folder, self.recipe)
        state = self._new_state(recipe)
        self.history = load_checkpoint(path, state, self._identity)
        if state.epoch > self.recipe.epochs:
            raise KitError(
                f"{self.folder} is trained for {state.epoch} epochs already: ask for "
                f"--epochs {state.epoch} or more"
            )
        return state

    def _claim(self, begun: dict[str, Any] | None, record: Mapping[str, Any]) -> None:
        """Make the folder this process's own, and write down what the run is."""
        self._lock = FolderLock(self.folder)
        now = self._config(record)
        if begun is None:
            # Whoever had the lock before may have trained here.
            require_free(self.folder)
            write_json(self.folder / "config.json", now)
            keep_architecture(self.folder, self.recipe)
            keep_code(self.folder, self.recipe)
        elif compare(begun, now).any or begun.get("processes", 1) != now["processes"]:
            if parse_recipe(begun["recipe"], source="config.json").epochs != self.recipe.epochs:
                # It is not finished any more: metrics.json, which says so, goes first.
                for name in ("metrics.json", "valid.csv", "model.safetensors"):
                    (self.folder / name).unlink(missing_ok=True)
            # Those that are not asked any more are not looked at.
            teachers = {"teachers": begun.get("teachers", {}) | now["teachers"]}
            write_json(self.folder / "config.json", now | teachers | {"resumed_from": begun})
        write_split(self.folder / "split.csv", self.store.train.ids, self.holdout)
        if self.history:
            self._write_history()

    def close(self) -> None:
        """Let others train in the folder: no object of this run may go on with it."""
        self._lock.release()

    def train(
        self, *, evaluate: Evaluate = evaluate, progress: bool | TrainingBar = True
    ) -> Generator[EpochResult, None, None]:
        """Train to the last epoch, keeping checkpoints, and yield each epoch's result.

        After the last one the folder holds the weights, the holdout's predictions and the final
        figures. Whatever fails there is repeated by a run that is resumed.

        Parameters
        ----------
        evaluate, progress
            See `training.fit`.

        Raises
        ------
        StoppedError
            After SIGTERM or Ctrl-C, when a checkpoint has been written: after the step that is
            being taken, or at once between two epochs, in the caller's own code.
        KitError
            If the loss stops being a number, when the batch's tiles and the checkpoint are named;
            or if a memory is full.
        """
        stop = StopRequest(self._stopped)
        with handle_signals(stop.at_once, signal.SIGTERM, signal.SIGINT):
            yield from self._train(stop, evaluate, progress)

    def _train(
        self, stop: StopRequest, evaluate: Evaluate, progress: bool | TrainingBar
    ) -> Iterator[EpochResult]:
        with explain_full_memory(self.device, "loading tiles"):
            train = self.loaders.train_share()
            # A refit evaluates nothing.
            valid = train if self.is_refit else self.loaders.valid_share()
        results = fit(
            self.state,
            train,
            valid,
            after_step=lambda: self._after_step(stop),
            evaluate=unjudged if self.is_refit else evaluate,
            progress=progress if self.rank == 0 else False,
        )
        try:
            # Its bar ends before a message comes.
            with closing(results):
                while (result := self._train_epoch(results, stop)) is not None:
                    yield result
        except NonFiniteLossError as error:
            raise self._explain(error) from error
        # What is left is rank 0's, which needs no one for it.
        distributed.leave_group()
        if self.rank == 0:
            self._finish()

    def _train_epoch(self, results: Iterator[EpochResult], stop: StopRequest) -> EpochResult | None:
        """Train the next epoch and keep its end; None where there is none left."""
        # Not while a result is looked at: others may train between two of this run's epochs.
        with handle_signals(stop, signal.SIGTERM, signal.SIGINT):
            result = next(results, None)
            if result is not None:
                self.history.append(result)
                if self.recipe.keep == "best":
                    judge_epoch(self.state, result, self.loaders.plain_train, self.loaders.valid)
                self._checkpoint()
                self._tell(result)
        if stop.number and distributed.world_size() == 1:
            raise self._stopped(stop.number)
        return result

    def _tell(self, result: EpochResult) -> None:
        if self.on_epoch is not None and self.rank == 0:
            self.on_epoch(result)

    def _stopped(self, number: int) -> StoppedError:
        """Say where the training stands that a signal has stopped."""
        epoch, step = self.state.epoch, self.state.progress.step
        if not epoch and not step:
            return StoppedError("stopped before the first step", by=number)
        place = f"in epoch {epoch + 1}, step {step}" if step else f"after epoch {epoch}"
        return StoppedError(f"stopped {place}, which {self.folder} holds", by=number)

    def recalibrate(self, batches: int | None = None) -> None:
        """Replace BatchNorm's running statistics by those of the training tiles.

        Parameters
        ----------
        batches
            Only the first ones, of `EVAL_BATCH_SIZE` tiles at most; None takes all.
        """
        recalibrate(
            self.state.model,
            islice(self.loaders.plain_train, batches),
            self.state.normalize,
            device=self.device,
            dtype=self.dtype,
        )

    def _after_step(self, stop: StopRequest) -> None:
        """Keep a checkpoint when it is time, or when the process was asked to stop."""
        progress = self.state.progress
        # All processes stop at the same step, or those that go on would wait for the others.
        number = int(max(distributed.all_reduce(stop.number)))
        if number or progress.step % self.checkpoint_steps == 0:
            self._checkpoint()
        if number:
            raise self._stopped(stop.number or signal.SIGTERM)

    def _explain(self, error: NonFiniteLossError) -> KitError:
        """Name the tiles of a batch whose loss is no number, and where to go on from."""
        ids = ", ".join(self.store.train.ids[self.holdout.train[error.indices]])
        last = self.folder / "last.pt"
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was kept"
        return KitError(
            f"{error}: try a smaller --lr, or --precision fp32; {kept}. The batch's tiles: {ids}"
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        refit_of = {} if self.refit_of is None else {"refit_of": self.refit_of}
        return describe(self.recipe, self.store, self.folder, self.device) | refit_of

    def _config(self, record: Mapping[str, Any]) -> dict[str, Any]:
        sides = {
            "train_tiles": len(self.holdout.train),
            "valid_tiles": len(self.holdout.valid),
            "split": holdout_fingerprint(self.store, self.holdout),
        }
        return {
            **self._identity,
            "data": self._identity["data"] | sides,
            "workers": self.loaders.workers,
            "holds_tiles": self.loaders.holds_tiles,
            "processes": distributed.world_size(),
            # Sums are rounded in another order by another number of threads.
            "threads": torch.get_num_threads(),
            "deterministic": self.device.type == "cpu"
            or torch.are_deterministic_algorithms_enabled(),
            **record,
        }

    def _checkpoint(self) -> None:
        """Keep the state after a step: last.pt first, from which the history follows."""
        state = self.state.state_dict()
        if self.rank == 0:
            write_checkpoint(self.folder / "last.pt", state, self.history, self._identity)
            self._write_history()

    def _write_history(self) -> None:
        lines = [json.dumps(asdict(result)) + "\n" for result in self.history]
        write_text(self.folder / "history.jsonl", "".join(lines))

    def _finish(self) -> None:
        """Write what a finished run is used for; metrics.json comes last and says so."""
        kept_epoch = settle_on_kept(self.state, self.loaders.plain_train)
        state = self.state.model.state_dict()
        weights = save({name: tensor.contiguous() for name, tensor in state.items()})
        with atomic_path(self.folder / "model.safetensors") as partial:
            partial.write_bytes(weights)
        sha256 = {"model.safetensors": hashlib.sha256(weights).hexdigest()}
        logits = None if self.is_refit else self._valid_logits()
        self._write_figures(logits, kept_epoch=kept_epoch, sha256=sha256)

    def _valid_logits(self) -> Floats:
        return predict_logits(
            self.state.model,
            self.loaders.valid,
            self.state.normalize,
            views=self.recipe.views,
            device=self.device,
            dtype=self.dtype,
        )

    def _write_figures(self, logits: Floats | None, **also: Any) -> None:
        """Write what the run makes of its holdout; a refit, which has none, what its run made."""
        if logits is None:
            write_refit(self.folder, **also)
            return
        valid = self.holdout.valid
        ids, labels = self.store.train.ids[valid], self.store.labels[valid]
        write_predictions(self.folder, ids, labels, logits, **also)
