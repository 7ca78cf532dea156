"""Grad-CAM of any network: against the formula, a reference, and in an exported file."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from captum.attr import LayerGradCam
from conftest import Type
from torch import Tensor, nn
from torch.nn import functional

from kit import models, report, runs
from kit.base import KitError, Recipe
from kit.data import Store
from kit.models import MapLayer, find_map_layer, grad_cam
from kit.runs import TrainedModel

COMPACT = Recipe(model="compact", size=48, widths=(2, 3, 4), orientations=8)
RESNET = Recipe(model="test_resnet", size=96, crop=64, interpolation="bicubic")
VIT = Recipe(model="test_vit", size=160, interpolation="bicubic")


def build(recipe: Recipe) -> TrainedModel:
    """Return a network with statistics of images that it has seen."""
    model = models.create_model(recipe)
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 3, recipe.size, recipe.size))
    return TrainedModel(recipe.model, recipe, model.eval(), torch.device("cpu"), torch.float32)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("recipe", [COMPACT, RESNET], ids=lambda recipe: recipe.model)
def test_evidence_is_captums(recipe: Recipe) -> None:
    model = build(recipe).model
    images = torch.rand(3, 3, recipe.size, recipe.size)
    layer = find_map_layer(model, recipe.size)
    assert layer is not None
    logits, evidence = grad_cam(model, layer, images)
    reference = LayerGradCam(lambda given: model(given).squeeze(1), model.get_submodule(layer.name))
    expected = reference.attribute(images).detach().squeeze(1)
    torch.testing.assert_close(evidence, expected)
    torch.testing.assert_close(logits, model(images).detach().squeeze(1))


def test_a_vit_is_asked_before_its_last_attention() -> None:
    """By hand: tokens of places times their mean gradients, the class token apart."""
    model = build(VIT).model
    images = torch.rand(2, 3, 160, 160)
    layer = find_map_layer(model, 160)
    last = len(model.blocks) - 1
    assert layer == MapLayer(f"blocks.{last}.norm1", (10, 10), "tokens")
    _, evidence = grad_cam(model, layer, images)
    block = model.blocks[last]
    with torch.no_grad():
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        before = model.blocks[:last](tokens)
    normed = block.norm1(before).detach().requires_grad_()
    attended = before + block.drop_path1(block.ls1(block.attn(normed)))
    after = attended + block.drop_path2(block.ls2(block.mlp(block.norm2(attended))))
    (gradients,) = torch.autograd.grad(model.forward_head(model.norm(after)).sum(), normed)
    weights = gradients[:, 1:].mean(1, keepdim=True)
    expected = (weights * normed.detach()[:, 1:]).sum(2).view(2, 10, 10)
    torch.testing.assert_close(evidence, expected)


class Own(nn.Module):
    """A person's network: tokens with a class token of its own, and one activation for all."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.activation = nn.ReLU()
        self.first = nn.Parameter(torch.zeros(1, 1, 8))
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.activation(self.patches(images)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], 1)
        mixed = self.activation(self.mix(tokens))
        logits: Tensor = self.head(mixed.mean(1))
        return logits


def test_layers_of_a_persons_own_network_are_named() -> None:
    torch.manual_seed(0)
    own = Own()
    # What is called twice has two maps: neither is meant.
    assert find_map_layer(own, 16) == MapLayer("patches", (4, 4), "maps")
    assert find_map_layer(own, 16, "mix") == MapLayer("mix", (4, 4), "tokens")
    with pytest.raises(KitError, match=r"--cam-layer nothing is no layer .*one of patches, mix$"):
        find_map_layer(own, 16, "nothing")
    with pytest.raises(KitError, match=r"--cam-layer head gives no map .*one of patches, mix$"):
        find_map_layer(own, 16, "head")
    assert own.training


def exported(trained: TrainedModel, layer: str | None = None) -> tuple[np.ndarray, str | None]:
    """Return the maps that an exported file gives of three tiles, once its figures are checked."""
    tiles = noise(3)
    written = runs.export_tile(trained, tiles, cam_layer=layer)
    assert written.difference <= 1e-4
    session = onnxruntime.InferenceSession(written.model)
    planes = np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))
    maps = [session.run(["map"], {"tiles": planes[[number]]})[0] for number in range(3)]
    return np.stack(maps), written.layer


