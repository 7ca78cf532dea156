"""The run folder: everything about a run, and enough to rebuild its model from nothing else.

config.json        every option, and the kit's, torch's and the data's fingerprints
split.csv          id,fold
history.jsonl      one object an epoch
last.pt            all that resuming needs
model.safetensors  the weights of the last epoch
valid.csv          id,label,probability on the holdout
metrics.json       the final figures, with intervals
"""

import copy
import dataclasses
import io
import json
import pickle
import platform
import signal
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from scipy.special import expit, logit
from torch import nn
from torch.utils.data import DataLoader

import kit
from kit import models, stats
from kit.base import config
from kit.base.competition import CLASS_NAMES
from kit.base.config import Recipe, Views
from kit.base.errors import KitError, StoppedError
from kit.base.files import LOCK_NAME, FolderLock, atomic_path, write_text
from kit.base.results import EpochResult
from kit.data import dataset, split
from kit.data.dataset import Batch, TileDataset
from kit.data.store import Store, TileSet
from kit.training import distributed, inference, training
from kit.training.inference import Normalize
from kit.training.training import Evaluate, NonFiniteLossError, TrainingState

# What must be the same for a resumed run to be the run that was never interrupted.
_MUST_MATCH = ("recipe", "data", "kit", "torch", "precision", "device")


