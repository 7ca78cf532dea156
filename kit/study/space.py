"""What a search varies of a recipe, and how far."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import BaseTrial
from torch import nn

from kit import models
from kit.base import KitError, Recipe, competition
from kit.data import Store, recipe_holdout

BATCH_SIZES = (32, 64, 128, 256)
SEARCHED = ("lr", "batch_size", "weight_decay", "crop", "size", "augment", "stain_strength")
SEARCHED_SMALL = ("widths", "bn", "bn_momentum")


@dataclass(frozen=True)
class Space:
    """What a search varies of a recipe, and how far.

    Attributes
    ----------
    free
        The recipe's options that are searched; all others keep their values.
    sizes
        Of the network's input, in pixels.
    """

    recipe: Recipe
    free: frozenset[str]
    batch_sizes: tuple[int, ...]
    sizes: range

    def suggest(self, trial: BaseTrial) -> Recipe:
        """Draw a recipe, of which a model can always be built."""
        lr, sizes = self.recipe.lr, self.sizes
        draws: dict[str, Callable[[], Any]] = {
            "lr": lambda: trial.suggest_float("lr", lr / 10, lr * 10, log=True),
            "batch_size": lambda: trial.suggest_categorical("batch_size", self.batch_sizes),
            "weight_decay": lambda: trial.suggest_float("weight_decay", 1e-5, 0.3, log=True),
            "crop": lambda: trial.suggest_int("crop", 32, competition.TILE_SIZE, step=16),
            "size": lambda: trial.suggest_int("size", sizes[0], sizes[-1], step=sizes.step),
            "augment": lambda: trial.suggest_categorical("augment", ("none", "d4", "stain")),
            "bn": lambda: trial.suggest_categorical("bn", ("before", "after")),
            "bn_momentum": lambda: (
                1 - trial.suggest_float("bn_momentum_in_pytorch", 1e-3, 0.5, log=True)
            ),
        }
        recipe = replace(
            self.recipe, **{name: draw() for name, draw in draws.items() if name in self.free}
        )
        if "stain_strength" in self.free and recipe.augment == "stain":
            strength = trial.suggest_float("stain_strength", 0.25, 2)
            recipe = replace(recipe, stain_strength=strength)
        if "widths" in self.free:
            recipe = replace(recipe, widths=_suggest_widths(trial, recipe.size))
        return recipe


def search_space(
    recipe: Recipe, store: Store, *, seeds: int = 1, fixed: Collection[str] = ()
) -> Space:
    """Find what of a recipe can be searched on a store.

    Parameters
    ----------
    fixed
        Names of options that keep the recipe's value.

    Raises
    ------
    KitError
        If the recipe's own model cannot be built, or nothing is left to search.
    """
    model = models.create_model(replace(recipe, pretrained=False, weights=None))
    free = set(SEARCHED) - set(fixed)
    if not recipe.is_backbone:
        free |= set(SEARCHED_SMALL) - set(fixed)
    sizes = _sizes(recipe, model, widths_are_free="widths" in free)
    holdouts = [recipe_holdout(store, seeded) for seeded in seeded_recipes(recipe, seeds)]
    tiles = min(len(holdout.train) for holdout in holdouts)
    batch_sizes = tuple(size for size in BATCH_SIZES if size <= tiles)
    free -= {name for name, values in (("size", sizes), ("batch_size", batch_sizes)) if not values}
    if not free:
        raise KitError("nothing is left to search: give fewer options by name")
    return Space(recipe, frozenset(free), batch_sizes, sizes)


def seeded_recipes(recipe: Recipe, seeds: int) -> list[Recipe]:
    return [replace(recipe, seed=recipe.seed + offset) for offset in range(seeds)]


def _suggest_widths(trial: BaseTrial, size: int) -> tuple[int, ...]:
    """Draw widths that double from layer to layer, as the study's do."""
    width = trial.suggest_int("width", 16, 64, step=8)
    deepest = sum(_smallest_input(convolutions) <= size for convolutions in (1, 2, 3))
    convolutions = trial.suggest_int("convolutions", 2, 3) if deepest == 3 else deepest
    return tuple(width * 2**layer for layer in range(convolutions + 1))


def _sizes(recipe: Recipe, model: nn.Module, *, widths_are_free: bool) -> range:
    """Return the inputs to try, in pixels, that the model can take."""
    if not recipe.is_backbone:
        smallest = 32 if widths_are_free else _smallest_input(len(recipe.widths) - 1)
        return range(max(32, 16 * math.ceil(smallest / 16)), competition.TILE_SIZE + 1, 16)
    if getattr(model, "default_cfg", {}).get("fixed_input_size"):
        return range(0)
    # Backbones halve their input five times, and were trained on larger ones.
    return range(96, 193, 32)


def _smallest_input(convolutions: int) -> int:
    """Return the smallest input of the small CNN, from its last pixel upwards."""
    side = 1
    for _ in range(convolutions):
        side = 3 * side + 2
    return side
