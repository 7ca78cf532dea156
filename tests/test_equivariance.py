"""Tests of the layers that turn with a tile."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kit.data import transforms
from kit.models.equivariance import GroupConv2d, d4_transform
from kit.models.norms import GroupBatchNorm1d, GroupBatchNorm2d

ELEMENTS = range(8)


def images(side: int = 8) -> Tensor:
    return torch.randn(2, 3, side, side, dtype=torch.float64)


def lifting(side: int = 3, stride: int = 1) -> GroupConv2d:
    torch.manual_seed(0)
    conv = GroupConv2d(3, 5, side, orientations=8, lift=True, stride=stride, padding=1).double()
    nn.init.normal_(conv.bias)
    return conv


def by_orientation(maps: Tensor) -> Tensor:
    return maps.unflatten(1, (8, -1)).transpose(0, 1)


def orders(maps: Tensor, turned: Tensor, element: int) -> list[int]:
    """For each orientation of `turned` the one of `maps` that the element turns into it."""
    candidates = [d4_transform(one, element) for one in by_orientation(maps)]
    return [
        next(k for k, one in enumerate(candidates) if torch.allclose(one, target))
        for target in by_orientation(turned)
    ]


@pytest.mark.parametrize("element", ELEMENTS)
def test_turning_is_the_symmetry_of_the_transforms(element: int) -> None:
    image = torch.randint(0, 256, (6, 6, 3), dtype=torch.uint8)
    expected = transforms.symmetry(image.numpy(), element)
    assert torch.equal(
        d4_transform(image.permute(2, 0, 1), element).permute(1, 2, 0), torch.tensor(expected)
    )


@pytest.mark.parametrize("element", ELEMENTS)
def test_each_orientation_convolves_with_the_filter_turned_by_it(element: int) -> None:
    conv, batch = lifting(), images()
    expected = functional.conv2d(batch, d4_transform(conv.weight, element), conv.bias, padding=1)
    torch.testing.assert_close(by_orientation(conv(batch))[element], expected)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (4, 2)])
def test_maps_turn_with_the_image_and_orientations_change_places(
    element: int, side: int, stride: int
) -> None:
    first, batch = lifting(side, stride), images()
    second = GroupConv2d(5, 4, 3, orientations=8, padding=1).double()
    maps, turned = (second(first(batch).relu()) for batch in (batch, d4_transform(batch, element)))
    assert not torch.allclose(by_orientation(maps)[0], by_orientation(maps)[1])
    assert sorted(orders(maps, turned, element)) == list(ELEMENTS)
    means = [by_orientation(maps).mean((0, 3, 4)) for maps in (maps, turned)]
    torch.testing.assert_close(*means)


def test_one_orientation_is_a_plain_convolution() -> None:
    conv, batch = GroupConv2d(3, 5, 3, orientations=1, padding=1).double(), images()
    expected = functional.conv2d(batch, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(batch), expected)


def test_a_filters_weights_learn_from_all_orientations() -> None:
    conv, batch = lifting(), images()
    conv(batch).sum().backward()
    # The sum of all maps is that of the images under each turned filter, edges apart alike.
    filters = conv.weight.detach().clone().requires_grad_()
    sum(
        functional.conv2d(batch, d4_transform(filters, element), padding=1).sum()
        for element in ELEMENTS
    ).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(conv.weight.grad, filters.grad)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, GroupBatchNorm1d])
def test_a_norm_takes_a_channels_orientations_together(kind: type[nn.BatchNorm1d]) -> None:
    norm = GroupBatchNorm2d(kind(5)).double()
    maps = torch.randn(4, 40, 6, 6, dtype=torch.float64) * 3 + 1
    grouped = maps.unflatten(1, (8, 5))
    mean = grouped.mean((0, 1, 3, 4), keepdim=True)
    variance = grouped.var((0, 1, 3, 4), correction=0, keepdim=True)
    expected = ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
    torch.testing.assert_close(norm(maps), expected)
    torch.testing.assert_close(norm.norm.running_mean, 0.1 * mean.flatten())
    unbiased = grouped.transpose(1, 2).transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(norm.norm.running_var, 0.9 + 0.1 * unbiased)
    assert norm.norm.num_batches_tracked == 1


def test_plain_layers_do_the_same() -> None:
    conv, batch = lifting(4, 2), images()
    norm = GroupBatchNorm2d(GroupBatchNorm1d(5)).double()
    norm(conv(batch))
    norm.eval()
    plain = conv.as_conv2d()
    torch.testing.assert_close(plain(batch), conv(batch))
    torch.testing.assert_close(norm.as_batch_norm2d(8)(plain(batch)), norm(conv(batch)))


@pytest.mark.usefixtures("two_threads")
def test_gradient_is_the_same_bit_for_bit_on_two_threads() -> None:
    conv = GroupConv2d(6, 12, 3, orientations=8, padding=1)
    batch = torch.randn(2, 48, 8, 8).contiguous(memory_format=torch.channels_last)
    gradients = set()
    for _ in range(10):
        conv.weight.grad = None
        conv(batch).square().sum().backward()
        gradients.add(conv.weight.grad.numpy().tobytes())
    assert len(gradients) == 1
