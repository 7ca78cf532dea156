"""What is refused before the first run of a study is trained."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kit import models, training
from kit.base import KitError, Recipe, parse_recipe, recipe_values
from kit.data import Holdout, Store, check_batch, recipe_holdout


def check_runs(recipes: Mapping[Path, Recipe], store: Store, *, device: str) -> dict[Path, Holdout]:
    """Check the runs of a study, by their folders, as far as it goes without training them.

    Returns
    -------
    dict
        Each run's training and validation tiles.

    Raises
    ------
    KitError
        If a recipe is out of range or asks for several runs, a side of a holdout lacks a class, a
        batch is not filled, a schedule has too few steps, or a model cannot be built.
    """
    chosen = training.choose_device(device)
    holdouts = {}
    for folder, recipe in recipes.items():
        parse_recipe(recipe_values(recipe), source=str(folder))
        require_one_run(recipe)
        training.choose_precision(recipe.precision, chosen)
        holdouts[folder] = recipe_holdout(store, recipe)
        tiles = len(holdouts[folder].train)
        check_batch(tiles, recipe.batch_size)
        training.check_schedule(recipe, tiles // recipe.batch_size)
    for recipe in {replace(recipe, seed=0) for recipe in recipes.values()}:
        # Published weights are fetched when they are needed.
        models.create_model(replace(recipe, pretrained=False, weights=None))
    return holdouts


def require_one_run(recipe: Recipe) -> None:
    """Refuse a cross-validation, of which a study would train one fold alone.

    Raises
    ------
    KitError
        If the recipe has folds, and does not say which one.
    """
    if recipe.folds is not None and recipe.fold is None:
        raise KitError(
            f"a study trains one run per recipe and seed, not {recipe.folds} folds: leave out "
            "--folds, or name one with --fold"
        )
