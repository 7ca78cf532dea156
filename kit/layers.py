"""The block that the kit's own networks are made of, and a norm that is faster to train."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kit.config import Bn


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
        if self.pooling and isinstance(self.norm, BatchNorm2d) and self.norm.can_pool(inputs):
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
        if pool is None:
            return super().forward(inputs)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        outputs: Tensor = _PoolNorm.apply(inputs, self.weight, self.bias, self, pool)
        return outputs


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


class _PoolNorm(torch.autograd.Function):
    """A norm in training and max pooling, with the gradient of arXiv:1502.03167, section 3."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, norm: BatchNorm2d, pool: int
    ) -> Tensor:
        assert norm.momentum is not None
        mean, var = torch.batch_norm_update_stats(
            inputs, norm.running_mean, norm.running_var, norm.momentum
        )
        maxima, indices = functional.max_pool2d(inputs, pool, return_indices=True)
        ctx.save_for_backward(inputs, maxima, indices, mean, var, weight)
        ctx.eps, ctx.pool = norm.eps, pool
        return functional.batch_norm(maxima, mean, var, weight, bias, eps=norm.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, maxima, indices, mean, var, weight = ctx.saved_tensors
        # As if mean and variance were constants,
        of_maxima, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, maxima, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        # and what goes through them to each of the inputs.
        share = weight * (var + ctx.eps).rsqrt() * (-len(mean) / inputs.numel())
        slope, constant = share * of_weight, share * of_bias
        of_inputs = functional.batch_norm(inputs, mean, var, slope, constant, eps=ctx.eps)
        # Scattered over zeros and then added: several times faster than one by one.
        of_inputs += functional.max_unpool2d(
            of_maxima, indices, ctx.pool, output_size=inputs.shape[2:]
        )
        return of_inputs, of_weight, of_bias, None, None
