"""A run that fits a probe: a run folder like any other, without epochs."""

import hashlib
import os
import shutil
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save, save_file
from scipy.special import expit

from kit import stats
from kit.base import (
    EpochResult,
    Floats,
    Indices,
    KitError,
    Recipe,
    Strings,
    atomic_path,
)
from kit.data import UNKNOWN, Features, Store, find_slides
from kit.models import Probe
from kit.runs.run import Run
from kit.training import (
    Evaluate,
    TileEncoder,
    TrainingBar,
    TrainingState,
    distributed,
    evaluate,
    features_logits,
    fit_probe,
)

ENCODER = "encoder.safetensors"
"""The encoder's weights; the head's are in model.safetensors."""


class ProbeRun(Run):
    """A run with an encoder that stays as it is, see `Run`; one result stands for all of it."""

    def train(
        self,
        *,
        evaluate: Evaluate = evaluate,  # noqa: ARG002
        progress: bool | TrainingBar = True,
    ) -> Generator[EpochResult, None, None]:
        """Encode the tiles where that is not done, fit the probe, and yield the one result."""
        start = time.perf_counter()
        encoder = TileEncoder(self.probe.encoder, self.recipe, self.device)
        views = [
            encoder.encode(self.store.train, view, progress=progress is not False)
            for view in range(self.recipe.views)
        ]
        labels = self.store.labels[self.holdout.train]
        fitted = fit_probe(
            self.recipe, some_view_each(views, self.holdout.train), labels, self._slides()
        )
        self.probe.head.load_state_dict(fitted.head.state_dict())
        train = self._logits(views[:1], self.holdout.train)
        # A refit holds no tiles out.
        valid = None if self.is_refit else self._logits(views, self.holdout.valid)
        result = self._result(train, valid, seconds=time.perf_counter() - start)
        self.history = [result]
        self._write_history()
        self._keep(encoder, valid, fitted.strength)
        if isinstance(progress, TrainingBar):
            progress.advance(1, "")
        self._tell(result)
        yield result

    @property
    def probe(self) -> Probe:
        """The encoder and its head."""
        model = self.state.model
        assert isinstance(model, Probe)
        return model

    def _new_state(self, recipe: Recipe) -> TrainingState:
        if distributed.world_size() > 1:
            raise KitError("a probe is fitted by one process: start it without torchrun")
        return super()._new_state(recipe)

    def _restore(self) -> TrainingState:
        # Features that were made are there; fitting begins again.
        return self._new_state(self.recipe)

    def _slides(self) -> Strings | None:
        """Return the slides of the training side, where all of them are known."""
        known = find_slides(self.store, self.recipe.slides).of_tiles
        own = None if known is None else known[self.holdout.train]
        return None if own is None or (own == UNKNOWN).any() else own

    def _logits(self, views: list[Features], rows: Indices) -> Floats:
        by_view = [features_logits(self.probe, view[rows]) for view in views]
        return stats.logit_of_mean(np.stack(by_view))

    def _result(self, train: Floats, valid: Floats | None, *, seconds: float) -> EpochResult:
        labels, held_out = (self.store.labels[rows] for rows in self.holdout)
        return EpochResult(
            epoch=1,
            train_loss=stats.log_loss(labels, expit(train)),
            train_accuracy=stats.accuracy(labels, expit(train)),
            valid_loss=None if valid is None else stats.log_loss(held_out, expit(valid)),
            valid_accuracy=None if valid is None else stats.accuracy(held_out, expit(valid)),
            valid_auc=None if valid is None else stats.auc(held_out, valid),
            seconds=seconds,
            tiles_per_second=len(self.holdout.train) / seconds,
            min_running_var=None,
        )

    def _keep(self, encoder: TileEncoder, valid: Floats | None, strength: float | None) -> None:
        """Write what a finished run is used for; metrics.json comes last and says so."""
        state = self.probe.head.state_dict()
        weights = save({f"head.{name}": tensor.contiguous() for name, tensor in state.items()})
        with atomic_path(self.folder / "model.safetensors") as partial:
            partial.write_bytes(weights)
        keep_encoder(self.folder / ENCODER, encoder, self.store)
        also: Mapping[str, Any] = {} if strength is None else {"strength": strength}
        sha256 = {
            "model.safetensors": hashlib.sha256(weights).hexdigest(),
            ENCODER: _sha256(self.folder / ENCODER),
        }
        self._write_figures(valid, sha256=sha256, kept_epoch=None, **also)


def some_view_each(views: list[Features], rows: Indices) -> Features:
    """Return the features of tiles, of each under one of the views: no view counts more."""
    chosen = np.empty((len(rows), views[0].shape[1]), np.float16)
    for number, view in enumerate(views):
        own = slice(number, None, len(views))
        chosen[own] = view[rows[own]]
    return chosen


def keep_encoder(path: Path, encoder: TileEncoder, store: Store) -> None:
    """Write an encoder's weights into a run, as a link to one file beside the features.

    Where there can be no link it is a copy: a run folder is whole either way.
    """
    folder = encoder.folder(store.train)
    assert folder is not None
    shared = folder / ENCODER
    if not shared.is_file():
        state = encoder.encoder.network.state_dict()
        with atomic_path(shared) as partial:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)
    with atomic_path(path) as partial:
        partial.unlink()
        try:
            os.link(shared, partial)
        except OSError:
            shutil.copyfile(shared, partial)


def begin_run(recipe: Recipe, store: Store, folder: Path, **options: Any) -> Run:
    """Return a run that trains a recipe's network, or fits its probe, see `Run`."""
    kind = ProbeRun if recipe.is_probe else Run
    return kind(recipe, store, folder, **options)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
