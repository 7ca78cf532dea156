"""Networks to try in place of `compact`, see score.sh: --model experiments/leads.py:NAME.

All have the widths 4, 8, 16 in eight orientations, and one answer for all eight views of a tile.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kit.base import CHANNEL_STATISTICS
from kit.models import CompactCNN
from kit.models.networks import tile_statistics
from kit.models.norms import create_norm

WIDTHS = (4, 8, 16)


class CentreMaximum(CompactCNN):
    """Each stage gives the maximum over the centre's pixels, too: a tumour's edge is enough."""

    def __init__(self, size: int) -> None:
        super().__init__(widths=WIDTHS, size=size)
        _replace_head(self, 4 * sum(WIDTHS))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the stages' statistics and the maxima, of shape (batch, features)."""
        features = []
        for stage in self.stages:
            images = stage(images)
            third = images.shape[2] // 3
            centre = images[:, :, third:-third, third:-third].float().amax((2, 3))
            peaks = centre.view(len(images), self.orientations, -1).amax(1)
            features += [tile_statistics(images, self.orientations), peaks]
        return torch.cat(features, 1)


class TwoStreams(CompactCNN):
    """A second network sees the central half at twice the resolution; its statistics join."""

    def __init__(self, size: int) -> None:
        super().__init__(widths=WIDTHS, size=size)
        self.edge = size // 4
        self.centre = CompactCNN(widths=WIDTHS, size=size - 2 * self.edge)
        del self.centre.norm, self.centre.head
        _replace_head(self, 6 * sum(WIDTHS))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the statistics of both, of shape (batch, features)."""
        edge = self.edge
        centre = images[:, :, edge:-edge, edge:-edge]
        own, closer = super().forward_features(images), self.centre.forward_features(centre)
        return torch.cat([own, closer], 1)


class Residual(CompactCNN):
    """What enters the second convolution of a stage is added to what leaves its norm."""

    def __init__(self, size: int) -> None:
        super().__init__(widths=WIDTHS, size=size)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the stages' statistics, of shape (batch, features)."""
        features = []
        for first, second in self.stages:
            images = first(images)
            images = functional.relu(second.norm(second.layer(images)) + images)
            if second.pooling:
                images = functional.max_pool2d(images, second.pooling)
            features.append(tile_statistics(images, self.orientations))
        return torch.cat(features, 1)


class OwnColours(CompactCNN):
    """Each tile is shown by its optical densities, less their mean and over their deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(widths=WIDTHS, size=size)
        for name, values in zip(("mean", "std"), CHANNEL_STATISTICS["competition"], strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the stages' statistics, of shape (batch, features)."""
        intensities = images.float() * self.std + self.mean
        densities = -intensities.clamp_min(4 / 255).log()
        centred = densities - densities.mean((2, 3), keepdim=True)
        return super().forward_features(centred / (densities.std((2, 3), keepdim=True) + 0.04))


def _replace_head(network: CompactCNN, features: int) -> None:
    network.norm = create_norm("batch", features, momentum=0.9, eps=1e-5, maps=False)
    network.head = nn.Linear(features, 1)
