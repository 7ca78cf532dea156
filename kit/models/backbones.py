"""The seam to timm's models."""

from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kit.base import KitError, Recipe, competition
from kit.models.hub import reason
from kit.models.lora import add_lora
from kit.models.sources import Source, find_source
from kit.models.weights import load_weights


def create_backbone(recipe: Recipe) -> nn.Module:
    """Build a recipe's timm model with one logit, from published or given weights if it asks.

    Raises
    ------
    KitError
        If there is no such model, or it does not take the recipe's size or give one logit, or
        the weights are not available.
    """
    source = find_source(recipe.model)
    options: dict[str, Any] = {"num_classes": 1, **source.options}
    if recipe.drop_path:
        options["drop_path_rate"] = recipe.drop_path
    try:
        model = _build(recipe, source, options)
    except _SizeError:
        if not source.config.get("fixed_input_size") or options.get("img_size") == recipe.size:
            raise
        options["img_size"] = recipe.size
        model = _build(recipe, source, options)
    if recipe.pretrained:
        model = _fetch(recipe, source, model, options)
    if "img_size" in options:
        # For timm to build it again.
        config: Any = model.pretrained_cfg
        config["input_size"] = (competition.CHANNELS, recipe.size, recipe.size)
    if not (recipe.pretrained and source.answers_tumour):
        for part in classifier_layers(model).values():
            part.apply(_start_near_zero)
    if recipe.weights is not None:
        load_weights(model, recipe.weights, apart_from=classifier_layers(model))
    if recipe.lora:
        add_lora(model, recipe.lora)
    if recipe.checkpoint_blocks:
        _checkpoint_blocks(model, recipe.model)
    return model


def classifier_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a timm model that depend on the classes, by name.

    A distilled model has two, some have one per depth.
    """
    modules = dict(model.named_modules())
    names = model.default_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]
    named = [names] if isinstance(names, str) else names
    given = model.get_classifier()  # type: ignore[operator]
    whole = given if isinstance(given, tuple | list) else [given]
    return {name: modules[name] for name in named if name in modules} or {
        name: module for name, module in modules.items() if any(module is part for part in whole)
    }


def _start_near_zero(layer: nn.Module) -> None:
    # timm draws some from a range that grows as classes get few: one logit starts at tens.
    if isinstance(layer, nn.Linear | nn.Conv2d) and len(layer.weight) == 1:
        nn.init.trunc_normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _build(recipe: Recipe, source: Source, options: dict[str, Any]) -> nn.Module:
    """Build a model with random weights that gives one logit for an image of the recipe's size."""
    images = torch.zeros(1, competition.CHANNELS, recipe.size, recipe.size)
    try:
        model = source.build(options)
        with torch.no_grad():
            logits = model.eval()(images)
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError) as error:
        if "drop_path_rate" in str(error):
            raise KitError(f"{recipe.model} has no paths to drop: leave out --drop-path") from error
        raise _SizeError(recipe, source, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, 1) or not classifier_layers(model):
        raise KitError(
            f"{recipe.model} gives no single logit, as a model without a classifier does not: "
            "choose another --model"
        )
    return model.train()


def _checkpoint_blocks(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise KitError(
            f"{name} has no blocks to compute again: leave out --checkpoint-blocks"
        ) from error


class _SizeError(KitError):
    """What timm raises if a model does not take the recipe's size."""

    def __init__(self, recipe: Recipe, source: Source, error: Exception) -> None:
        super().__init__(
            f"{recipe.model} does not take images of {recipe.size} pixels{reason(error)}: it was "
            f"made for {source.size}, so try --size {source.size}"
        )


def _fetch(recipe: Recipe, source: Source, model: nn.Module, options: dict[str, Any]) -> nn.Module:
    """Return a model with its published weights."""
    file = source.find_weights()
    if file is not None:
        others = () if source.answers_tumour else classifier_layers(model)
        load_weights(model, file, apart_from=others)
        return model
    from huggingface_hub.errors import HfHubHTTPError

    # Its parents are those of all that goes wrong on the way, in whatever HTTP library it uses.
    broken: Any = (*HfHubHTTPError.__bases__, OSError, RuntimeError, SafetensorError)
    if not source.has_weights:
        raise KitError(
            f"no weights of {recipe.model} are published: start from nothing with "
            "--no-pretrained, or bring your own with --weights FILE"
        )
    try:
        return source.build({**options, "pretrained": True})
    except broken as error:
        repository = source.config.get("hf_hub_id")
        address = source.config.get("url") or ""
        origin = f"model.safetensors of {repository}" if repository else address
        raise KitError(
            f"cannot fetch the weights of {recipe.model}{reason(error)}: bring {origin} here "
            "by other means and give it with --weights FILE"
        ) from error
