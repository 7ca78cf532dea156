"""Frozen encoders: what is pooled, by formulas; the cards of published models."""

import pytest
import timm
import torch
from torch import nn

from kit import models
from kit.base import KitError, Recipe
from kit.models import Encoder

IMAGES = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_statistics_of_a_map_are_those_of_the_formulas() -> None:
    network = timm.create_model("test_resnet").eval()
    grid = network.forward_features(IMAGES)
    features = Encoder(network, ("mean", "max", "spread"), 96)(IMAGES)
    expected = [
        grid.mean((2, 3)),
        grid.flatten(2).max(2).values,
        grid.flatten(2).std(2, correction=0),
    ]
    assert torch.allclose(features, torch.cat(expected, 1), atol=1e-6)


class Map(nn.Module):
    """A network that returns its images as its map."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 7, 12, 16])
@pytest.mark.parametrize("crop", [32, 48, 96])
def test_the_centre_is_the_mean_over_the_pixels_that_decide_the_label(side: int, crop: int) -> None:
    grid = torch.rand(1, 3, side, side)
    # Each of the map's cells as the pixels that it stands for, on a raster both sides divide.
    fine = grid.repeat_interleave(3 * crop, 2).repeat_interleave(3 * crop, 3)
    edge = round(fine.shape[2] * (1 - 32 / crop) / 2)
    middle = fine[:, :, edge : fine.shape[2] - edge, edge : fine.shape[3] - edge]
    features = Encoder(Map(), ("centre",), crop)(grid)
    assert torch.allclose(features, middle.mean((2, 3)), atol=1e-5)


def test_tokens_are_told_apart() -> None:
    network = timm.create_model("test_vit").eval()
    tokens = network.forward_features(IMAGES)
    features = Encoder(network, ("class", "mean"), 96)(IMAGES)
    assert torch.equal(features, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))


def test_stages_are_pooled_before_the_last_map() -> None:
    network = timm.create_model("test_efficientnet").eval()
    last, stages = network.forward_intermediates(IMAGES)
    features = Encoder(network, ("stages", "mean"), 96)(IMAGES)
    widths = sum(stage.shape[1] for stage in stages)
    assert features.shape == (2, 4 * widths + last.shape[1])
    assert torch.allclose(features[:, : stages[0].shape[1]], stages[0].mean((2, 3)), atol=1e-6)


def test_an_encoder_stays_as_it_is() -> None:
    model = models.create_model(
        Recipe(model="test_resnet", size=96, probe="linear", pool=("mean",))
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()(IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_a_class_token_that_is_not_there_is_refused() -> None:
    with pytest.raises(KitError, match="test_resnet has no class token: leave class out of --pool"):
        models.create_model(Recipe(model="test_resnet", size=96, probe="linear", pool=("class",)))


@pytest.mark.parametrize(
    ("model", "normalize", "pool"),
    [
        ("vit_small_patch16_224", "half", ("class", "mean", "centre")),
        ("resnet50", "imagenet", ("stages", "mean", "centre")),
        ("tf_efficientnet_lite0", "half", ("stages", "mean", "centre")),
        ("virchow2", "imagenet", ("class", "mean", "centre")),
        ("h-optimus-1", "bioptimus", ("class", "centre")),
    ],
)
def test_a_recipe_follows_its_model(model: str, normalize: str, pool: tuple[str, ...]) -> None:
    recipe = models.follow_model(Recipe(model=model, normalize="model", probe="linear"))
    assert (recipe.normalize, recipe.pool) == (normalize, pool)
    assert models.follow_model(recipe) == recipe


@pytest.mark.parametrize("name", models.CARDS)
def test_a_card_builds_a_model_of_the_size_that_its_authors_tell(name: str) -> None:
    card = models.CARDS[name]
    source = models.find_source(name)
    with torch.device("meta"):
        network = source.build({**source.options, "num_classes": 0})
    millions = sum(weight.numel() for weight in network.parameters()) / 1e6
    assert abs(millions - card.parameters) <= 0.5
    assert name in models.describe_cards()


def test_the_fingerprint_is_that_of_the_weights() -> None:
    torch.manual_seed(0)
    one, other = (timm.create_model("test_resnet") for _ in range(2))
    assert models.weights_fingerprint(one) != models.weights_fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert models.weights_fingerprint(one) == models.weights_fingerprint(other)
