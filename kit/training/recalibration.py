"""BatchNorm's running statistics, measured over all tiles of a loader."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kit.data import Batch
from kit.models import BatchNorm, batch_norms
from kit.training.device import autocast
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
    out how far their means lie apart. Dropout is off.

    References
    ----------
    Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3.
    """
    device = device or torch.device("cpu")
    norms = batch_norms(model).values()
    sums = {norm: _Sums() for norm in norms}
    hooks = [norm.register_forward_hook(sums[norm]) for norm in norms]
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.train()
        # The whole of a batch's own statistics, for `_Sums` to read.
        norm.momentum = 1.0
    for images, _ in loader:
        with autocast(device, dtype):
            model(normalize(images.to(device)))
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

    def __call__(self, norm: BatchNorm, inputs: tuple[Tensor], _: Tensor) -> None:
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
