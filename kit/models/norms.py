"""Norms: those of the kit's networks, BatchNorms faster to train, questions about any model's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kit.base import Norm

BatchNorm = nn.modules.batchnorm._BatchNorm


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's BatchNorm2d, which can also pool during training, in fewer passes over memory.

    A training step of a small CNN on a CPU waits for memory: norm, activation and pooling each
    read and write the convolution's whole output, and so does each of their gradients. Max
    pooling commutes with functions that never fall, such as ReLU and a norm with positive
    weights. So only the maxima are normalised, and the gradient of the inputs, which outside the
    maxima comes only from the statistics, is written in one pass. Values agree within rounding.
    """

    def is_increasing(self) -> bool:
        """Whether all weights are positive, so that a larger input gives a larger output."""
        return bool((self.weight > 0).all())

    def can_pool(self, inputs: Tensor) -> bool:
        """Whether pooling first is right and faster here: in training on a CPU."""
        return self.training and inputs.device.type == "cpu" and self.is_increasing()

    def forward(self, inputs: Tensor, pool: int | None = None) -> Tensor:
        """Return normalised images; with `pool`, their maxima over squares of that side."""
        return super().forward(inputs) if pool is None else _pool_norm(self, inputs, pool)


class GroupBatchNorm1d(nn.BatchNorm1d):
    """PyTorch's BatchNorm1d, which during training also takes the maps of `GroupConv2d`.

    Sums are taken map by map and then added over the orientations. That is several times faster
    than to sum a reshaped tensor, in which a row of a few channels fills no vector register.
    """

    def forward(self, inputs: Tensor, pool: int | None = None) -> Tensor:
        """Return normalised inputs of the same shape; with `pool`, maxima as `BatchNorm2d` does.

        Parameters
        ----------
        inputs
            (pixels, channels), or maps (batch, orientations * channels, height, width).
        """
        return super().forward(inputs) if inputs.ndim == 2 else _pool_norm(self, inputs, pool)


