from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional

from kit import models
from kit.base import Bn, KitError, Recipe
from kit.data import eight_views
from kit.models import SmallCNN
from kit.models.networks import tile_statistics

TINY = "test_resnet"


def randomised(bn: Any) -> SmallCNN:
    """A network whose statistics, scales and biases are far from where they start."""
    model = SmallCNN(bn)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.2 * (torch.rand(tensor.shape, generator=generator) - 0.5))
    return model.eval()


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """(x - mean) / sqrt(var + eps) * scale + shift, channel by channel."""
    mean, var, scale, shift = (
        state[f"{name}.{part}"].view(1, -1, *[1] * (x.ndim - 2))
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-3) * scale + shift


@pytest.mark.parametrize("bn", ["before", "after"])
def test_evaluation_is_the_written_out_formula(bn: str) -> None:
    model = randomised(bn)
    state = model.state_dict()
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def norm_act(x: Tensor, name: str) -> Tensor:
        if bn == "before":
            return norm(x, state, name).clamp(min=0)
        return norm(x.clamp(min=0), state, name)

    x = images
    for block in ("features.0", "features.1"):
        x = functional.conv2d(x, state[f"{block}.layer.weight"], state[f"{block}.layer.bias"])
        x = functional.max_pool2d(norm_act(x, f"{block}.norm"), 3)
    x = x.flatten(1) @ state["dense.layer.weight"].T + state["dense.layer.bias"]
    expected = norm_act(x, "dense.norm") @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


