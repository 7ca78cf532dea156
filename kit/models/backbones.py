"""The seam to timm's models."""

import difflib
from typing import Any

from torch import nn

from kit.base import KitError, Recipe
from kit.models.weights import load_weights


def create_backbone(recipe: Recipe) -> nn.Module:
    """Build a recipe's timm model with one logit, from published or given weights if it asks.

    Raises
    ------
    KitError
        If timm has no such model, or the weights are not available.
    """
    # timm brings torchvision and seconds of imports, which the small CNN can do without.
    import timm

    if not timm.is_model(recipe.model):
        close = ", ".join(difflib.get_close_matches(recipe.model, timm.list_models()))
        hint = f"; did you mean {close}?" if close else ""
        raise KitError(f"no model {recipe.model}: give small or the name of a timm model{hint}")
    model: nn.Module = _timm_model(recipe)
    for layer in model.get_classifier().modules():  # type: ignore[operator]
        # timm draws some from a range that grows as classes get few: one logit starts at tens.
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    return model


def _timm_model(recipe: Recipe) -> Any:
    import timm

    try:
        return timm.create_model(recipe.model, pretrained=recipe.pretrained, num_classes=1)
    except (OSError, RuntimeError) as error:
        if not recipe.pretrained:
            raise
        source = timm.get_pretrained_cfg(recipe.model)
        repository = getattr(source, "hf_hub_id", None) or getattr(source, "url", "its hub")
        raise KitError(
            f"cannot fetch the weights of {recipe.model}: bring model.safetensors of {repository} "
            "here by other means and give it with --weights FILE in place of --pretrained"
        ) from error
