"""What a search varies of a recipe, and how far: the space follows from the recipe and holds it."""

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, get_args

from optuna.trial import BaseTrial, FixedTrial
from torch import nn

from kit import models
from kit.base import TILE_SIZE, Augmentation, KitError, Recipe
from kit.data import Store, recipe_holdout

BATCH_SIZES = (32, 64, 128, 256)
SEARCHED = ("lr", "batch_size", "weight_decay", "crop", "size", "augment", "stain_strength")
SEARCHED_OWN = ("widths", "bn", "bn_momentum")
"""Of the kit's own networks alone."""

_STAINED = ("stain", "colour", "full")


@dataclass(frozen=True)
class Space:
    """What a search varies of a recipe, and how far.

    Attributes
    ----------
    recipe
        In the middle of the space; where it lies on none of the usual steps, it adds its own.
    free
        The recipe's options that are searched; all others keep their values.
    batch_sizes
        That the training tiles fill.
    crops, sizes
        Of the tile's centre and of the network's input, in pixels.
    """

    recipe: Recipe
    free: frozenset[str]
    batch_sizes: tuple[int, ...]
    crops: tuple[int, ...]
    sizes: tuple[int, ...]

    def suggest(self, trial: BaseTrial) -> Recipe:
        """Draw a recipe from which a model can always be built."""
        own = self.recipe
        draws: dict[str, Callable[[], Any]] = {
            "lr": lambda: trial.suggest_float("lr", own.lr / 10, own.lr * 10, log=True),
            "batch_size": lambda: trial.suggest_categorical("batch_size", self.batch_sizes),
            "weight_decay": lambda: trial.suggest_float(
                "weight_decay", 0, max(0.3, own.weight_decay)
            ),
            "crop": lambda: _suggest_step(trial, "crop", self.crops),
            "size": lambda: _suggest_step(trial, "size", self.sizes),
            "augment": lambda: trial.suggest_categorical("augment", get_args(Augmentation)),
            "bn": lambda: trial.suggest_categorical("bn", ("before", "after")),
            "bn_momentum": lambda: _suggest_momentum(trial, own.bn_momentum),
        }
        recipe = replace(own, **{name: draw() for name, draw in draws.items() if name in self.free})
        if "stain_strength" in self.free and recipe.augment in _STAINED:
            low, high = min(0.25, own.stain_strength), max(2.0, own.stain_strength)
            strength = trial.suggest_float("stain_strength", low, high)
            recipe = replace(recipe, stain_strength=strength)
        if "widths" in self.free:
            recipe = replace(recipe, widths=_suggest_widths(trial, recipe))
        return recipe

    def own_parameters(self) -> dict[str, Any]:
        """Return the parameters that a trial of the recipe itself has."""
        own = self.recipe
        values = {name: getattr(own, name) for name in SEARCHED} | {
            "bn": own.bn,
            "bn_momentum_in_pytorch": 1 - own.bn_momentum,
            "width_factor": 1.0,
            "convolutions": len(own.widths) - 1,
        }
        trial = FixedTrial(values)
        self.suggest(trial)
        return trial.params


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
    if recipe.is_built_in:
        free |= set(SEARCHED_OWN) - set(fixed)
    # A person's own pipeline is what is tried, and networks may take one size only.
    free -= recipe.custom.keys()
    if recipe.custom.keys() & {"augment"}:
        free -= {"stain_strength"}
    if recipe.teacher:
        # It has to see in a batch what it was trained on.
        free -= {"crop", "size"}
    if recipe.norm == "none":
        free -= {"bn"}
    if recipe.ema or recipe.norm != "batch":
        # Averaged weights are evaluated with recalibrated statistics, which know no momentum.
        free -= {"bn_momentum"}
    sizes = _sizes(recipe, model)
    holdouts = [recipe_holdout(store, seeded) for seeded in seeded_recipes(recipe, seeds)]
    tiles = min(len(holdout.train) for holdout in holdouts)
    batch_sizes = _with([size for size in BATCH_SIZES if size <= tiles], recipe.batch_size)
    one_value = {"size": len(sizes) < 2, "batch_size": len(batch_sizes) < 2}
    free -= {name for name, only in one_value.items() if only}
    if not free:
        raise KitError("nothing is left to search: give fewer options by name")
    crops = _with(range(32, TILE_SIZE + 1, 16), recipe.crop)
    return Space(recipe, frozenset(free), batch_sizes, crops, sizes)


def seeded_recipes(recipe: Recipe, seeds: int) -> list[Recipe]:
    """Return the recipe with its own seed and those that follow."""
    return [replace(recipe, seed=recipe.seed + offset) for offset in range(seeds)]


def _suggest_step(trial: BaseTrial, name: str, values: tuple[int, ...]) -> int:
    """Draw one of several values, by their order where they are evenly spaced."""
    steps = {high - low for low, high in itertools.pairwise(values)}
    if len(steps) == 1:
        return trial.suggest_int(name, values[0], values[-1], step=steps.pop())
    return int(trial.suggest_categorical(name, values))


def _suggest_momentum(trial: BaseTrial, own: float) -> float:
    """Draw a momentum in Keras' sense, by its distance from 1, which is PyTorch's momentum."""
    low, high = min(1e-3, 1 - own), max(0.5, 1 - own)
    drawn = trial.suggest_float("bn_momentum_in_pytorch", low, high, log=True)
    # Without the rounding errors of subtracting twice.
    return round(1 - drawn, 12)


def _suggest_widths(trial: BaseTrial, recipe: Recipe) -> tuple[int, ...]:
    """Draw half to twice the recipe's widths; of `small` also a convolution more or less."""
    factor = trial.suggest_float("width_factor", 0.5, 2, log=True)
    *channels, last = recipe.widths
    if recipe.model == "small":
        fewest, most = max(1, len(channels) - 1), len(channels)
        if smallest_input(most + 1) <= recipe.size:
            most += 1
        number = trial.suggest_int("convolutions", fewest, most) if fewest < most else most
        channels = [*channels, 2 * channels[-1]][:number]
    return tuple(max(1, round(factor * width)) for width in (*channels, last))


def _sizes(recipe: Recipe, model: nn.Module) -> tuple[int, ...]:
    """Return the inputs to try, in pixels: the recipe's own and others that the model can take."""
    if recipe.model == "small":
        smallest = smallest_input(len(recipe.widths) - 1)
    elif not recipe.is_built_in:
        if "model" in recipe.custom or getattr(model, "default_cfg", {}).get("fixed_input_size"):
            return (recipe.size,)
        # Backbones halve their input five times, and were trained on larger ones.
        return _with(range(96, 225, 32), recipe.size)
    else:
        smallest = 2 ** (len(recipe.widths) - 1)
    return _with([size for size in range(32, TILE_SIZE + 1, 16) if size >= smallest], recipe.size)


def smallest_input(convolutions: int) -> int:
    """Return the smallest input of `small`, counted back from its last pixel."""
    side = 1
    for _ in range(convolutions):
        side = 3 * side + 2
    return side


def _with(values: Collection[int], own: int) -> tuple[int, ...]:
    return tuple(sorted({*values, own}))
