"""The training loop: a generator of one result an epoch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from kit import models, stats
from kit.base import EpochResult, KitError
from kit.data.dataset import Batch, EpochSampler, TileDataset
from kit.training import distributed, inference
from kit.training.inference import Normalize

# Keras' Adam adds this to the root of the second moment; PyTorch's default is 1e-8.
ADAM_EPS = 1e-7
# The rate rises for a quarter of the steps, and from its first step to another one.
SHORTEST_CYCLE = 5


class NonFiniteLossError(KitError):
    """A loss that is no number.

    Attributes
    ----------
    indices
        Of the batch's tiles in the training dataset.
    """

    def __init__(self, message: str, indices: list[int]) -> None:
        super().__init__(message)
        self.indices = indices


class TrainingState:
    """Everything that training changes, and so all that resuming needs.

    Parameters
    ----------
    model
        Its logits have the shape (batch, 1). It is moved to the device.
    lr
        Adam's learning rate; with `one_cycle_steps` its peak.
    weight_decay, layer_decay
        See `models.parameter_groups`; with no decay this is plain Adam.
    one_cycle_steps
        Steps of the whole training, over which the rate rises and falls again (Smith and Topin,
        arXiv:1708.07120); None keeps it constant.
    ema
        Decay of an average of the weights that is kept beside them; 0 keeps none. It starts
        with a shorter memory: the first weights are not worth averaging.
    dtype
        The type that convolutions compute in; weights stay in float32.
    seed
        Of dropout and the like, drawn anew each epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        layer_decay: float = 1.0,
        one_cycle_steps: int | None = None,
        ema: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        inference.reuse_memory()
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.seed = seed
        self.progress = _Progress()
        # Images arrive with their channels last, as the store holds them.
        model = model.to(self.device).to(memory_format=torch.channels_last)
        if distributed.size() > 1 and self.device.type == "cuda":
            model = models.synchronize_batch_norms(model)
        self.model = model
        groups = models.parameter_groups(
            model, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay
        )
        self.optimizer = torch.optim.AdamW(groups, eps=ADAM_EPS, fused=True)
        self.schedule = _schedule(self.optimizer, one_cycle_steps)
        self.averaged = AveragedModel(model, multi_avg_fn=_average(ema)) if ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    @property
    def epoch(self) -> int:
        """The last whole epoch."""
        return self.progress.epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last step."""
        return {
            "progress": asdict(self.progress),
            "generator": torch.get_rng_state(),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.progress = _Progress(**state["progress"])
        torch.set_rng_state(state["generator"].cpu())
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if distributed.rank() > 0:
            # The state is rank 0's, whose draws these would repeat.
            _seed(self.seed, self.epoch + 1, distributed.rank(), self.progress.step)

    def use_average(self) -> None:
        """Put the averaged weights, where there are any, in place of the last ones."""
        if self.averaged is not None:
            self.model.load_state_dict(self.averaged.module.state_dict())

    def _parts(self) -> dict[str, Any]:
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "averaged": self.averaged,
            "scaler": self.scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}


@dataclass
class _Progress:
    """Where training stands: whole epochs, and the sums of the epoch that has begun."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0


def evaluate(
    state: TrainingState, valid: DataLoader[Batch], normalize: Normalize
) -> dict[str, Any]:
    """Return the figures of an epoch's result that its weights and running statistics give."""
    (figures,) = evaluate_each([state.model], state, valid, normalize)
    return figures


