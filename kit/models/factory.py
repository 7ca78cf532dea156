"""A recipe's network, and how its parameters learn."""

from typing import Any

import torch
from torch import nn

from kit.base import Recipe
from kit.models.backbones import classifier_layers, create_backbone
from kit.models.custom import create_custom
from kit.models.encoders import Probe, create_probe
from kit.models.lora import lora_parameters
from kit.models.networks import CompactCNN, SmallCNN


def create_model(recipe: Recipe) -> nn.Module:
    """Build a recipe's network with one logit, its weights drawn from the recipe's seed.

    The caller's random state is not changed.

    Raises
    ------
    KitError
        If the name is unknown, or the weights are not available, or a network of one's own cannot
        be trained, see `create_custom`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.is_probe:
            return create_probe(recipe)
        if recipe.is_backbone:
            return create_backbone(recipe)
        if not recipe.is_built_in:
            return create_custom(recipe)
        options: dict[str, Any] = {
            "norm": recipe.norm,
            "momentum": recipe.bn_momentum,
            "eps": recipe.bn_eps,
            "widths": recipe.widths,
            "size": recipe.size,
            "init": recipe.init,
        }
        if recipe.model == "small":
            return SmallCNN(recipe.bn, **options)
        return CompactCNN(recipe.bn, orientations=recipe.orientations, **options)


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the optimiser's groups of parameters, each with its learning rate and decay.

    Parameters
    ----------
    weight_decay
        Not for biases and norms, which have one dimension.
    layer_decay
        For a timm model: each layer's learning rate is this times that of the next layer, up to
        `lr` at the classifier (Clark et al., arXiv:2003.10555).
    """
    if layer_decay < 1:
        from timm.optim._param_groups import param_groups_layer_decay

        return [
            {"params": group["params"], "weight_decay": group["weight_decay"], "lr": lr * scale}
            for group in param_groups_layer_decay(model, weight_decay, layer_decay=layer_decay)
            for scale in [group["lr_scale"]]
        ]
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay, "lr": lr},
        {"params": vectors, "weight_decay": 0.0, "lr": lr},
    ]


def freeze_backbone(model: nn.Module, *, frozen: bool) -> None:
    """Let only a timm model's classifier learn, or everything.

    Everything is, of a model with `add_lora`, what was added; a probe's encoder never learns.
    """
    if isinstance(model, Probe):
        return
    added = lora_parameters(model)
    model.requires_grad_(not frozen and not added)
    if frozen or added:
        for classifier in classifier_layers(model).values():
            classifier.requires_grad_(True)
    for parameter in added:
        parameter.requires_grad_(not frozen)


def synchronize_batch_norms(model: nn.Module) -> nn.Module:
    """Return the model with norms that normalise by the batches of all processes, on GPUs only."""
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if not isinstance(model, SmallCNN | CompactCNN):
        # PyTorch's function would drop the activations that timm's norms hold.
        from timm.layers.norm_act import convert_sync_batchnorm as convert
    synchronized: nn.Module = convert(model)
    return synchronized
