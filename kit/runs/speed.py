"""How fast this machine computes a recipe, measured on a few batches."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from kit import models
from kit.base import Recipe
from kit.data import Batch, Holdout, Store, recipe_holdout
from kit.runs.loaders import RunLoaders
from kit.runs.teachers import open_teachers
from kit.training import (
    TileEncoder,
    TrainingState,
    choose_device,
    choose_precision,
    fit,
    fit_probe,
    predict_logits,
)

# The first steps choose kernels and fill caches.
_WARM_UP, _STEPS = 2, 4
# A GPU records its steps after some, and takes a moment for each.
_WARM_UP_GPU, _STEPS_GPU = 6, 24
_PREDICTED = 64
_FITTED = 256


@dataclass(frozen=True)
class Speed:
    """How fast this machine computes a recipe, in seconds.

    Attributes
    ----------
    build
        To build the model and to begin.
    step
        A training step; 0 of a probe.
    tile
        To predict, or encode, a tile in one view.
    fit
        To fit a probe, for each tile that it is fitted to.
    """

    build: float
    step: float
    tile: float
    fit: float = 0.0


class _EnoughError(Exception):
    """Ends a training that has been measured."""


def measure_speed(recipe: Recipe, store: Store, *, device: str = "auto") -> Speed:
    """Take a few steps of a recipe's training, and predict a few tiles; nothing is kept.

    Raises
    ------
    KitError
        If it cannot be trained, or a memory is full.
    """
    recipe = models.follow_model(recipe)
    chosen = choose_device(device)
    if recipe.is_probe:
        return _probe_speed(recipe, store, chosen)
    return _training_speed(recipe, store, chosen)


def _training_speed(recipe: Recipe, store: Store, device: torch.device) -> Speed:
    start = time.perf_counter()
    holdout = recipe_holdout(store, recipe)
    # The last batches are not needed: a share of the held-out tiles is predicted.
    some = Holdout(holdout.train, holdout.valid[:_PREDICTED])
    loaders = RunLoaders(recipe, store, some, device=device, workers=0)
    state = TrainingState(
        models.create_model(recipe),
        recipe,
        steps_per_epoch=len(holdout.train) // recipe.batch_size,
        device=device,
        dtype=choose_precision(recipe.precision, device),
        teachers=open_teachers(recipe, store, holdout, str(device)),
    )
    times = list(_step_times(state, loaders))
    if len(times) == 1:
        # Of a single step it is not known where it began.
        times.insert(0, start)
    step = (times[-1] - times[0]) / (len(times) - 1)
    return Speed(times[0] - start, step, _tile_seconds(state, loaders))


def _step_times(state: TrainingState, loaders: RunLoaders) -> Iterator[float]:
    """Yield the time after each step from the last of warming up on."""
    on_gpu = state.device.type == "cuda"
    warm_up, steps = (_WARM_UP_GPU, _STEPS_GPU) if on_gpu else (_WARM_UP, _STEPS)
    times: list[float] = []

    def after_step() -> None:
        # A GPU may be behind.
        state.settle()
        times.append(time.perf_counter())
        if len(times) == warm_up + steps:
            raise _EnoughError

    def nothing(*_: Any) -> dict[str, Any]:
        raise _EnoughError

    results = fit(
        state,
        loaders.train_share(),
        loaders.valid,
        after_step=after_step,
        evaluate=nothing,
        progress=False,
    )
    try:
        next(results)
    except _EnoughError:
        # An epoch may have no more than a step.
        yield from times[min(warm_up, len(times) - 1) :]


def _tile_seconds(state: TrainingState, loaders: RunLoaders) -> float:
    """Return what predicting a tile in one view takes, by the shorter of two tries."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        batches: list[Batch] = list(islice(loaders.valid, 1))
        predict_logits(
            state.model, batches, state.normalize, device=state.device, dtype=state.dtype
        )
        seconds.append((time.perf_counter() - start) / len(batches[0][1]))
    return min(seconds)


def _probe_speed(recipe: Recipe, store: Store, device: torch.device) -> Speed:
    start = time.perf_counter()
    encoder = TileEncoder(models.create_encoder(recipe), recipe, device)
    build = time.perf_counter() - start
    tile = _encoding_seconds(encoder, store, recipe.views)
    start = time.perf_counter()
    rng = np.random.default_rng(recipe.seed)
    labels = np.arange(_FITTED) % 2
    features = rng.normal(labels[:, None], 4, (_FITTED, encoder.width)).astype(np.float16)
    fit_probe(recipe, features, labels)
    return Speed(build, 0.0, tile, (time.perf_counter() - start) / _FITTED)


def _encoding_seconds(encoder: TileEncoder, store: Store, views: int) -> float:
    """Return what encoding takes for each tile and view: features that are there cost nothing."""
    if store.train.features is None:
        return encoder.seconds_per_tile(store.train)
    sets = [store.train, store.test]
    return encoder.plan(sets, views).seconds / (views * sum(map(len, sets)))