def test_arms_differ_in_nothing_but_the_order() -> None:
    before, after = (models.create_model(Recipe(bn=bn, seed=4)) for bn in ("before", "after"))
    assert list(before.state_dict()) == list(after.state_dict())
    for one, other in zip(before.state_dict().values(), after.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(before(images), after(images))


def test_seed_decides_the_weights_and_leaves_the_callers_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (models.create_model(Recipe(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_layer_table_counts_as_keras_does() -> None:
    table = models.layer_table(SmallCNN(), 32)
    assert table.endswith("53,313 parameters: 52,865 trainable, 448 running statistics")
    counts = [896, 128, 18_496, 256, 32_896, 512, 129]
    rows = [line.split() for line in table.splitlines()[1:-1]]
    assert [int(row[-1].replace(",", "")) for row in rows if row[-1] != "0"] == counts
    assert "(64, 2, 2)" in table


def test_layer_table_of_a_backbone_has_few_lines_and_the_same_sums() -> None:
    model = models.create_model(Recipe(model="test_resnet"))
    whole, short = (models.layer_table(model, 96, depth=depth).splitlines() for depth in (None, 1))
    assert len(short) == 12 < len(whole)
    assert [line.split()[0] for line in short[1:3]] == ["conv1", "bn1"]
    assert short[-1] == whole[-1]
    counts = [
        sum(int(line.split()[-1].replace(",", "")) for line in t[1:-1]) for t in (whole, short)
    ]
    assert counts[0] == counts[1]
    assert model.training


def test_layer_table_is_made_on_the_networks_device() -> None:
    assert "53,313" in models.layer_table(SmallCNN().to("meta"), 32)


def test_keras_initialisation_is_glorot_uniform_with_zero_biases() -> None:
    model = SmallCNN(widths=(32, 64, 4096))
    for layer, fans in ((model.features[1].layer, 9 * (32 + 64)), (model.dense.layer, 256 + 4096)):
        limit = (6 / fans) ** 0.5
        assert layer.weight.abs().max() <= limit * (1 + 1e-6)
        assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
        assert not layer.bias.any()


def test_momentum_is_given_as_keras_does() -> None:
    model = SmallCNN(momentum=0.9).train()
    images = torch.rand(64, 3, 32, 32)
    outputs = model.features[0].layer(images)
    model(images)
    running = model.features[0].norm.running_mean
    torch.testing.assert_close(running, 0.1 * outputs.mean((0, 2, 3)))


def test_smallest_running_variance_is_that_of_all_norms() -> None:
    model = SmallCNN()
    model.dense.norm.running_var[3] = 1e-9
    assert models.min_running_var(model) == pytest.approx(1e-9)
    assert models.min_running_var(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(("size", "widths"), [(8, (32, 64, 128)), (32, (8, 8, 8, 8))])
def test_too_small_an_input_is_refused(size: int, widths: tuple[int, ...]) -> None:
    with pytest.raises(KitError, match=f"an input of {size} pixels is too small"):
        SmallCNN(size=size, widths=widths)


@pytest.mark.parametrize(("size", "widths"), [(96, (8, 16, 32, 64)), (64, (16, 32))])
def test_other_sizes_and_widths_run(size: int, widths: tuple[int, ...]) -> None:
    model = SmallCNN(size=size, widths=widths)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 1)


@pytest.mark.parametrize("bn", ["before", "after"])
@pytest.mark.parametrize("model", ["small", "compact"])
def test_fused_norms_give_the_same_logits(model: str, bn: Bn) -> None:
    network = models.create_model(Recipe(model=model, bn=bn))
    images = torch.randn(16, 3, 32, 32)
    for _ in range(3):
        network(images)
    fused = models.fuse_norms(network)
    torch.testing.assert_close(fused(images), network.eval()(images), atol=1e-5, rtol=1e-4)
    # The norm of the tile statistics follows no layer.
    alone = 1 if model == "compact" else 0
    left = len(models.batch_norms(fused))
    assert left == (alone if bn == "before" else len(models.batch_norms(network)))


class Residual(models.CompactCNN):
    """Takes the second block of each stage apart."""

    def forward_features(self, images: Tensor) -> Tensor:
        for first, second in self.stages:
            halved = first(images)
            images = functional.relu(second.norm(second.layer(halved)) + halved)
        return images.mean((2, 3)).repeat(1, 3)


class Unpooled(models.SmallCNN):
    """Leaves out what the first block ends with."""

    def forward_features(self, images: Tensor) -> Tensor:
        first = self.features[0]
        return first.norm(first.layer(images)).mean((2, 3))


@pytest.mark.parametrize(
    "network",
    [Residual(widths=(2,), orientations=1), Unpooled(widths=(4, 4), size=32)],
    ids=lambda network: type(network).__name__,
)
def test_a_network_derived_from_the_kits_own_is_evaluated_as_it_is_written(
    network: torch.nn.Module,
) -> None:
    images = torch.randn(8, 3, 32, 32)
    network(images)
    expected = network.eval()(images)
    fused = [models.fuse_norms(network) for _ in range(2)]
    models.share_stem(fused)
    for one in fused:
        assert torch.equal(one(images), expected)


def normalise(features: Tensor) -> Tensor:
    dims = [0, *range(2, features.ndim)]
    centred = features - features.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("bn", ["before", "after"])
def test_compact_network_is_the_written_out_one(bn: Bn, size: int) -> None:
    """Two padded convolutions a stage, pooled in between; statistics of each stage, one logit."""
    network = models.CompactCNN(bn, widths=(4, 6), orientations=1, size=size).double()
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    logits = network(images)
    features, statistics = images, []
    for stage in network.stages:
        for block in stage:
            layer, stride = block.layer, 2 if block.layer.weight.shape[2] == 4 else 1
            features = functional.conv2d(features, layer.weight, layer.bias, stride, padding=1)
            if bn == "after":
                features = features.relu()
            features = normalise(features)
            if bn == "before":
                features = features.relu()
        if stage is network.stages[0]:
            features = functional.max_pool2d(features, 2)
        edge = features.shape[2] // 3
        centre = features[:, :, edge:-edge, edge:-edge]
        spread = (features.var((2, 3), correction=0) + 1e-4).sqrt()
        statistics += [features.mean((2, 3)), spread, centre.mean((2, 3))]
    assert (size == 64) == (network.stages[0][0].layer.weight.shape[2] == 4)
    torch.testing.assert_close(logits, network.head(normalise(torch.cat(statistics, 1))))


@pytest.mark.parametrize("name", ["small", "compact", "test_resnet"])
@pytest.mark.parametrize("bn", ["before", "after"])
def test_networks_that_share_their_stem_are_the_same_bit_for_bit(name: str, bn: Bn) -> None:
    network = models.create_model(Recipe(model=name, bn=bn, widths=(4, 6, 8)))
    fused = []
    for _ in range(3):
        network.train()(torch.randn(8, 3, 32, 32))
        fused.append(models.fuse_norms(network))
    images = torch.randn(16, 3, 32, 32)
    expected = [one(images) for one in fused]
    models.share_stem(fused)
    for _ in range(2):
        for one, logits in zip(fused, expected, strict=True):
            assert torch.equal(one(images), logits)
        assert not torch.equal(fused[0](images.flip(0)), expected[0])


def test_a_shared_stem_is_computed_once() -> None:
    network = models.create_model(Recipe())
    fused = [models.fuse_norms(network) for _ in range(4)]
    models.share_stem(fused)
    seen: list[Tensor] = []
    for one in fused:
        one.features[0][0].module[0].register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    images = torch.randn(2, 3, 32, 32)
    for one in fused:
        one(images)
    # All four hooks are of the one convolution, which has run once.
    assert len(seen) == 4


@pytest.mark.parametrize("bn", ["before", "after"])
@pytest.mark.parametrize("size", [32, 96])
def test_compact_network_gives_all_eight_views_one_answer(bn: Bn, size: int) -> None:
    network = models.CompactCNN(bn, widths=(2, 3, 4), size=size).double()
    network(torch.randn(8, 3, size, size, dtype=torch.float64))
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    network.eval()
    logits = [network(view) for view in eight_views(images)]
    assert logits[0].std() > 0
    for one in logits[1:]:
        torch.testing.assert_close(one, logits[0])


def test_compact_arms_start_from_the_same_tensors() -> None:
    recipe = Recipe(model="compact", orientations=8, size=64)
    before, after = (models.create_model(replace(recipe, bn=bn)) for bn in ("before", "after"))
    assert before.state_dict().keys() == after.state_dict().keys()
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name])


def test_compact_network_needs_room_for_its_stages() -> None:
    with pytest.raises(KitError, match="an input of 4 pixels is too small for 4 stages"):
        models.CompactCNN(widths=(4, 4, 4, 4), size=4)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(model="compact", size=64), Recipe(model="compact", bn="after", size=64)],
    ids=["small", "compact", "compact-after"],
)
def test_a_network_on_a_gpu_makes_nothing_elsewhere(recipe: Recipe) -> None:
    """With tensors that have a device but no data: what mixes devices raises."""
    model = models.create_model(recipe)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            for name, tensor in tensors
        }
        images = torch.empty((4, 3, recipe.size, recipe.size), device="cuda")
        logits = functional_call(model, state, (images,))
    assert logits.device.type == "cuda"
    assert logits.shape == (4, 1)


@pytest.mark.parametrize("orientations", [1, 8])
def test_the_gradient_of_tile_statistics_is_that_of_their_values(orientations: int) -> None:
    maps = torch.randn(2, 16, 7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda own: tile_statistics(own, orientations), maps)
