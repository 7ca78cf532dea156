"""Tests of the block and of the norm that pools first."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from kit.base import Bn
from kit.models.blocks import Block
from kit.models.equivariance import GroupConv2d
from kit.models.norms import BatchNorm2d, GroupBatchNorm1d, GroupBatchNorm2d

BNS: tuple[Bn, ...] = ("before", "after")


def create_block(bn: Bn, *, pool: int | None = 3) -> Block:
    """Return a block in double precision whose norm is not the identity."""
    torch.manual_seed(0)
    norm = BatchNorm2d(5, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -1, 1)
    return Block(nn.Conv2d(3, 5, 3), norm, bn, pool=pool).double()


def create_group_block(bn: Bn, *, pool: int | None) -> Block:
    """Return a block whose maps stand in eight orientations."""
    torch.manual_seed(0)
    norm = GroupBatchNorm1d(5, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -1, 1)
    layer = GroupConv2d(3, 5, 3, orientations=8, lift=True)
    return Block(layer, GroupBatchNorm2d(norm), bn, pool=pool).double()


def with_plain_norm(block: Block) -> Block:
    """Return a copy that normalises pixels by PyTorch's own norm."""
    copied = copy.deepcopy(block)
    plain = nn.BatchNorm1d(5, momentum=0.3).to(copied.norm.norm.weight)
    plain.load_state_dict(copied.norm.norm.state_dict())
    copied.norm.norm = plain
    return copied


def step(function: Callable[[Tensor], Tensor], block: Block, images: Tensor) -> dict[str, Tensor]:
    """Return outputs, gradients and buffers after one pass there and back."""
    images = images.clone().requires_grad_()
    outputs = function(images)
    (outputs * torch.linspace(-1, 2, outputs.numel()).view_as(outputs)).sum().backward()
    gradients = {name: weight.grad for name, weight in block.named_parameters()}
    return {
        "outputs": outputs.detach(),
        "images": images.grad,
        **gradients,
        **dict(block.named_buffers()),
    }


def tiles(side: int = 14) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize("bn", BNS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_block_that_pools_first_is_the_chain_of_its_parts(
    bn: Bn, layout: torch.memory_format
) -> None:
    block = create_block(bn)
    chain = copy.deepcopy(block)
    images = tiles().contiguous(memory_format=layout)
    assert block.norm.can_pool(images)
    expected = step(lambda inputs: nn.Sequential.forward(chain, inputs), chain, images)
    for name, tensor in step(block, block, images).items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize("bn", BNS)
def test_gradients_are_those_of_finite_differences(bn: Bn) -> None:
    block = create_block(bn, pool=2)
    assert torch.autograd.gradcheck(block, tiles(6).requires_grad_())


@pytest.mark.parametrize("pool", [2, 3])
def test_norm_with_pooling_gives_the_maxima_of_what_it_gives_without(pool: int) -> None:
    norm, other = BatchNorm2d(3).double(), BatchNorm2d(3).double()
    images = tiles()
    expected = nn.functional.max_pool2d(other(images), pool)
    torch.testing.assert_close(norm(images, pool=pool), expected)
    assert norm.num_batches_tracked == other.num_batches_tracked == 1


def test_a_weight_that_turns_maxima_into_minima_keeps_the_chain() -> None:
    block = create_block("before")
    with torch.no_grad():
        block.norm.weight[2] = -1.0
    assert not block.norm.can_pool(tiles())
    expected = step(
        lambda inputs: nn.Sequential.forward(block, inputs), copy.deepcopy(block), tiles()
    )
    torch.testing.assert_close(block(tiles()), expected["outputs"])


@pytest.mark.parametrize("bn", BNS)
def test_half_precision_is_as_near_as_the_chain_of_the_parts(bn: Bn) -> None:
    """Held against double precision: rounding to bf16 costs both the same."""
    block = create_block(bn)
    images = tiles(32)
    rounded = [copy.deepcopy(block).float() for _ in range(2)]
    expected = step(block, block, images)
    errors = []
    for one, function in zip(rounded, (Block.forward, nn.Sequential.forward), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            assert one.norm.can_pool(images.float())
            found = step(partial(function, one), one, images.float())
        errors.append({name: (found[name] - expected[name]).double().norm() for name in expected})
    first, chain = errors
    for name in expected:
        # The gradient of a bias in front of a norm is rounding alone, and in both arms small.
        if name != "layer.bias":
            assert first[name] <= 1.1 * chain[name] + 1e-6, name


def test_evaluation_keeps_the_chain() -> None:
    block = create_block("before").float()
    images = tiles().float()
    assert block.norm.can_pool(images)
    block.eval()
    assert not block.norm.can_pool(images)
    torch.testing.assert_close(block(images), nn.Sequential.forward(block, images))


@pytest.mark.parametrize("bn", BNS)
@pytest.mark.parametrize("pool", [None, 2])
def test_orientations_are_normalised_as_by_pytorchs_norm_of_their_pixels(
    bn: Bn, pool: int | None
) -> None:
    block = create_group_block(bn, pool=pool)
    chain = with_plain_norm(block)
    images = tiles().contiguous(memory_format=torch.channels_last)
    assert block.norm.can_pool(images)
    assert not chain.norm.can_pool(images)
    expected = step(chain, chain, images)
    for name, tensor in step(block, block, images).items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize("bn", BNS)
@pytest.mark.parametrize("pool", [None, 2])
def test_orientations_in_half_precision_are_as_near_as_pytorchs(bn: Bn, pool: int | None) -> None:
    """Held against double precision, as the other norm is."""
    exact = create_group_block(bn, pool=pool)
    images = tiles(32).contiguous(memory_format=torch.channels_last)
    rounded = [copy.deepcopy(exact).float(), with_plain_norm(exact).float()]
    expected = step(exact, exact, images)
    errors = []
    for block in rounded:
        with torch.autocast("cpu", torch.bfloat16):
            found = step(block, block, images.float())
        assert block.norm.norm.running_var.dtype == torch.float32
        errors.append({name: (found[name] - expected[name]).double().norm() for name in expected})
    for name in expected:
        if name != "layer.bias":
            # Gradients are rounded twice: once more where those of the statistics are added.
            assert errors[0][name] <= 2**0.5 * errors[1][name] + 1e-6, name


def test_a_negative_weight_keeps_the_chain_of_orientations_as_well() -> None:
    block = create_group_block("before", pool=2)
    with torch.no_grad():
        block.norm.norm.weight[2] = -1.0
    assert not block.norm.can_pool(tiles())
    chain = with_plain_norm(block)
    torch.testing.assert_close(block(tiles()), chain(tiles()))
