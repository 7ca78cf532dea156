"""The kit's own networks: the study's small CNN, and a compact one for scores."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kit.base import Bn, Init, KitError, Norm, Orientations, competition
from kit.models.blocks import Block
from kit.models.equivariance import GroupConv2d
from kit.models.norms import GroupBatchNorm1d, GroupBatchNorm2d, create_norm

# Sides of an input, in pixels, from which on CompactCNN's first convolution halves it.
HALVED_SIZE = 64


class SmallCNN(nn.Module):
    """The study's network, with BatchNorm before or after each activation.

    3x3 convolutions without padding, each with 3x3 max pooling, then a dense layer and one
    logit. `before` is layer, norm, act, pool; `after` is layer, act, norm, pool. Both have the
    same state dict, and biases before a norm are kept, so that the two arms differ only in the
    order.

    Parameters
    ----------
    bn
        Where the norm stands.
    norm
        Which one it is, see `create_norm`.
    momentum
        BatchNorm's, in Keras' sense: the share of a running statistic that is kept at each step.
        PyTorch's momentum is 1 minus this.
    eps
        Added to the variance.
    widths
        Channels of each convolution, then the units of the dense layer.
    size
        Height and width of the input in pixels.
    init
        `keras`: Glorot-uniform weights and zero biases; `torch`: PyTorch's own.

    Raises
    ------
    KitError
        If the input is too small for that many convolutions.
    """

    def __init__(
        self,
        bn: Bn = "before",
        *,
        norm: Norm = "batch",
        momentum: float = 0.99,
        eps: float = 1e-3,
        widths: tuple[int, ...] = (32, 64, 128),
        size: int = 32,
        init: Init = "keras",
    ) -> None:
        super().__init__()
        self.bn = bn
        *channels, hidden = widths
        self.features = nn.Sequential()
        inputs, side = competition.CHANNELS, size
        for outputs in channels:
            own = create_norm(norm, outputs, momentum=momentum, eps=eps)
            self.features.append(Block(nn.Conv2d(inputs, outputs, 3), own, bn, pool=3))
            inputs, side = outputs, (side - 2) // 3
        if side < 1:
            raise KitError(
                f"an input of {size} pixels is too small for {len(channels)} convolutions with "
                "pooling: take fewer --widths or a larger --size"
            )
        dense_norm = create_norm(norm, hidden, momentum=momentum, eps=eps, maps=False)
        self.flatten = nn.Flatten()
        self.dense = Block(nn.Linear(inputs * side**2, hidden), dense_norm, bn)
        self.head = nn.Linear(hidden, 1)
        if init == "keras":
            self.apply(_init_keras)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 1) for images of shape (batch, 3, size, size)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the hidden layer, of shape (batch, units)."""
        features: Tensor = self.dense(self.flatten(self.features(images)))
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the hidden layer's logits, of shape (batch, 1)."""
        logits: Tensor = self.head(features)
        return logits


