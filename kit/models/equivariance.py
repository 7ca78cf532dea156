"""Convolutions whose outputs turn with a tile: each filter in the orientations of the square."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kit.base import Orientations


class GroupConv2d(nn.Module):
    """A convolution that applies each filter in several orientations of the square.

    Its maps are ordered by orientation, `orientations * out_channels` in all. If the input is
    turned or mirrored, so are the maps, and the orientations are permuted. So a mean over pixels
    and orientations is invariant.

    Parameters
    ----------
    in_channels, out_channels
        Per orientation.
    orientations
        8: those of the group p4m, in the order of `d4_transform`; 1: a plain convolution.
    lift
        Whether the input is an image, which has one orientation.

    References
    ----------
    Cohen and Welling, Group equivariant convolutional networks, arXiv:1602.07576, section 6.
    On these tiles: Veeling et al., arXiv:1806.03962.
    """

    index: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        orientations: Orientations,
        lift: bool = False,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        inputs = 1 if lift else orientations
        self.orientations = orientations
        self.stride = stride
        self.padding = padding
        shape = (out_channels, inputs * in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        index = _filter_index(inputs, in_channels, kernel_size, orientations)
        self.register_buffer("index", index, persistent=False)

    def kernel(self) -> Tensor:
        """Return all filters, (orientations * out_channels, inputs, height, width)."""
        # In each orientation every weight stands once. So the gradient of `gather` adds nothing up,
        # and that of `expand` sums the orientations in one order: threads cannot change a bit.
        # Indexing adds in the order in which the threads arrive.
        filters = self.weight.flatten(1).unsqueeze(1).expand(-1, self.orientations, -1)
        filters = filters.gather(2, self.index.expand(len(filters), -1, -1)).transpose(0, 1)
        kernel = filters.reshape(-1, *self.weight.shape[1:])
        return kernel.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return maps of shape (batch, orientations * out_channels, height, width)."""
        bias = self.bias.repeat(self.orientations)
        return functional.conv2d(images, self.kernel(), bias, self.stride, self.padding)

    def as_conv2d(self) -> nn.Conv2d:
        """Return the plain convolution that does the same, for evaluation."""
        outputs, inputs, side, _ = self.kernel().shape
        conv = nn.Conv2d(inputs, outputs, side, self.stride, self.padding)
        conv.weight.data = self.kernel().detach()
        conv.bias = nn.Parameter(self.bias.detach().repeat(self.orientations))
        return conv.eval()


def d4_transform(images: Tensor, element: int) -> Tensor:
    """Return square images moved by an element of D4: 0 to 7, as in the data's transforms."""
    if element & 1:
        images = images.transpose(-1, -2)
    if element & 2:
        images = images.flip(-2)
    if element & 4:
        images = images.flip(-1)
    return images


def _filter_index(inputs: int, channels: int, side: int, orientations: int) -> Tensor:
    """Return the position within the filter of each weight of each orientation.

    The shape is (orientations, inputs * channels * side**2).
    """
    count = inputs * channels * side**2
    filters = torch.arange(count).view(inputs, channels, side, side)
    sources = _sources(orientations) if inputs > 1 else [[0]] * orientations
    index = [
        d4_transform(filters[source], element).flatten() for element, source in enumerate(sources)
    ]
    return torch.stack(index)


def _sources(orientations: int) -> list[list[int]]:
    """Return for elements g and h of D4 the k for which g after k is h."""
    elements = range(orientations)
    moved = [d4_transform(torch.arange(9).view(3, 3), element) for element in elements]
    return [
        [
            next(k for k in elements if torch.equal(d4_transform(moved[k], g), moved[h]))
            for h in elements
        ]
        for g in elements
    ]
