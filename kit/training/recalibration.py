"""BatchNorm's running statistics, measured over all tiles of a loader."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kit.base import KitError
from kit.data import Batch
from kit.models import BatchNorm, batch_norms
from kit.training.device import autocast, explain_full_memory, prefetch
from kit.training.inference import Normalize


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    loader: Iterable[Batch],
    normalize: Normalize,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Replace BatchNorm's running statistics by those of all tiles of a loader.

    Each layer sees its batches normalised by their own statistics, and the mean and variance
    of all of its inputs are kept. That is not the mean of the batches' variances, which leaves
    out how far their means lie apart. Dropout is off. A model without running statistics stays
    as it is, and the loader is not read.

    Raises
    ------
    KitError
        If a batch is a single tile, or a memory is full.

    References
    ----------
    Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3.
    """
    device = device or torch.device("cpu")
    model.eval()
    with _measuring(model) as sums, explain_full_memory(device, "recalibrating"):
        for images, _ in prefetch(loader, device) if sums else ():
            if len(images) < 2:
                raise KitError("BatchNorm has no statistics of a batch of a single tile")
            with autocast(device, dtype):
                model(normalize(images))
    for norm, own in sums.items():
        own.write(norm)


@contextmanager
def _measuring(model: nn.Module) -> Iterator[dict[BatchNorm, "_Sums"]]:
    """Let BatchNorm normalise by its batches, and sum up what goes into each layer."""
    sums = {norm: _Sums() for norm in batch_norms(model).values()}
    hooks = [norm.register_forward_hook(own) for norm, own in sums.items()]
    momenta = {norm: norm.momentum for norm in sums}
    for norm in sums:
        norm.train()
        # The running statistics are then the batch's own, for `_Sums` to read.
        norm.momentum = 1.0
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in momenta.items():
            norm.eval()
            norm.momentum = momentum


class _Sums:
    """Count, sum and sum of squares of all that goes into a norm, channel by channel."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.zeros(())
        self.squares = torch.zeros(())

    def __call__(self, norm: BatchNorm, inputs: tuple[Tensor], _: Tensor) -> None:
        count = inputs[0].numel() // norm.num_features
        mean, variance = _float64(norm.running_mean), _float64(norm.running_var)
        variance = variance * (count - 1) / count
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


def _float64(statistic: Tensor | None) -> Tensor:
    """Return a running statistic in float64, which an Apple GPU does not have."""
    assert statistic is not None
    return (statistic.cpu() if statistic.device.type == "mps" else statistic).double()