# What reading a damaged checkpoint raises; zipfile and zlib have errors of their own.
_NOT_A_CHECKPOINT = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
)


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
        self.device = inference.choose_device(device)
        self.dtype = inference.choose_precision(recipe.precision, self.device)
        self.workers = workers
        self.checkpoint_steps = checkpoint_steps
        self.rank = distributed.rank()
        self.holdout = split.choose_holdout(recipe, store)
        # Before the folder is made, which a run of other options could not be resumed in.
        dataset.check_batch(len(self.holdout.train), recipe.batch_size)
        self.holds_tiles = not workers and dataset.can_hold(recipe, len(store.train), self.device)
        self.state = TrainingState(
            models.create_model(recipe),
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            one_cycle_steps=self._steps() if recipe.schedule == "one-cycle" else None,
            ema=recipe.ema,
            device=self.device,
            dtype=self.dtype,
            seed=recipe.seed,
        )
        self.normalize = Normalize(*recipe.channel_statistics).to(self.device)
        self.history: list[EpochResult] = []
        if resume:
            self._resume(force=force)
        else:
            self._start()
        if self.rank == 0:
            split.write(folder / "split.csv", store.train.ids, self.holdout)

    def train(
        self, *, evaluate: Evaluate = training.evaluate, progress: bool = True
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
                for result in training.fit(
                    self.state,
                    dataset.train_loader(
                        self._train_dataset,
                        batch_size=self.recipe.batch_size,
                        workers=self.workers,
                        rank=self.rank,
                        processes=distributed.size(),
                    ),
                    dataset.eval_loader(valid, rank=self.rank, processes=distributed.size()),
                    self.normalize,
                    epochs=self.recipe.epochs,
                    label_smoothing=self.recipe.label_smoothing,
                    frozen_epochs=self.recipe.frozen_epochs,
                    after_step=lambda: self._after_step(sigterm),
                    evaluate=evaluate,
                    progress=progress and self.rank == 0,
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
        distributed.leave()
        if self.rank == 0:
            self._finish()

    def recalibrate(self, batches: int | None = None) -> None:
        """Replace BatchNorm's running statistics by those of the training tiles.

        Parameters
        ----------
        batches
            Only the first ones, of `dataset.EVAL_BATCH_SIZE` tiles at most; None takes all.
        """
        inference.recalibrate(
            self.state.model,
            islice(self.plain_train_loader, batches),
            self.normalize,
            device=self.device,
            dtype=self.dtype,
        )

    @cached_property
    def valid_loader(self) -> DataLoader[Batch]:
        """The held-out tiles, in the order of split.csv."""
        return dataset.eval_loader(self._dataset(self.holdout.valid))

    @cached_property
    def plain_train_loader(self) -> DataLoader[Batch]:
        """The training tiles, each once, without augmentation."""
        plain = copy.copy(self._train_dataset)
        plain.augment = None
        return dataset.eval_loader(plain)

    @cached_property
    def _train_dataset(self) -> TileDataset:
        return self._dataset(self.holdout.train, train=True)

    def _dataset(self, rows: npt.NDArray[np.int64], *, train: bool = False) -> TileDataset:
        return dataset.recipe_dataset(
            self.store.train.tiles,
            self.recipe,
            labels=self.store.labels,
            rows=rows,
            train=train,
            device=self.device if self.holds_tiles else None,
        )

    def _steps(self) -> int:
        """Return the steps of the whole training."""
        return self.recipe.epochs * (len(self.holdout.train) // self.recipe.batch_size)

    def _start(self) -> None:
        if self.rank > 0:
            return
        if self.folder.exists() and any(_is_content(path) for path in self.folder.iterdir()):
            raise KitError(
                f"{self.folder} exists: choose another --out, or go on with it by --resume"
            )
        self._lock = FolderLock(self.folder)
        _write_json(self.folder / "config.json", self._config())

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
            _write_json(self.folder / "config.json", now | {"resumed_from": then})
        checkpoint = _inside(self.folder, "last.pt")
        if checkpoint.exists():
            state = _load_checkpoint(checkpoint, self.device)
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
        stop = any(distributed.total(sigterm.is_set()))
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
            "recipe": config.recipe_values(self.recipe),
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
            "processes": distributed.size(),
            # Sums are rounded in another order by another number of threads.
            "threads": torch.get_num_threads(),
            "kit": kit.__version__,
            "torch": torch.__version__,
            "timm": version("timm"),
            "python": platform.python_version(),
        }

    def _checkpoint(self) -> None:
        """Keep the end of an epoch: last.pt first, from which the history follows."""
        if self.rank > 0:
            return
        history = [asdict(result) for result in self.history]
        # Through memory: where the disk is full, torch.save raises no OSError.
        buffer = io.BytesIO()
        torch.save(self.state.state_dict() | {"history": history}, buffer)
        with atomic_path(self.folder / "last.pt") as partial:
            partial.write_bytes(buffer.getbuffer())
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
        probabilities = inference.predict(
            self.state.model,
            self.valid_loader,
            self.normalize,
            views=self.recipe.views,
            device=self.device,
            dtype=self.dtype,
        )
        labels = self.store.labels[self.holdout.valid]
        ids = self.store.train.ids[self.holdout.valid]
        table = pd.DataFrame({"id": ids, "label": labels, "probability": probabilities})
        write_text(self.folder / "valid.csv", table.to_csv(index=False, lineterminator="\n"))
        _write_json(self.folder / "metrics.json", final_metrics(labels, probabilities))


@dataclass(frozen=True)
class TrainedModel:
    """A finished run's model, with the preprocessing that it was trained on."""

    name: str
    recipe: Recipe
    model: nn.Module
    device: torch.device
    dtype: torch.dtype

    temperature: float | None = None
    """Of the logits on the run's holdout: above 1 the network was too sure of itself. Runs of the
    kit's version 0.1.0 recorded none."""

    def predict(
        self,
        tiles: TileSet,
        *,
        views: Views | None = None,
        adapt_bn: bool = False,
        calibrate: bool = False,
        progress: bool = True,
    ) -> npt.NDArray[np.float64]:
        """Return the probability of tumour for each tile of the store's split.

        Parameters
        ----------
        views
            1 or 8; by default those of the recipe.
        adapt_bn
            Replace BatchNorm's statistics by those of the tiles themselves, without labels
            (Li et al., arXiv:1603.04779). The model keeps them.
        calibrate
            Divide logits by the holdout's temperature. The order of the tiles stays.

        Raises
        ------
        KitError
            If the run recorded no temperature to calibrate with.
        """
        if calibrate and self.temperature is None:
            raise KitError(
                f"{self.name} recorded no temperature: predict without --calibrate, or train it "
                "anew"
            )
        loader = dataset.eval_loader(dataset.recipe_dataset(tiles.tiles, self.recipe))
        normalize = Normalize(*self.recipe.channel_statistics).to(self.device)
        if adapt_bn:
            inference.recalibrate(
                self.model, loader, normalize, device=self.device, dtype=self.dtype
            )
        probabilities = inference.predict(
            self.model,
            loader,
            normalize,
            views=views or self.recipe.views,
            device=self.device,
            dtype=self.dtype,
            description=f"predicting with {self.name}" if progress else None,
        )
        return expit(logit(probabilities) / self.temperature) if calibrate else probabilities


def load(folder: Path, *, device: str = "auto") -> TrainedModel:
    """Rebuild a finished run's model from its folder alone.

    Raises
    ------
    KitError
        If the folder holds no finished run, or its files do not fit each other.
    """
    values = read_config(folder)
    recipe = config.parse_recipe(values["recipe"], source=f"{folder}/config.json")
    _check_preprocessing(folder, values, recipe)
    weights = _inside(folder, "model.safetensors")
    if not weights.is_file():
        raise KitError(f"{folder} is not a finished run: go on with train.py --resume")
    inference.reuse_memory()
    chosen = inference.choose_device(device)
    # The run's own weights follow: nothing is to be fetched for the ones it began with.
    model = models.create_model(dataclasses.replace(recipe, pretrained=False, weights=None))
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise KitError(f"{weights} does not fit {folder}/config.json: {error}") from error
    model = model.to(chosen).to(memory_format=torch.channels_last)
    dtype = inference.choose_precision(recipe.precision, chosen)
    temperature = read_metrics(folder).get("temperature")
    return TrainedModel(folder.name, recipe, model, chosen, dtype, temperature)


def members(folder: Path) -> list[Path]:
    """Return the runs of a cross-validation's folder, or the one run that a folder is.

    Raises
    ------
    KitError
        If a fold is missing.
    """
    folds = sorted(folder.glob("fold-*"))
    if not folds:
        return [folder]
    asked = read_config(folds[0])["recipe"]["folds"]
    if len(folds) != asked or not (folder / "metrics.json").is_file():
        raise KitError(
            f"{folder} is a cross-validation that is not finished: go on with train.py --resume"
        )
    return folds


def pool(folder: Path) -> dict[str, Any]:
    """Pool the out-of-fold predictions of a cross-validation; return their figures.

    Writes valid.csv and metrics.json, which make its folder one to predict with.
    """
    tables = [read_valid(fold) for fold in sorted(folder.glob("fold-*"))]
    table = pd.concat(tables).sort_values("id")
    figures = final_metrics(table["label"].to_numpy(), table["probability"].to_numpy())
    aucs = [stats.auc(one["label"], one["probability"]) for one in tables]
    figures |= {"auc_by_fold": aucs, "mean_auc_of_folds": float(np.mean(aucs))}
    write_text(folder / "valid.csv", table.to_csv(index=False, lineterminator="\n"))
    _write_json(folder / "metrics.json", figures)
    return figures


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's config.json.

    Raises
    ------
    KitError
        If there is none, or it is not one of the kit's.
    """
    path = _inside(folder, "config.json")
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        folds = sorted(fold.name for fold in folder.glob("fold-*"))
        if folds:
            raise KitError(
                f"{folder} is a cross-validation: name one of its runs, {', '.join(folds)}"
            ) from error
        raise KitError(f"{folder} holds no run: there is no {path}") from error
    except ValueError as error:
        raise KitError(f"{path} is not a run's configuration: {error}") from error
    if not isinstance(values, dict) or not {"recipe", "preprocessing", "data"} <= values.keys():
        raise KitError(f"{path} is not a run's configuration: keys are missing")
    return values


def read_valid(folder: Path) -> pd.DataFrame:
    """Read a finished run's valid.csv: id,label,probability.

    Raises
    ------
    KitError
        If there is none.
    """
    path = _inside(folder, "valid.csv")
    if not path.is_file():
        raise KitError(f"{folder} is not a finished run: there is no {path}")
    types = {"id": str, "label": np.int64, "probability": np.float64}
    with _reading(path):
        return pd.read_csv(path, dtype=types, usecols=list(types))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a finished run's metrics.json."""
    path = _inside(folder, "metrics.json")
    if not path.is_file():
        raise KitError(f"{folder} is not a finished run: there is no {path}")
    with _reading(path):
        return dict(json.loads(path.read_text("utf-8")))


def read_history(folder: Path) -> list[EpochResult]:
    """Read a run's history.jsonl, one result an epoch."""
    path = _inside(folder, "history.jsonl")
    with _reading(path):
        return [EpochResult(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def final_metrics(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Return the holdout's figures, with a 95 % interval (DeLong) for the AUC."""
    hard = (probabilities > 0.5).astype(float)
    return {
        "tiles": len(labels),
        "auc": asdict(stats.auc_interval(labels, probabilities)),
        "auc_of_hard_labels": stats.auc(labels, hard),
        "accuracy": stats.accuracy(labels, probabilities),
        "log_loss": stats.log_loss(labels, probabilities),
        "expected_calibration_error": stats.expected_calibration_error(labels, probabilities),
        "temperature": stats.fit_temperature(labels, logit(probabilities)),
    }


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


def _is_content(path: Path) -> bool:
    """Whether a file is more than what a start leaves that was killed at once."""
    return path.name != LOCK_NAME and path.suffix != ".partial"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a file of other content raises into a message."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise KitError(f"{path} is damaged ({error}): train the run anew") from error


def _inside(folder: Path, name: str) -> Path:
    """Return a file of a run folder that lies in it: a stranger's link may lead to any file."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise KitError(
            f"{path} is a link to {path.resolve()}, out of its run folder: copy it there"
        )
    return path


def _check_preprocessing(folder: Path, values: dict[str, Any], recipe: Recipe) -> None:
    """Refuse to predict with a preprocessing other than the recorded one."""
    mean, std = recipe.channel_statistics
    now = {"mean": list(mean), "std": list(std)}
    recorded = values["preprocessing"]
    for key in ("crop", "size", "interpolation"):
        now[key] = getattr(recipe, key)
    changed = [key for key in now if recorded.get(key) != now[key]]
    if changed or tuple(values.get("class_names", ())) != CLASS_NAMES:
        what = changed[0] if changed else "class_names"
        raise KitError(
            f"{folder}/config.json: {what} is not what this kit would predict with: use the "
            f"kit's version {values.get('kit')} that trained the run"
        )


def _load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read last.pt, unpickling nothing but tensors and plain values."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load itself checks no CRC.
            if archive.testzip() is not None:
                raise KitError(f"{path} is damaged: start anew with another --out (CRC mismatch)")
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except _NOT_A_CHECKPOINT as error:
        raise KitError(f"{path} is damaged: start anew with another --out ({error})") from error
    return state


def _difference(key: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    """Say what one changed entry was and is."""
    old, new = then.get(key), now[key]
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(name for name in old | new if old.get(name) != new.get(name))
        key, old, new = f"{key}.{inner}", old.get(inner), new.get(inner)
    return f"{key} was {old!r} and is {new!r}"


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")
