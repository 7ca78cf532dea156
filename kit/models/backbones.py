"""The seam to timm's models."""

import difflib
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kit.base import KitError, Recipe, competition
from kit.models.weights import load_weights


def create_backbone(recipe: Recipe) -> nn.Module:
    """Build a recipe's timm model with one logit, from published or given weights if it asks.

    Raises
    ------
    KitError
        If timm has no such model, or it does not take the recipe's size or give one logit, or
        the weights are not available.
    """
    _check_name(recipe.model)
    options: dict[str, Any] = {"num_classes": 1}
    try:
        model = _build(recipe, options)
    except _SizeError:
        if not _is_made_for_a_size(recipe.model):
            raise
        options["img_size"] = recipe.size
        model = _build(recipe, options)
    if recipe.pretrained:
        model = _fetch(recipe, options)
    if "img_size" in options:
        # For timm to build it again.
        source: Any = model.pretrained_cfg
        source["input_size"] = (competition.CHANNELS, recipe.size, recipe.size)
    for part in classifier_layers(model).values():
        part.apply(_start_near_zero)
    if recipe.weights is not None:
        load_weights(model, recipe.weights, apart_from=classifier_layers(model))
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


def _check_name(name: str) -> None:
    # timm brings torchvision and seconds of imports, which the small CNN can do without.
    import timm

    if not timm.is_model(name):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models()))
        hint = f"; did you mean {close}?" if close else ""
        raise KitError(f"no model {name}: give small, compact or the name of a timm model{hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        known = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise KitError(
            f"{architecture} has no weights {tag}: its names with published weights are {known}"
        ) from error


def _build(recipe: Recipe, options: dict[str, Any]) -> nn.Module:
    """Build a model with random weights that gives one logit for an image of the recipe's size."""
    import timm

    images = torch.zeros(1, competition.CHANNELS, recipe.size, recipe.size)
    try:
        model: nn.Module = timm.create_model(recipe.model, **options)
        with torch.no_grad():
            logits = model.eval()(images)
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError) as error:
        raise _SizeError(recipe, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, 1) or not classifier_layers(model):
        raise KitError(
            f"{recipe.model} gives no single logit, as a model without a classifier does not: "
            "choose another --model"
        )
    return model.train()


class _SizeError(KitError):
    """What timm raises if a model does not take the recipe's size."""

    def __init__(self, recipe: Recipe, error: Exception) -> None:
        import timm

        source = timm.get_pretrained_cfg(recipe.model)
        side = source.input_size[-1] if source is not None else 224
        super().__init__(
            f"{recipe.model} does not take images of {recipe.size} pixels{_reason(error)}: it was "
            f"made for {side}, so try --size {side}"
        )


def _is_made_for_a_size(name: str) -> bool:
    """Whether timm lets a model be built for another size than its own."""
    import timm

    source = timm.get_pretrained_cfg(name)
    return source is not None and bool(source.fixed_input_size)


def _fetch(recipe: Recipe, options: dict[str, Any]) -> nn.Module:
    """Build a model with its published weights."""
    import timm
    from huggingface_hub.errors import HfHubHTTPError

    # Its parents are those of all that goes wrong on the way, in whatever HTTP library it uses.
    broken: Any = (*HfHubHTTPError.__bases__, OSError, RuntimeError, SafetensorError)

    source = timm.get_pretrained_cfg(recipe.model)
    if source is not None and not source.has_weights:
        raise KitError(
            f"no weights of {recipe.model} are published: leave out --pretrained, or bring your "
            "own with --weights FILE"
        )
    try:
        model: nn.Module = timm.create_model(recipe.model, pretrained=True, **options)
    except broken as error:
        repository = getattr(source, "hf_hub_id", None)
        origin = f"model.safetensors of {repository}" if repository else getattr(source, "url", "")
        raise KitError(
            f"cannot fetch the weights of {recipe.model}{_reason(error)}: bring {origin} here "
            "by other means and give it with --weights FILE in place of --pretrained"
        ) from error
    return model


def _reason(error: Exception) -> str:
    """Return an error's text in parentheses, in one line and cut where it is long."""
    words = " ".join(str(error).split())
    return f" ({words[:200]})" if words else ""
