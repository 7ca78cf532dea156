"""The norms of the kit's own networks, beside BatchNorm."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kit.base import KitError, Norm, Recipe
from kit.data import Store
from kit.models import CompactCNN, SmallCNN, create_model, fuse_norms
from kit.models.blocks import Block
from kit.models.norms import GroupedNorm, create_norm
from kit.study import parse_arms, search_space

KINDS: tuple[Norm, ...] = ("group", "layer", "instance")


def written_out(maps: Tensor, groups: int, norm: GroupedNorm) -> Tensor:
    """Equation 1 of Wu and He, tile by tile and group by group."""
    channels = maps.shape[1] // groups
    result = maps.clone()
    for tile in range(len(maps)):
        for group in range(groups):
            part = slice(group * channels, (group + 1) * channels)
            values = maps[tile, part]
            spread = (values.var(correction=0) + norm.eps).sqrt()
            result[tile, part] = (values - values.mean()) / spread
    shape = (1, -1) + (1,) * (maps.ndim - 2)
    return result * norm.weight.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize(("kind", "groups"), [("group", 3), ("layer", 1), ("instance", 48)])
def test_a_norm_is_the_formula(kind: Norm, groups: int) -> None:
    norm = create_norm(kind, 48, momentum=0.9, eps=1e-3)
    assert isinstance(norm, GroupedNorm)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    maps = torch.randn(2, 48, 5, 4, generator=generator)
    torch.testing.assert_close(norm(maps), written_out(maps, groups, norm), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(6, 1), (16, 1), (17, 17), (24, 2), (32, 2), (128, 8)]
)
def test_a_groups_channels_are_at_most_16(channels: int, groups: int) -> None:
    norm = create_norm("group", channels, momentum=0.9, eps=1e-3)
    assert isinstance(norm, GroupedNorm)
    assert norm.num_groups == groups


def test_a_vector_has_no_instance_to_normalise() -> None:
    vectors = torch.randn(2, 6)
    same = create_norm("instance", 6, momentum=0.9, eps=1e-3, maps=False)
    assert torch.equal(same(vectors), vectors)


@pytest.mark.parametrize("bn", ["before", "after"])
@pytest.mark.parametrize("kind", [*KINDS, "none"])
@pytest.mark.parametrize("model", ["small", "compact"])
def test_a_tile_is_normalised_by_itself(model: str, kind: Norm, bn: str) -> None:
    """In training as in evaluation: a tile's logit does not depend on its batch."""
    recipe = Recipe(model=model, norm=kind, bn=bn, widths=(4, 6, 8), size=32)  # type: ignore[arg-type]
    network = create_model(recipe).train()
    images = torch.randn(4, 3, 32, 32)
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.eval()(images), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fuse_norms(network)(images), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_place_of_a_norm_matters(kind: Norm) -> None:
    before, after = (create_model(Recipe(norm=kind, bn=bn)) for bn in ("before", "after"))
    assert before.state_dict().keys() == after.state_dict().keys()
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(before(images), after(images))


def test_without_norms_there_is_only_one_place() -> None:
    first, second = (SmallCNN(bn, norm="none") for bn in ("before", "after"))
    second.load_state_dict(first.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first.eval()(images), second.eval()(images))
    assert [type(part).__name__ for part in first.modules() if isinstance(part, Block)]
    with pytest.raises(KitError, match="the place of norms is fixed in a network with --norm none"):
        parse_arms([], Recipe(norm="none"), set())


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_all_eight_views_keep_one_answer(kind: Norm) -> None:
    network = CompactCNN(norm=kind, widths=(4, 6), orientations=8, size=32).eval()
    image = torch.rand(1, 3, 32, 32)
    views = [view.rot90(turn, (2, 3)) for view in (image, image.flip(3)) for turn in range(4)]
    logits = torch.cat([network(view) for view in views])
    torch.testing.assert_close(logits, logits[:1].expand(8, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        (Recipe(norm="group"), "bn_momentum", "--bn-momentum has no meaning for --norm group"),
        (Recipe(norm="none"), "bn", "--bn has no meaning for --norm none"),
        (Recipe(model="resnet18"), "norm", "--norm has no meaning for --model resnet18"),
        (Recipe(model="a.py:B"), "norm", "--norm has no meaning for --model a.py:B"),
        (Recipe(model="a.py:B"), "layer_decay", "--layer-decay has no meaning for --model a.py:B"),
    ],
)
def test_options_without_a_meaning_are_refused(recipe: Recipe, given: str, message: str) -> None:
    with pytest.raises(KitError, match=message):
        recipe.reject_unused({given})


def test_a_search_varies_what_a_norm_has(tiles: Store) -> None:
    free = search_space(Recipe(batch_size=8), tiles).free
    group = search_space(Recipe(batch_size=8, norm="group"), tiles).free
    none = search_space(Recipe(batch_size=8, norm="none"), tiles).free
    assert free - group == {"bn_momentum"}
    assert group - none == {"bn"}
    assert replace(Recipe(), norm="group").norm == "group"