def evaluate_each(
    candidates: Iterable[nn.Module],
    state: TrainingState,
    valid: DataLoader[Batch],
    normalize: Normalize,
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
    probabilities = inference.predict_each(
        fused, valid, normalize, device=state.device, dtype=state.dtype
    )
    found = [stats.summary(labels, distributed.concatenate(own)) for own in probabilities]
    return [
        {
            "valid_loss": figures["log_loss"],
            "valid_accuracy": figures["accuracy"],
            "valid_auc": figures["auc"],
            "min_running_var": low,
        }
        for figures, low in zip(found, lowest, strict=True)
    ]


Evaluate = Callable[[TrainingState, DataLoader[Batch], Normalize], dict[str, Any]]


def fit(
    state: TrainingState,
    train: DataLoader[Batch],
    valid: DataLoader[Batch],
    normalize: Normalize,
    *,
    epochs: int,
    label_smoothing: float = 0.0,
    frozen_epochs: int = 0,
    after_step: Callable[[], None] | None = None,
    evaluate: Evaluate = evaluate,
    progress: bool = True,
) -> Iterator[EpochResult]:
    """Train up to `epochs`, from where `state` stands, and yield one result an epoch.

    The processes of `distributed` train together: they call this with the same state and their
    own shares of the tiles, and all get the same results.

    Between two steps `state` holds all of the training: save it in `after_step` or between two
    results to resume later, and the resumed training is the one that was never interrupted,
    bit for bit; on several processes, within rounding.

    Parameters
    ----------
    train
        From `dataset.train_loader`.
    valid
        From `dataset.eval_loader`; each tile is evaluated once, by one of the processes.
    label_smoothing
        Labels are drawn towards 1/2 by this share (Szegedy et al., arXiv:1512.00567).
    frozen_epochs
        First epochs that train the classifier alone.
    after_step
        Called after each step of the optimiser.
    evaluate
        Called after each epoch; it returns what the module's own does.
    progress
        Whether to draw a bar of the epoch's steps on stderr.

    Raises
    ------
    NonFiniteLossError
        If the loss stops being a finite number.
    """
    normalize = normalize.to(state.device)
    for epoch in range(state.epoch + 1, epochs + 1):
        start = time.perf_counter() - state.progress.seconds
        models.freeze_backbone(state.model, frozen=epoch <= frozen_epochs)
        # Anew each epoch: it holds on to the parameters that learn.
        parallel = distributed.wrap(state.model)
        for _ in _steps(
            state, parallel, train, normalize, label_smoothing, f"{epoch}/{epochs}", progress
        ):
            state.progress.seconds = time.perf_counter() - start
            if after_step is not None:
                after_step()
        trained = state.progress
        distributed.copy_buffers(state.model)
        figures = evaluate(state, valid, normalize)
        state.progress = _Progress(epoch=epoch)
        yield EpochResult(
            epoch=epoch,
            train_loss=trained.loss / trained.step,
            train_accuracy=trained.correct / _tiles(train),
            seconds=time.perf_counter() - start,
            tiles_per_second=_tiles(train) / trained.seconds,
            **figures,
        )


def _steps(
    state: TrainingState,
    parallel: nn.Module,
    loader: DataLoader[Batch],
    normalize: Normalize,
    label_smoothing: float,
    name: str,
    progress: bool,
) -> Iterator[None]:
    """Take the steps that the epoch still lacks, one at a time."""
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    sampler.epoch, sampler.first = state.epoch + 1, state.progress.step
    if state.progress.step == 0:
        _seed(state.seed, sampler.epoch, distributed.rank())
    parallel.train()
    bar = tqdm(
        loader,
        desc=f"epoch {name}",
        unit=" steps",
        initial=sampler.first,
        total=sampler.first + len(sampler),
        leave=False,
        disable=not progress,
    )
    for images, labels in bar:
        own_loss, own_correct = _step(state, parallel, normalize, images, labels, label_smoothing)
        loss, correct = distributed.total(own_loss / distributed.size(), own_correct)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss of epoch {sampler.epoch}, step {state.progress.step + 1} is {loss}",
                sampler.batch(state.progress.step),
            )
        state.progress.step += 1
        state.progress.loss += loss
        state.progress.correct += int(correct)
        yield


def _step(
    state: TrainingState,
    parallel: nn.Module,
    normalize: Normalize,
    images: Tensor,
    labels: Tensor,
    label_smoothing: float,
) -> tuple[float, int]:
    """Take one step of the optimiser; return the batch's mean loss and its hits."""
    images = images.to(state.device, non_blocking=True)
    labels = labels.to(state.device, non_blocking=True)
    with inference.autocast(state.device, state.dtype):
        logits = parallel(normalize(images)).squeeze(1)
    smooth = labels.lerp(labels.new_tensor(0.5), label_smoothing) if label_smoothing else labels
    loss = functional.binary_cross_entropy_with_logits(logits.float(), smooth)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.schedule is not None:
        state.schedule.step()
    if state.averaged is not None:
        state.averaged.update_parameters(state.model)
    return loss.item(), int(((logits.detach() > 0) == (labels > 0.5)).sum())


def _seed(*key: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _schedule(optimizer: torch.optim.Optimizer, one_cycle_steps: int | None) -> OneCycleLR | None:
    if one_cycle_steps is None:
        return None
    if one_cycle_steps < SHORTEST_CYCLE:
        raise KitError(
            f"the whole training has {one_cycle_steps} steps, too few for the one-cycle schedule, "
            f"which takes {SHORTEST_CYCLE}: choose more --epochs or a smaller --batch-size"
        )
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=one_cycle_steps, pct_start=0.25)


def _average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the update of an exponential average whose memory grows to that of `decay`."""

    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        memory = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, weights, 1 - memory)

    return update


def _tiles(loader: DataLoader[Batch]) -> int:
    """Return how many tiles a pass of the training loader takes."""
    assert isinstance(loader.sampler, EpochSampler)
    return loader.sampler.steps * loader.sampler.batch_size