class CompactCNN(nn.Module):
    """A small CNN for good scores; its logit can be the same for all eight views of a tile.

    Each stage has two 3x3 convolutions with padding; 2x2 max pooling separates the stages. From
    64 pixels on, the first convolution is 4x4 with stride 2. BatchNorm stands before or after each
    activation, as in `SmallCNN`. The logit is a linear function of the `tile_statistics` of every
    stage, so that fine textures count as much as deep features.

    Parameters
    ----------
    widths
        Channels of each stage, in each orientation.
    orientations
        8 holds each filter in all orientations of the square, see `GroupConv2d`. If every stage
        halves an even number of pixels, all eight views of a tile have one logit, within rounding.

    Raises
    ------
    KitError
        If the input is too small for that many stages.
    """

    def __init__(
        self,
        bn: Bn = "before",
        *,
        norm: Norm = "batch",
        momentum: float = 0.9,
        eps: float = 1e-5,
        widths: tuple[int, ...] = (6, 12, 24),
        orientations: Orientations = 8,
        size: int = 96,
        init: Init = "torch",
    ) -> None:
        super().__init__()
        if size < 2 ** (len(widths) - 1):
            raise KitError(
                f"an input of {size} pixels is too small for {len(widths)} stages: take fewer "
                "--widths or a larger --size"
            )
        self.orientations = orientations
        self.stages = nn.ModuleList()
        inputs = competition.CHANNELS
        for number, outputs in enumerate(widths):
            halve = number == 0 and size >= HALVED_SIZE
            first = GroupConv2d(
                inputs,
                outputs,
                4 if halve else 3,
                orientations=orientations,
                lift=number == 0,
                stride=2 if halve else 1,
                padding=1,
            )
            second = GroupConv2d(outputs, outputs, 3, orientations=orientations, padding=1)
            first_norm, second_norm = (
                self._map_norm(norm, outputs, momentum=momentum, eps=eps) for _ in range(2)
            )
            pool = 2 if number + 1 < len(widths) else None
            stage = Block(first, first_norm, bn), Block(second, second_norm, bn, pool=pool)
            self.stages.append(nn.Sequential(*stage))
            inputs = outputs
        self.norm = create_norm(norm, 3 * sum(widths), momentum=momentum, eps=eps, maps=False)
        self.head = nn.Linear(3 * sum(widths), 1)
        if init == "keras":
            self.apply(_init_keras)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 1) for images of shape (batch, 3, size, size)."""
        return self.forward_head(self.forward_features(images))

    def _map_norm(self, kind: Norm, channels: int, *, momentum: float, eps: float) -> nn.Module:
        if kind == "batch":
            return GroupBatchNorm2d(GroupBatchNorm1d(channels, eps=eps, momentum=1 - momentum))
        orientations = self.orientations
        return create_norm(kind, channels, momentum=momentum, eps=eps, orientations=orientations)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the `tile_statistics` of all stages, of shape (batch, features)."""
        statistics = []
        for stage in self.stages:
            images = stage(images)
            statistics.append(tile_statistics(images, self.orientations))
        return torch.cat(statistics, 1)

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the statistics' logits, of shape (batch, 1)."""
        logits: Tensor = self.head(self.norm(features))
        return logits


def tile_statistics(maps: Tensor, orientations: int) -> Tensor:
    """Return each channel's mean and standard deviation over a tile, and its mean in the centre.

    Parameters
    ----------
    maps
        (batch, orientations * channels, height, width).

    Returns
    -------
    Tensor
        (batch, 3 * channels); the centre is the middle third of height and width.
    """
    statistics: Tensor = _TileStatistics.apply(maps, orientations)
    return statistics


class _TileStatistics(torch.autograd.Function):
    """`tile_statistics` with its gradient in one piece.

    PyTorch's own gradient goes back through each mean and square by itself, in passes over all
    pixels that take five times as long.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, orientations: int) -> Tensor:
        # In half precision a sum of many pixels would be too coarse.
        wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
        batch, _, height, width = maps.shape
        pixels = wide.permute(0, 2, 3, 1).reshape(batch, height * width * orientations, -1)
        mean = pixels.mean(1)
        variance = (pixels.square().mean(1) - mean.square()).clamp_min(0)
        # The gradient of a root is unbounded at 0.
        deviation = (variance + 1e-4).sqrt()
        centre = _centre(wide).mean((2, 3)).view(batch, orientations, -1).mean(1)
        ctx.save_for_backward(maps, mean, deviation)
        ctx.orientations = orientations
        return torch.cat([mean, deviation, centre], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        maps, mean, deviation = ctx.saved_tensors
        of_mean, of_deviation, of_centre = gradient.to(mean.dtype).chunk(3, 1)
        count = maps[0].numel() // mean.shape[1]
        slope = of_deviation / (deviation * count)
        offset = of_mean / count - mean * slope
        slope, offset, of_centre = (
            part.repeat(1, ctx.orientations)[:, :, None, None]
            for part in (slope, offset, of_centre)
        )
        of_maps = maps.to(mean.dtype).mul(slope).add_(offset)
        centre = _centre(of_maps)
        centre += of_centre / (centre[0, 0].numel() * ctx.orientations)
        return of_maps.to(maps.dtype), None


def _centre(maps: Tensor) -> Tensor:
    """Return the middle third of height and width."""
    rows, columns = maps.shape[2] // 3, maps.shape[3] // 3
    return maps[:, :, rows : maps.shape[2] - rows, columns : maps.shape[3] - columns]


def _init_keras(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear | GroupConv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
