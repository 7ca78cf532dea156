"""The block that the kit's own networks are made of, and norms that are faster to train."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kit.base.config import Bn


class Block(nn.Sequential):
    """A layer, its norm and ReLU in the order of the arm, and max pooling.

    The parts have the same names in both arms.

    Parameters
    ----------
    bn
        Where the norm stands.
    pool
        Side and stride of the pooling; none by default.
    """

    layer: nn.Module
    norm: nn.Module

    def __init__(
        self, layer: nn.Module, norm: nn.Module, bn: Bn, *, pool: int | None = None
    ) -> None:
        norm_act = [("norm", norm), ("act", nn.ReLU())]
        order = norm_act if bn == "before" else norm_act[::-1]
        tail = [("pool", nn.MaxPool2d(pool))] if pool else []
        super().__init__(OrderedDict([("layer", layer), *order, *tail]))
        self.bn = bn
        self.pooling = pool

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output."""
        outputs: Tensor
        norm = self.norm if self.pooling else None
        if isinstance(norm, BatchNorm2d | GroupBatchNorm2d) and norm.can_pool(inputs):
            outputs = self.layer(inputs)
            if self.bn == "before":
                return functional.relu(self.norm(outputs, pool=self.pooling))
            return self.norm(outputs.relu_(), pool=self.pooling)  # type: ignore[no-any-return]
        outputs = super().forward(inputs)  # type: ignore[no-untyped-call]
        return outputs


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, which in training can also pool, in fewer passes over memory.

    A training step of a small CNN on a processor waits for memory: norm, activation and pooling
    each read and write all that the convolution put out, and so does each of their gradients.
    Max pooling commutes with functions that never fall, as ReLU and a norm with positive weights
    are. So the maxima alone are normalised, and the gradient of the inputs, which outside the
    maxima is the statistics' alone, is written in one go. Values agree within rounding.
    """

    def is_increasing(self) -> bool:
        """Whether all weights are positive, so that a larger input gives a larger output."""
        return bool((self.weight > 0).all())

    def can_pool(self, inputs: Tensor) -> bool:
        """Whether pooling first is right here, and pays: training on a processor."""
        return self.training and inputs.device.type == "cpu" and self.is_increasing()

    def forward(self, inputs: Tensor, pool: int | None = None) -> Tensor:
        """Return normalised images; with `pool`, their maxima over squares of that side."""
        return super().forward(inputs) if pool is None else _pool_norm(self, inputs, pool)


class GroupBatchNorm1d(nn.BatchNorm1d):
    """PyTorch's of (pixels, channels), which in training also takes the maps of `GroupConv2d`.

    The maps' sums are added over the orientations: several times faster than the sums of a
    reshaped tensor, whose rows of a few channels fill no vector register.
    """

    def forward(self, inputs: Tensor, pool: int | None = None) -> Tensor:
        """Return normalised pixels, or maps; with `pool`, their maxima as for `BatchNorm2d`."""
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
        """Whether pooling first is right here, and pays: see `BatchNorm2d`."""
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
        # Not so the norm that stands in its place where several GPUs train together.
        fast = isinstance(self.norm, GroupBatchNorm1d)
        return fast and self.norm.training and maps.device.type == "cpu"


class FrozenNorm(nn.Module):
    """What a norm does in evaluation, with the statistics that it has now."""

    def __init__(self, norm: BatchNorm2d) -> None:
        super().__init__()
        self.parts = norm.running_mean, norm.running_var, norm.weight, norm.bias
        self.eps = norm.eps

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised images."""
        return functional.batch_norm(inputs, *self.parts, eps=self.eps)


class Remember(nn.Module):
    """A part that several models begin with: they get what it made for the first of them.

    Only for what stays the same, in evaluation; the last inputs and outputs are kept.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.last: tuple[Tensor, Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the part's outputs; for the same tensor as the last time, those of then."""
        if self.last is None or self.last[0] is not inputs:
            self.last = inputs, self.part(inputs)
        return self.last[1]


def _pool_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor, pool: int | None) -> Tensor:
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    outputs: Tensor = _PoolNorm.apply(inputs, norm.weight, norm.bias, norm, pool)
    return outputs


class _PoolNorm(torch.autograd.Function):
    """A norm in training and max pooling, with the gradient of arXiv:1502.03167, section 3.

    Where the inputs have more maps than the norm has features, features come in that order again
    and again, once an orientation.
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
    """Return what a norm has for each feature for each of the inputs' maps."""
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