@pytest.mark.parametrize(
    ("recipe", "layer"),
    [(COMPACT, None), (RESNET, None), (RESNET, "layer2"), (VIT, None)],
    ids=["compact", "resnet", "inner", "vit"],
)
def test_an_exported_file_has_the_map_of_the_runs_page(recipe: Recipe, layer: str | None) -> None:
    """Through pooling, strides, attention and a bicubic resize, with PyTorch's own gradient."""
    trained = build(recipe)
    maps, found = exported(trained, layer)
    assert layer in (None, found)
    expected = report.grad_cam(trained, noise(3), layer)
    assert expected is not None
    edge = (96 - recipe.crop) // 2
    inside = expected[:, edge : 96 - edge, edge : 96 - edge]
    assert inside.std() > 0.01
    # A resize in a graph is OpenCV's but for the last digit of some pixels.
    np.testing.assert_allclose(maps, inside, atol=1e-3)


def test_eight_views_are_averaged_and_turned_back() -> None:
    trained = build(Recipe(size=32))
    tiles = noise(2)
    written = runs.export_tile(trained, tiles, views=8)
    assert (written.views, written.difference <= 1e-4) == (8, True)
    session = onnxruntime.InferenceSession(written.model)
    # The same tile on its side has the same probability, and its map on its side.
    upright, turned = (
        session.run(None, {"tiles": np.ascontiguousarray(tile.transpose(2, 0, 1)[None])})
        for tile in (tiles[0], np.rot90(tiles[0]))
    )
    np.testing.assert_allclose(upright[0], turned[0], atol=1e-6)
    np.testing.assert_allclose(np.rot90(upright[1]), turned[1], atol=1e-4)


def test_a_network_without_a_map_is_exported_without_one() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1))
    recipe = Recipe(size=8, crop=8)
    trained = TrainedModel("flat", recipe, model, torch.device("cpu"), torch.float32)
    written = runs.export_tile(trained, noise(2))
    assert (written.layer, written.note) == (None, "the network has no map of several pixels")


def test_a_resize_that_a_graph_cannot_repeat_is_refused() -> None:
    """OpenCV's bilinear weights for bytes are coarse: pixels are off by one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 1))
    nn.init.normal_(model[1].weight, std=0.05)
    recipe = Recipe(size=40, interpolation="bilinear")
    trained = TrainedModel("steep", recipe, model, torch.device("cpu"), torch.float32)
    with pytest.raises(KitError, match=r"differ from PyTorch's .*--interpolation bicubic does not"):
        runs.export_tile(trained, noise(8))


def test_maps_are_scaled_to_one() -> None:
    heat = torch.tensor([[[[0.0, 2.0], [1.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    scaled = runs.scaled_maps(heat, 4)
    expected = functional.interpolate(heat, (4, 4), mode="bilinear").squeeze(1)
    torch.testing.assert_close(scaled[0], expected[0] / 4)
    assert scaled[1].abs().sum() == 0


def test_a_run_keeps_the_layer_of_its_page(tiles: Store, tmp_path: Path, type_in: Type) -> None:
    """A wrong name is told before the training, which can then begin in the same folder."""
    run = tmp_path / "run"
    words = f"--epochs 1 --batch-size 16 --device cpu --data '{tiles.folder.parent}' --out '{run}'"
    status, said = type_in(f"train {words} --cam-layer dense")
    assert (status, "dense gives no map" in said) == (1, True), said
    assert "name one of features.0.layer, " in said
    assert not (run / "history.jsonl").exists()
    status, said = type_in(f"train {words} --cam-layer features.0.act")
    assert status == 0, said
    assert runs.read_config(run)["options"]["cam_layer"] == "features.0.act"
    assert "--cam-layer features.0.act" in report.train_command(run, tiles.data)
    assert "--cam-layer features.0.act" in (run / "report.html").read_text("utf-8")
