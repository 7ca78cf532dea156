"""What is refused before the first run of a study is trained."""

from collections.abc import Mapping
from pathlib import Path

from kit import runs
from kit.base import KitError, Recipe, parse_recipe, recipe_values
from kit.data import Holdout, Store


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
    for folder, recipe in recipes.items():
        parse_recipe(recipe_values(recipe), source=str(folder))
        require_one_run(recipe)
    holdouts = runs.check_trainable(recipes.values(), store, device=device)
    return dict(zip(recipes, holdouts, strict=True))


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
