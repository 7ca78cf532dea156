"""How a run's model is built, kept in its folder: the hub or another folder may be gone by then."""

from dataclasses import replace
from pathlib import Path

from kit import models
from kit.base import Recipe, plain_values, write_json
from kit.runs.custom import kept_network
from kit.runs.folder import inside

ARCHITECTURE = "architecture"
"""Folder with a config.json as timm reads it; only of models that timm does not know by name."""


def keep_architecture(folder: Path, recipe: Recipe) -> None:
    """Write down how a recipe's model is built, unless timm or the kit knows it by its name."""
    if models.is_elsewhere(recipe.model):
        described = models.find_source(recipe.model).describe()
        write_json(folder / ARCHITECTURE / "config.json", plain_values(described))


def rebuilding_recipe(folder: Path, recipe: Recipe) -> Recipe:
    """Return a recipe that builds a run's model from its folder alone, without its weights.

    Raises
    ------
    KitError
        If the folder holds code that would be run and is not trusted.
    """
    recipe = replace(recipe, pretrained=False, weights=None)
    if "model" in recipe.custom:
        return replace(recipe, model=kept_network(folder, recipe))
    if not models.is_elsewhere(recipe.model):
        return recipe
    kept = inside(folder, f"{ARCHITECTURE}/config.json").parent
    return replace(recipe, model=f"local-dir:{kept}")
