"""The seam to a person's own network: built by its size, and tried before it is trained."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kit.base import KitError, Recipe, competition, explain_custom, load_custom


def create_custom(recipe: Recipe) -> nn.Module:
    """Build a recipe's own network: what its code returns when it is called with the size.

    Two images go through it and back, so that what would end a training later is told now.

    Raises
    ------
    KitError
        If the code fails, or what it returns is no network that can be trained, copied and kept.
    """
    build = load_custom(recipe.model)
    if not callable(build):
        raise KitError(
            f"{recipe.model} is of the type {type(build).__name__}: name a class or a function "
            "that takes the size of the input in pixels and returns a network"
        )
    with explain_custom(recipe.model, f"when it is built with the size {recipe.size}"):
        network = build(recipe.size)
    if not isinstance(network, nn.Module):
        raise KitError(
            f"{recipe.model} returns an object of the type {type(network).__name__}, not a network "
            "(torch.nn.Module)"
        )
    _check_tensors(recipe, network)
    with explain_custom(recipe.model, f"with two images of {recipe.size} pixels"):
        _check_gradients(recipe, network)
    return network.train()


def _check_tensors(recipe: Recipe, network: nn.Module) -> None:
    """Refuse tensors that no file of weights could hold."""
    places: dict[int, str] = {}
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise KitError(f"{recipe.model} has no parameters to train")
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise KitError(f"{recipe.model} keeps {name} in its state, which is not a tensor")
        if is_lazy(tensor):
            raise KitError(
                f"{recipe.model} leaves the size of {name} open: send an image through the network "
                "where it is built, or take a layer whose size is given"
            )
        place = tensor.untyped_storage().data_ptr() if tensor.numel() else 0
        if place and place in places:
            raise KitError(
                f"{recipe.model} has one tensor under two names, {places[place]} and {name}, which "
                "its file of weights could not hold: use one module in both places under one name"
            )
        places[place] = name


def _check_gradients(recipe: Recipe, network: nn.Module) -> None:
    """Send two images through a network and back, in evaluation and in training."""
    side = recipe.size
    images = torch.rand(2, competition.CHANNELS, side, side)
    with torch.no_grad():
        _check_logits(recipe, network.eval()(images))
    # Statistics and gradients of the trial are not the training's.
    trial: Any = copy.deepcopy(network).train()
    logits = trial(images)
    _check_logits(recipe, logits)
    logits.sum().backward()
    gradients = [one.grad for one in trial.parameters() if one.grad is not None]
    if not all(gradient.isfinite().all() for gradient in gradients):
        raise KitError(f"{recipe.model} has gradients that are not finite numbers")


def _check_logits(recipe: Recipe, logits: object) -> None:
    if not isinstance(logits, Tensor) or logits.shape != (2, 1):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise KitError(
            f"{recipe.model} gives {found} for two images, not one logit each, (2, 1): end on a "
            "layer with one output"
        )
    if not logits.isfinite().all():
        raise KitError(f"{recipe.model} gives {logits.flatten().tolist()}, not finite numbers")
