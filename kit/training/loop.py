"""The training loop: a generator of one result per epoch."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
from scipy.special import expit
from torch import nn
from torch.utils.data import DataLoader

from kit import models, stats
from kit.base import EpochResult, Floats, Labels
from kit.data import Batch, DeviceDataset, EpochSampler, TileDataset, watched_workers
from kit.training import distributed
from kit.training.bar import TrainingBar
from kit.training.device import explain_full_memory
from kit.training.gradients import Gradients
from kit.training.inference import predict_logits_each
from kit.training.state import CHECK_STEPS, NonFiniteLossError, Progress, TrainingState


def evaluate(state: TrainingState, valid: DataLoader[Batch]) -> dict[str, Any]:
    """Return the figures of an epoch's result that its weights and running statistics give."""
    (figures,) = evaluate_each([state.model], state, valid)
    return figures


def evaluate_each(
    candidates: Iterable[nn.Module], state: TrainingState, valid: DataLoader[Batch]
) -> list[dict[str, Any]]:
    """Return what `evaluate` does for each of several models in place of the state's own.

    Parameters
    ----------
    candidates
        They differ in their running statistics alone. Each is copied before the next is asked
        for, so that they may be one model that changes.
    """
    dataset = valid.dataset
    assert isinstance(dataset, TileDataset)
    labels = dataset.labels.astype(np.int64)
    fused, lowest = [], []
    for model in candidates:
        fused.append(models.fuse_norms(model.eval()))
        lowest.append(models.min_running_var(model))
    logits = predict_logits_each(
        fused, valid, state.normalize, device=state.device, dtype=state.dtype
    )
    found = [_figures(labels, distributed.all_gather(own)) for own in logits]
    return [figures | {"min_running_var": low} for figures, low in zip(found, lowest, strict=True)]


def _figures(labels: Labels, logits: Floats) -> dict[str, Any]:
    probabilities = expit(logits)
    return {
        "valid_loss": stats.log_loss(labels, probabilities),
        "valid_accuracy": stats.accuracy(labels, probabilities),
        # Probabilities near 1 run together.
        "valid_auc": stats.auc(labels, logits),
    }


Evaluate = Callable[[TrainingState, DataLoader[Batch]], dict[str, Any]]


def fit(
    state: TrainingState,
    train: DataLoader[Batch],
    valid: DataLoader[Batch],
    *,
    after_step: Callable[[], None] | None = None,
    evaluate: Evaluate = evaluate,
    progress: bool | TrainingBar = True,
) -> Generator[EpochResult, None, None]:
    """Train to the recipe's last epoch, from where `state` stands, and yield a result per epoch.

    The processes of `distributed` train together: they call this with the same state and their
    own shares of the tiles, and all get the same results.

    Between two steps `state` holds all of the training: save it in `after_step` or between two
    results to resume later, and the resumed training is the one that was never interrupted,
    bit for bit; on several processes, within rounding.

    Parameters
    ----------
    train
        From `data.train_loader`.
    valid
        From `data.eval_loader`; each tile is evaluated once, by one of the processes.
    after_step
        Called after each step of the optimizer.
    evaluate
        Called after each epoch; it returns what the module's own does.
    progress
        Whether to draw a bar on stderr; or a bar over several trainings, of which this is one.

    Raises
    ------
    NonFiniteLossError
        If the loss stops being a finite number; noticed within `CHECK_STEPS` steps.
    FullMemoryError, LostWorkerError
        If the memory does not suffice, or a process that loads tiles ends before its time.
    """
    bar = TrainingBar(shown=progress) if isinstance(progress, bool) else progress
    # Whoever made a bar closes it.
    with bar if isinstance(progress, bool) else nullcontext(), watched_workers(train):
        gradients = Gradients(state, train)
        bar.skip(_share_done(state, gradients.sampler))
        while state.epoch < state.recipe.epochs:
            start = time.perf_counter() - state.progress.seconds
            _train_epoch(state, gradients, bar, after_step, start)
            distributed.broadcast_buffers(state.model)
            figures = _train_figures(state.progress, gradients.sampler) | evaluate(state, valid)
            state.begin_epoch(Progress(epoch=state.epoch + 1))
            yield _epoch_result(state, start, figures)


def _epoch_result(state: TrainingState, start: float, figures: dict[str, Any]) -> EpochResult:
    return EpochResult(
        epoch=state.epoch,
        seconds=time.perf_counter() - start,
        lr=max(float(group["lr"]) for group in state.optimizer.param_groups),
        **figures,
    )


def _train_epoch(
    state: TrainingState,
    gradients: Gradients,
    bar: TrainingBar,
    after_step: Callable[[], None] | None,
    start: float,
) -> None:
    """Take the steps that the epoch still lacks; name the batch of a loss that is not finite."""
    try:
        for _ in _steps(state, gradients, bar):
            state.progress.seconds = time.perf_counter() - start
            if after_step is not None:
                after_step()
        state.settle()
        # A GPU may have been behind until now.
        state.progress.seconds = time.perf_counter() - start
    except NonFiniteLossError as error:
        error.indices = gradients.sampler.batch(error.step)
        raise


def _steps(state: TrainingState, gradients: Gradients, bar: TrainingBar) -> Iterator[None]:
    """Take the steps that the epoch still lacks, one at a time."""
    sampler = gradients.sampler
    sampler.epoch, sampler.first = state.epoch + 1, state.progress.step
    if state.progress.step == 0:
        state.seed_draws(sampler.epoch, distributed.rank())
    models.freeze_backbone(state.model, frozen=sampler.epoch <= state.recipe.frozen_epochs)
    with explain_full_memory(state.device, "training", _remedy(gradients)):
        for figures in gradients.of_epoch():
            state.update_weights()
            state.figures.add(figures)
            state.progress.step += 1
            if state.progress.step % CHECK_STEPS == 0:
                state.settle()
            bar.advance(
                1 / (state.recipe.epochs * sampler.steps),
                f"epoch {sampler.epoch}/{state.recipe.epochs}",
            )
            yield


def _share_done(state: TrainingState, sampler: EpochSampler) -> float:
    """Return the share of the whole training's steps that are done."""
    steps = sampler.steps
    return (state.epoch * steps + state.progress.step) / (state.recipe.epochs * steps)


def _train_figures(progress: Progress, sampler: EpochSampler) -> dict[str, float]:
    """Return the training figures of an epoch's result."""
    tiles = progress.step * sampler.batch_size
    return {
        "train_loss": progress.loss / progress.step,
        "train_accuracy": progress.correct / tiles,
        "tiles_per_second": tiles / progress.seconds,
    }


def _remedy(gradients: Gradients) -> str:
    """Return what helps against a full memory."""
    smaller = "choose a smaller --batch-size"
    holds = isinstance(gradients.loader.dataset, DeviceDataset)
    return f"{smaller}, or --workers 1, which holds no tiles in it" if holds else smaller
