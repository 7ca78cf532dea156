"""Tuning large models: low-rank additions, dropped paths, activations that are computed again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train
from torch.nn import functional

from kit import models, runs
from kit.base import KitError, Recipe
from kit.data import Store

RECIPE = Recipe(model="test_vit", size=32, per_class=None, epochs=2, batch_size=8, lr=1e-2)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_an_addition_begins_at_nothing_and_merges_into_its_layer() -> None:
    plain = models.create_model(RECIPE).eval()
    adapted = models.create_model(replace(RECIPE, lora=2)).eval()
    assert torch.equal(adapted(IMAGES), plain(IMAGES))
    for name, parameter in adapted.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter)
    expected = adapted(IMAGES)
    assert not torch.allclose(expected, plain(IMAGES), atol=1e-3)
    merged = models.merge_lora(adapted)
    assert torch.allclose(merged(IMAGES), expected, atol=1e-5)
    assert merged.state_dict().keys() == plain.state_dict().keys()


def test_only_additions_and_classifier_learn() -> None:
    model = models.create_model(replace(RECIPE, lora=2))
    models.freeze_backbone(model, frozen=False)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.rpartition(".")[2] for name in learning} == {"up", "down", "weight", "bias"}
    assert {name for name in learning if name.startswith("head")} == {"head.weight", "head.bias"}
    assert len(learning) == 2 + 2 * 2 * len(model.blocks)
    models.freeze_backbone(model, frozen=True)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {"head.weight", "head.bias"}


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_a_run_with_additions_is_rebuilt_from_its_folder(
    tiles: Store, tmp_path: Path, layer_decay: float
) -> None:
    recipe = replace(RECIPE, lora=2, layer_decay=layer_decay, frozen_epochs=1, precision="fp32")
    run = train(recipe, tiles, tmp_path / "run")
    begun = models.create_model(recipe).state_dict()
    changed = {
        name
        for name, tensor in run.state.model.state_dict().items()
        if not torch.equal(tensor, begun[name])
    }
    assert changed
    assert all(name.endswith((".up", ".down")) or name.startswith("head") for name in changed)
    valid = runs.read_valid(run.folder)
    trained = runs.load(run.folder, device="cpu")
    logits = trained.predict_logits(tiles.train, progress=False)[run.holdout.valid]
    np.testing.assert_allclose(logits, valid["logit"], rtol=1e-4, atol=1e-4)


def test_activations_that_are_computed_again_give_the_same_gradients() -> None:
    gradients = []
    for again in (False, True):
        model = models.create_model(replace(RECIPE, checkpoint_blocks=again)).train()
        loss = functional.binary_cross_entropy_with_logits(model(IMAGES), torch.ones(4, 1))
        loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_paths_are_dropped_in_training_alone() -> None:
    model = models.create_model(replace(RECIPE, drop_path=0.5))
    plain = models.create_model(RECIPE)
    assert torch.equal(model.eval()(IMAGES), plain.eval()(IMAGES))
    torch.manual_seed(0)
    assert not torch.equal(model.train()(IMAGES), plain.train()(IMAGES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "test_resnet", "lora": 4}, "no attention whose layers --lora could adapt"),
        ({"model": "vgg11", "drop_path": 0.1}, "vgg11 has no paths to drop"),
        ({"model": "vgg11", "checkpoint_blocks": True}, "vgg11 has no blocks to compute again"),
    ],
)
def test_what_a_model_cannot_do_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(KitError, match=message):
        models.create_model(replace(RECIPE, **options))  # type: ignore[arg-type]


def test_the_kits_own_networks_are_not_tuned() -> None:
    with pytest.raises(KitError, match="lora need a timm model"):
        Recipe(lora=4)
