"""The training loop: a generator of one result an epoch."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from kit import inference, metrics
from kit.dataset import Batch, EpochSampler, TileDataset
from kit.errors import KitError
from kit.inference import Normalize
from kit.models import BatchNorm, batch_norms, min_running_var

# Keras' Adam adds this to the root of the second moment; PyTorch's default is 1e-8.
ADAM_EPS = 1e-7


@dataclass(frozen=True)
class EpochResult:
    """What an epoch brought.

    The training figures are means over the epoch's batches while the weights still moved, as
    Keras reports them; the validation figures are of the epoch's last weights.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
    valid_auc: float
    seconds: float
    tiles_per_second: float
    min_running_var: float


class TrainingState:
    """Everything that training changes, and so all that resuming needs.

    Parameters
    ----------
    model
        Its logits have the shape (batch, 1). It is moved to the device.
    lr
        Adam's learning rate.
    weight_decay
        Decoupled from the gradient (AdamW); 0 is plain Adam.
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
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.seed = seed
        self.epoch = 0
        # Images arrive with their channels last, as the store holds them.
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, eps=ADAM_EPS, weight_decay=weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    def state_dict(self) -> dict[str, Any]:
        """Return the state at the end of an epoch."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to the end of an epoch."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def fit(
    state: TrainingState,
    train: DataLoader[Batch],
    valid: DataLoader[Batch],
    normalize: Normalize,
    *,
    epochs: int,
    progress: bool = True,
) -> Iterator[EpochResult]:
    """Train up to `epochs`, from where `state` stands, and yield one result an epoch.

    Between two results `state` holds the end of an epoch: save it there to resume later, and
    the resumed training is the one that was never interrupted, bit for bit.

    Parameters
    ----------
    train
        From `dataset.train_loader`.
    valid
        From `dataset.eval_loader`; each tile is evaluated once.
    progress
        Whether to draw a bar of the epoch's steps on stderr.

    Raises
    ------
    KitError
        If the loss stops being a finite number.
    """
    normalize = normalize.to(state.device)
    for epoch in range(state.epoch + 1, epochs + 1):
        start = time.perf_counter()
        bar = tqdm(
            train, desc=f"epoch {epoch}/{epochs}", unit=" steps", leave=False, disable=not progress
        )
        loss, accuracy = _train_epoch(state, train, bar, normalize, epoch)
        trained = time.perf_counter() - start
        figures = evaluate(state, valid, normalize)
        state.epoch = epoch
        yield EpochResult(
            epoch=epoch,
            train_loss=loss,
            train_accuracy=accuracy,
            seconds=time.perf_counter() - start,
            tiles_per_second=_tiles(train) / trained,
            **figures,
        )


def evaluate(
    state: TrainingState, valid: DataLoader[Batch], normalize: Normalize
) -> dict[str, Any]:
    """Return the figures of an epoch's result that its weights and running statistics give."""
    dataset = valid.dataset
    assert isinstance(dataset, TileDataset)
    labels = dataset.labels.astype(np.int64)
    probabilities = inference.predict(
        state.model, valid, normalize, device=state.device, dtype=state.dtype
    )
    figures = metrics.summary(labels, probabilities)
    return {
        "valid_loss": figures["log_loss"],
        "valid_accuracy": figures["accuracy"],
        "valid_auc": figures["auc"],
        "min_running_var": min_running_var(state.model),
    }


@torch.no_grad()
def recalibrate(state: TrainingState, loader: DataLoader[Batch], normalize: Normalize) -> None:
    """Replace BatchNorm's running statistics by those of all tiles of a loader.

    Each layer sees its batches normalised by their own statistics, and the mean and variance
    of all of its inputs are kept: not the mean of the batches' variances, which leaves out
    how far their means lie apart. Dropout is off.

    References
    ----------
    Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3.
    """
    norms = batch_norms(state.model).values()
    sums = {norm: _Sums() for norm in norms}
    hooks = [norm.register_forward_hook(sums[norm]) for norm in norms]
    momenta = {norm: norm.momentum for norm in norms}
    state.model.eval()
    for norm in norms:
        norm.train()
        # The whole of a batch's own statistics, for `_Sums` to read.
        norm.momentum = 1.0
    for images, _ in loader:
        with inference.autocast(state.device, state.dtype):
            state.model(normalize(images.to(state.device)))
    for norm, hook in zip(norms, hooks, strict=True):
        hook.remove()
        norm.momentum = momenta[norm]
        sums[norm].write(norm)


class _Sums:
    """Count, sum and sum of squares of all that goes into a norm, channel by channel."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.zeros(())
        self.squares = torch.zeros(())

    def __call__(self, norm: BatchNorm, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count = inputs[0].numel() // norm.num_features
        mean = norm.running_mean.double()
        variance = norm.running_var.double() * (count - 1) / count
        self.count += count
        self.sum = self.sum.to(mean) + count * mean
        self.squares = self.squares.to(mean) + count * (variance + mean**2)

    def write(self, norm: BatchNorm) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = self.sum / self.count
        variance = (self.squares / self.count - mean**2) * self.count / (self.count - 1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _train_epoch(
    state: TrainingState,
    loader: DataLoader[Batch],
    bar: "tqdm[Batch]",
    normalize: Normalize,
    epoch: int,
) -> tuple[float, float]:
    """Pass over the training tiles once; return the mean loss and accuracy."""
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.epoch = epoch
    torch.manual_seed(int(np.random.SeedSequence([state.seed, epoch]).generate_state(1)[0]))
    state.model.train()
    loss_sum = torch.zeros((), dtype=torch.float64, device=state.device)
    correct = torch.zeros((), dtype=torch.int64, device=state.device)
    for images, labels in bar:
        loss, hits = _step(state, normalize, images, labels)
        loss_sum += loss * len(labels)
        correct += hits
    mean_loss = float(loss_sum) / _tiles(loader)
    if not np.isfinite(mean_loss):
        raise KitError(
            f"the loss of epoch {epoch} is {mean_loss}: try a smaller --lr, or --precision fp32"
        )
    return mean_loss, int(correct) / _tiles(loader)


def _step(
    state: TrainingState, normalize: Normalize, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one step of the optimiser; return the batch's mean loss and its hits."""
    images = images.to(state.device, non_blocking=True)
    labels = labels.to(state.device, non_blocking=True)
    with inference.autocast(state.device, state.dtype):
        logits = state.model(normalize(images)).squeeze(1)
    loss = functional.binary_cross_entropy_with_logits(logits.float(), labels)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return loss.detach(), ((logits.detach() > 0) == (labels > 0.5)).sum()


def _tiles(loader: DataLoader[Batch]) -> int:
    """Return how many tiles a pass of the training loader takes."""
    assert isinstance(loader.sampler, EpochSampler)
    return len(loader.sampler) * loader.sampler.batch_size
