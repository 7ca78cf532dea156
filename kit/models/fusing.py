"""Copies of a network for evaluation, which do less: fused norms, a shared stem."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from kit.models.blocks import Block
from kit.models.equivariance import GroupConv2d
from kit.models.networks import CompactCNN, SmallCNN
from kit.models.norms import BatchNorm, BatchNorm2d, GroupBatchNorm2d


class FrozenBatchNorm2d(nn.Module):
    """What a BatchNorm does in evaluation, with the statistics that it has now."""

    def __init__(self, norm: BatchNorm2d) -> None:
        super().__init__()
        self.parts = norm.running_mean, norm.running_var, norm.weight, norm.bias
        self.eps = norm.eps

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalised images."""
        return functional.batch_norm(inputs, *self.parts, eps=self.eps)


class CachedModule(nn.Module):
    """A module that several models begin with: it computes once for the same input tensor.

    Only for evaluation. The last inputs and outputs are kept.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.last: tuple[Tensor, Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the module's outputs; for the same tensor as the last time, those of last time."""
        if self.last is None or self.last[0] is not inputs:
            self.last = inputs, self.module(inputs)
        return self.last[1]


def fuse_norms(model: nn.Module) -> nn.Module:
    """Return a copy for evaluation in which norms are fused into the layers before them.

    Only the kit's own networks are fused: a class that is derived from one may use the parts of a
    block in another way. Where that gives the same values, maxima are pooled first and only they
    are normalised. Logits agree within rounding.
    """
    fused = copy.deepcopy(model).eval()
    if type(fused) not in (SmallCNN, CompactCNN):
        return fused
    for name, block in fused.named_modules():
        if isinstance(block, Block):
            fused.set_submodule(name, _fuse(block))
    return fused


def share_stem(fused: Sequence[nn.Module]) -> None:
    """Let networks compute only once what comes before their first norm.

    Parameters
    ----------
    fused
        From `fuse_norms`, of models that differ only in their running statistics.
    """
    first = [_first_block(model) for model in fused]
    is_norm = [isinstance(part, FrozenBatchNorm2d | BatchNorm2d) for part in first[0]]
    if any(is_norm):
        stop = is_norm.index(True)
        stem = CachedModule(first[0][:stop])
        for model, block in zip(fused, first, strict=True):
            model.set_submodule("features.0", nn.Sequential(stem, *block[stop:]))


def _fuse(block: Block) -> nn.Module:
    layer: Any = block.layer
    if not isinstance(block.norm, BatchNorm | GroupBatchNorm2d):
        # What depends on the tile cannot be fused into weights.
        return block
    norm: Any = block.norm
    if isinstance(layer, GroupConv2d):
        layer, norm = layer.as_conv2d(), norm.as_batch_norm2d(layer.orientations)
    act = nn.ReLU()
    pool = [nn.MaxPool2d(block.pooling)] if block.pooling else []
    increases = isinstance(norm, BatchNorm2d) and norm.is_increasing()
    if block.bn == "after":
        return nn.Sequential(layer, *pool, act, norm) if increases else block
    if pool and increases:
        # On the maxima it costs almost nothing, and the layer is the same for all statistics.
        return nn.Sequential(layer, *pool, FrozenBatchNorm2d(norm), act)
    fuse = fuse_conv_bn_eval if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval
    return nn.Sequential(fuse(layer, norm), *pool, act)


def _first_block(fused: nn.Module) -> nn.Sequential:
    """Return the first block of a fused `SmallCNN`; an empty one for other networks."""
    first = fused.features[0] if type(fused) is SmallCNN else None
    return first if isinstance(first, nn.Sequential) else nn.Sequential()
