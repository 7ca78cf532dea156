"""A run that is being trained into its folder."""

import copy
import json
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import save
from torch.utils.data import DataLoader

import kit
from kit import models
from kit.base import (
    CLASS_NAMES,
    EpochResult,
    FolderLock,
    KitError,
    Recipe,
    StoppedError,
    atomic_path,
    recipe_values,
    write_text,
)
from kit.data import (
    Batch,
    Store,
    TileDataset,
    check_batch,
    eval_loader,
    fits_on_device,
    recipe_dataset,
    recipe_holdout,
    train_loader,
    write_split,
)
from kit.runs.checkpoint import read_checkpoint, write_checkpoint
from kit.runs.folder import inside, is_content, read_config, write_json, write_predictions
from kit.training import (
    Evaluate,
    NonFiniteLossError,
    TrainingBar,
    TrainingState,
    choose_device,
    choose_precision,
    distributed,
    evaluate,
    fit,
    predict,
    recalibrate,
)

# What must be the same for a resumed run to be the run that was never interrupted.
_MUST_MATCH = ("recipe", "data", "kit", "torch", "precision", "device")


class Run:
    """A run that is being trained into its folder.

    Of several processes (see `distributed`) only the one of rank 0 writes.

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
        Resume although options, data or versions have changed.
    checkpoint_steps
        Steps between two checkpoints within an epoch; there is one after each epoch, too.

    Raises
    ------
    KitError
        If the folder exists, or there is nothing to resume, or the run to resume was started
        with other options, other data or another version, or another process trains in it.
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
    ) -> None:
        self.recipe = recipe
        self.store = store
        self.folder = folder
        self.device = choose_device(device)
        self.dtype = choose_precision(recipe.precision, self.device)
        self.workers = workers
        self.checkpoint_steps = checkpoint_steps
        self.rank = distributed.rank()
        self.holdout = recipe_holdout(store, recipe)
        # Before the folder is made, which a run of other options could not be resumed in.
        check_batch(len(self.holdout.train), recipe.batch_size)
        self.holds_tiles = not workers and fits_on_device(recipe, len(store.train), self.device)
        self.state = TrainingState(
            models.create_model(recipe),
            recipe,
            steps_per_epoch=len(self.holdout.train) // recipe.batch_size,
            device=self.device,
            dtype=self.dtype,
        )
        self.history: list[EpochResult] = []
        if resume:
            self._resume(force=force)
        else:
            self._start()
        if self.rank == 0:
            write_split(folder / "split.csv", store.train.ids, self.holdout)

    def train(
        self, *, evaluate: Evaluate = evaluate, progress: bool | TrainingBar = True
    ) -> Iterator[EpochResult]:
        """Train to the last epoch, keeping checkpoints, and yield each epoch's result.

        After the last one the folder holds the weights, the holdout's probabilities and the
        final figures.

        Parameters
        ----------
        evaluate, progress
            See `training.fit`.

        Raises
        ------
        StoppedError
            After SIGTERM, when a checkpoint has been written.
        KitError
            If the loss stops being a number, when the batch's tiles and the checkpoint are named;
            or if a GPU's memory is full.
        """
        valid = self.valid_loader.dataset
        assert isinstance(valid, TileDataset)
        with _sigterm_flag() as sigterm:
            try:
                for result in fit(
                    self.state,
                    train_loader(
                        self._train_dataset,
                        batch_size=self.recipe.batch_size,
                        workers=self.workers,
                        rank=self.rank,
                        processes=distributed.world_size(),
                    ),
                    eval_loader(valid, rank=self.rank, processes=distributed.world_size()),
                    after_step=lambda: self._after_step(sigterm),
                    evaluate=evaluate,
                    progress=progress if self.rank == 0 else False,
                ):
                    self.history.append(result)
                    self._checkpoint()
                    yield result
            except NonFiniteLossError as error:
                raise self._explain(error) from error
            except torch.OutOfMemoryError as error:
                raise KitError(
                    f"the memory of {self.device} is full: choose a smaller --batch-size"
                    f"{', or --workers 1, which holds no tiles in it' if self.holds_tiles else ''}"
                ) from error
        # What is left is rank 0's, which needs no one for it.
        distributed.leave_group()
        if self.rank == 0:
            self._finish()

    def recalibrate(self, batches: int | None = None) -> None:
        """Replace BatchNorm's running statistics by those of the training tiles.

        Parameters
        ----------
        batches
            Only the first ones, of `data.EVAL_BATCH_SIZE` tiles at most; None takes all.
        """
        recalibrate(
            self.state.model,
            islice(self.plain_train_loader, batches),
            self.state.normalize,
            device=self.device,
            dtype=self.dtype,
        )

    @cached_property
    def valid_loader(self) -> DataLoader[Batch]:
        """The held-out tiles, in the order of split.csv."""
        return eval_loader(self._dataset(self.holdout.valid))

    @cached_property
    def plain_train_loader(self) -> DataLoader[Batch]:
        """The training tiles, each once, without augmentation."""
        plain = copy.copy(self._train_dataset)
        plain.augment = None
        return eval_loader(plain)

    @cached_property
    def _train_dataset(self) -> TileDataset:
        return self._dataset(self.holdout.train, train=True)

    def _dataset(self, rows: npt.NDArray[np.int64], *, train: bool = False) -> TileDataset:
        return recipe_dataset(
            self.store.train.tiles,
            self.recipe,
            labels=self.store.labels,
            rows=rows,
            train=train,
            device=self.device if self.holds_tiles else None,
        )

    def _start(self) -> None:
        if self.rank > 0:
            return
        if self.folder.exists() and any(is_content(path) for path in self.folder.iterdir()):
            raise KitError(
                f"{self.folder} exists: choose another --out, or go on with it by --resume"
            )
        self._lock = FolderLock(self.folder)
        write_json(self.folder / "config.json", self._config())

    def _resume(self, *, force: bool) -> None:
        then, now = read_config(self.folder), json.loads(json.dumps(self._config()))
        if self.rank == 0:
            self._lock = FolderLock(self.folder)
        changed = [key for key in _MUST_MATCH if then.get(key) != now[key]]
        if changed and not force:
            raise KitError(
                f"cannot resume {self.folder}: {_difference(changed[0], then, now)}. "
                "Start anew with another --out, or add --force to go on all the same"
            )
        if self.rank == 0 and (changed or then.get("processes", 1) != now["processes"]):
            write_json(self.folder / "config.json", now | {"resumed_from": then})
        checkpoint = inside(self.folder, "last.pt")
        if checkpoint.exists():
            state = read_checkpoint(checkpoint, self.device)
            self._load(state, checkpoint)

    def _load(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Go back to a checkpoint."""
        try:
            self.state.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise KitError(f"{checkpoint} does not fit the run's options: {error}") from error
        self.history = [EpochResult(**result) for result in state["history"]]
        self._write_history()

    def _after_step(self, sigterm: Event) -> None:
        """Keep a checkpoint when it is time, or when the process was asked to stop."""
        progress = self.state.progress
        # All processes stop at the same step, or those that go on would wait for the others.
        stop = any(distributed.all_reduce(sigterm.is_set()))
        if stop or progress.step % self.checkpoint_steps == 0:
            self._checkpoint()
        if stop:
            raise StoppedError(
                f"stopped in epoch {progress.epoch + 1}, step {progress.step}, which "
                f"{self.folder} holds: go on with --resume --out {self.folder}"
            )

    def _explain(self, error: NonFiniteLossError) -> KitError:
        """Name the tiles of a batch whose loss is no number, and where to go on from."""
        ids = ", ".join(self.store.train.ids[self.holdout.train[error.indices]])
        last = self.folder / "last.pt"
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was kept"
        return KitError(
            f"{error}: try a smaller --lr, or --precision fp32; {kept}. The batch's tiles: {ids}"
        )

    def _config(self) -> dict[str, Any]:
        mean, std = self.recipe.channel_statistics
        return {
            "recipe": recipe_values(self.recipe),
            "preprocessing": {
                "crop": self.recipe.crop,
                "size": self.recipe.size,
                "interpolation": self.recipe.interpolation,
                "mean": mean,
                "std": std,
            },
            "class_names": CLASS_NAMES,
            # A timm model keeps its own.
            "bn_momentum_in_pytorch": (
                None if self.recipe.is_backbone else 1 - self.recipe.bn_momentum
            ),
            "data": {
                "fingerprint": self.store.fingerprint,
                "is_standin": self.store.is_standin,
                "train_tiles": len(self.holdout.train),
                "valid_tiles": len(self.holdout.valid),
            },
            "precision": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "workers": self.workers,
            "holds_tiles": self.holds_tiles,
            "processes": distributed.world_size(),
            # Sums are rounded in another order by another number of threads.
            "threads": torch.get_num_threads(),
            "kit": kit.__version__,
            "torch": torch.__version__,
            "timm": version("timm"),
            "python": platform.python_version(),
        }

    def _checkpoint(self) -> None:
        """Keep the end of an epoch: last.pt first, from which the history follows."""
        self.state.settle()
        if self.rank > 0:
            return
        history = [asdict(result) for result in self.history]
        write_checkpoint(self.folder / "last.pt", self.state.state_dict() | {"history": history})
        self._write_history()

    def _write_history(self) -> None:
        if self.rank > 0:
            return
        lines = [json.dumps(asdict(result)) + "\n" for result in self.history]
        write_text(self.folder / "history.jsonl", "".join(lines))

    def _finish(self) -> None:
        """Write what a finished run is used for; metrics.json comes last and says so."""
        if self.state.averaged is not None:
            self.state.use_average()
            self.recalibrate()
        state = self.state.model.state_dict()
        weights = save({name: tensor.contiguous() for name, tensor in state.items()})
        with atomic_path(self.folder / "model.safetensors") as partial:
            partial.write_bytes(weights)
        probabilities = predict(
            self.state.model,
            self.valid_loader,
            self.state.normalize,
            views=self.recipe.views,
            device=self.device,
            dtype=self.dtype,
        )
        labels = self.store.labels[self.holdout.valid]
        ids = self.store.train.ids[self.holdout.valid]
        write_predictions(
            self.folder, pd.DataFrame({"id": ids, "label": labels, "probability": probabilities})
        )


@contextmanager
def _sigterm_flag() -> Iterator[Event]:
    """Yield an event that SIGTERM sets in place of ending the process."""
    event = Event()
    # Only the main thread may handle signals; elsewhere the event is never set.
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _difference(key: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    """Say what one changed entry was and is."""
    old, new = then.get(key), now[key]
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(name for name in old | new if old.get(name) != new.get(name))
        key, old, new = f"{key}.{inner}", old.get(inner), new.get(inner)
    return f"{key} was {old!r} and is {new!r}"