class GroupBatchNorm2d(nn.Module):
    """A BatchNorm of the maps of `GroupConv2d`: the orientations of a channel are normalised alike.

    Parameters
    ----------
    norm
        Has as many features as an orientation has channels.
    """

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.norm = norm

    def can_pool(self, maps: Tensor) -> bool:
        """Whether pooling first is right and faster here: see `BatchNorm2d`."""
        return self._takes_maps(maps) and bool((self.norm.weight > 0).all())

    def forward(self, maps: Tensor, pool: int | None = None) -> Tensor:
        """Return normalised maps of the same shape; with `pool`, their maxima."""
        if self._takes_maps(maps):
            outputs: Tensor = self.norm(maps, pool)
            return outputs
        pixels = maps.permute(0, 2, 3, 1)
        normalized: Tensor = self.norm(pixels.reshape(-1, self.norm.num_features))
        return normalized.view(pixels.shape).permute(0, 3, 1, 2)

    def as_batch_norm2d(self, orientations: int) -> BatchNorm2d:
        """Return the plain norm that does the same in evaluation."""
        norm = BatchNorm2d(orientations * self.norm.num_features, eps=self.norm.eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data = getattr(self.norm, name).detach().repeat(orientations)
        return norm.eval()

    def _takes_maps(self, maps: Tensor) -> bool:
        # Where several GPUs train together, a SyncBatchNorm replaces it, which takes no maps.
        fast = isinstance(self.norm, GroupBatchNorm1d)
        return fast and self.norm.training and maps.device.type == "cpu"


class GroupedNorm(nn.GroupNorm):
    """A norm of each tile by itself, over groups of channels: group, layer or instance norm.

    Parameters
    ----------
    groups
        1 is layer norm; as many as there are channels is instance norm.
    orientations
        Maps of `GroupConv2d` have so many times the channels: all orientations of a channel are
        normalised alike, so that the network stays equivariant.

    References
    ----------
    Wu and He, Group normalization, ECCV 2018.
    """

    def __init__(self, groups: int, channels: int, *, eps: float, orientations: int = 1) -> None:
        super().__init__(groups, channels, eps=eps)
        self.orientations = orientations

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised inputs: (batch, channels), or maps (batch, channels, height, width)."""
        if self.orientations == 1:
            return super().forward(inputs)
        maps = inputs.view(len(inputs), self.orientations, -1, *inputs.shape[2:])
        return super().forward(maps.transpose(1, 2)).transpose(1, 2).reshape(inputs.shape)


def create_norm(
    kind: Norm,
    channels: int,
    *,
    momentum: float,
    eps: float,
    maps: bool = True,
    orientations: int = 1,
) -> nn.Module:
    """Build a norm of one of the kit's own networks.

    Parameters
    ----------
    momentum
        BatchNorm's, in Keras' sense.
    maps
        Whether it normalises maps, and not vectors: a vector has one value per channel, which an
        instance norm would make 0, so it is left as it is.
    orientations
        See `GroupedNorm`; BatchNorm has a class of its own for these maps.
    """
    if kind == "batch":
        batch_norm = BatchNorm2d if maps else nn.BatchNorm1d
        return batch_norm(channels, eps=eps, momentum=1 - momentum)
    if kind == "none" or (kind == "instance" and not maps):
        return nn.Identity()
    smallest = -(-channels // LARGEST_GROUP)
    groups = {"layer": 1, "instance": channels}.get(kind)
    if groups is None:
        groups = next(n for n in range(smallest, channels + 1) if channels % n == 0)
    return GroupedNorm(groups, channels, eps=eps, orientations=orientations)


LARGEST_GROUP = 16
"""Channels of a group norm's group, at most: among the best of Wu and He's table 3."""


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Return a model's BatchNorm layers by name, except those without running statistics."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_var is not None
    }


def min_running_var(model: nn.Module) -> float | None:
    """Return the smallest running variance of all BatchNorm channels; None without BatchNorm.

    Behind a ReLU the variance of a dead channel decays to nothing. When the channel becomes active
    again, its output in evaluation is a hundred times that of its neighbours.
    """
    variances = [norm.running_var for norm in batch_norms(model).values()]
    return min((float(v.min()) for v in variances if v is not None), default=None)


def _pool_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor, pool: int | None) -> Tensor:
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    outputs: Tensor = _PoolNorm.apply(inputs, norm.weight, norm.bias, norm, pool)
    return outputs


class _PoolNorm(torch.autograd.Function):
    """A norm in training and max pooling, with the gradient of arXiv:1502.03167, section 3.

    Where the inputs have more maps than the norm has features, the features repeat in the same
    order, once per orientation.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, norm: Any, pool: int | None
    ) -> Tensor:
        mean, var = _update_statistics(norm, inputs)
        maxima, indices = inputs, None
        if pool:
            maxima, indices = functional.max_pool2d(inputs, pool, return_indices=True)
        ctx.save_for_backward(inputs, maxima, indices, mean, var, weight)
        ctx.eps, ctx.pool = norm.eps, pool
        means, variances, weights, biases = _repeat(inputs, mean, var, weight, bias)
        return functional.batch_norm(maxima, means, variances, weights, biases, eps=norm.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, maxima, indices, mean, var, weight = ctx.saved_tensors
        means, variances, weights = _repeat(inputs, mean, var, weight)
        # Where their layouts differ, PyTorch adds up bf16 in bf16.
        gradient = gradient.contiguous(memory_format=_layout(maxima))
        # As if mean and variance were constants,
        of_maxima, *of_affine = torch.ops.aten.native_batch_norm_backward(
            gradient, maxima, weights, means, variances, None, None, False, ctx.eps, [True] * 3
        )
        of_weight, of_bias = (part.view(-1, len(weight)).sum(0) for part in of_affine)
        # and what goes through them to each of the inputs.
        share = weight * (var + ctx.eps).rsqrt() * (-len(mean) / inputs.numel())
        slope, constant = _repeat(inputs, share * of_weight, share * of_bias)
        of_inputs = functional.batch_norm(inputs, means, variances, slope, constant, eps=ctx.eps)
        if indices is not None:
            # Scattered over zeros and then added: several times faster than one by one.
            of_maxima = functional.max_unpool2d(
                of_maxima, indices, ctx.pool, output_size=inputs.shape[2:]
            )
        of_inputs += of_maxima
        return of_inputs, of_weight, of_bias, None, None


def _layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _repeat(inputs: Tensor, *features: Tensor) -> list[Tensor]:
    """Return for each of the inputs' maps what a norm has for each feature."""
    return [part.repeat(inputs.shape[1] // len(part)) for part in features]


def _update_statistics(norm: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance of each feature; the running ones follow."""
    if inputs.shape[1] == norm.num_features:
        return torch.batch_norm_update_stats(
            inputs, norm.running_mean, norm.running_var, norm.momentum
        )
    # Without any running statistics PyTorch would return rounded ones.
    unused = torch.zeros(2, inputs.shape[1], dtype=norm.running_mean.dtype)
    of_maps = torch.batch_norm_update_stats(inputs, unused[0], unused[1], 0.0)
    means, variances = (part.view(-1, norm.num_features) for part in of_maps)
    mean = means.mean(0)
    var = variances.mean(0) + means.var(0, correction=0)
    count = inputs.numel() // norm.num_features
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * count / (count - 1), norm.momentum)
    return mean, var
