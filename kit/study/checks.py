"""What is refused before the first run of a study is trained."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from kit import runs
from kit.base import KitError, Recipe
from kit.data import Holdout, Store, note_unused_slides


def check_recipes(
    recipes: Iterable[Recipe], store: Store, *, device: str, arm: str | None = None
) -> list[Holdout]:
    """Check what a study is to train, as far as it goes without training it.

    Parameters
    ----------
    recipes
        One per seed.
    arm
        Where there are several, the one that messages name.

    Returns
    -------
    list
        Each recipe's training and validation tiles.

    Raises
    ------
    KitError
        If a recipe asks for several runs or keeps its best epoch, a side of a holdout lacks a
        class, a batch is not filled, a schedule has too few steps, or a model cannot be built.
    """
    recipes = list(recipes)
    try:
        for recipe in recipes:
            _require_one_run(recipe)
            _require_last_epoch(recipe)
            note_unused_slides(store, recipe)
        return runs.check_trainable(recipes, store, device=device)
    except KitError as error:
        if arm is None:
            raise
        raise KitError(f"arm {arm}: {error}") from error


def check_kept(recipes: Mapping[Path, Recipe], store: Store, *, device: str) -> None:
    """Check that the runs that lie in a study's folder are those that it would train now.

    They may have been trained on another device: workers of one study may have different ones.

    Raises
    ------
    KitError
        Naming the run and each difference, as another version of the kit or of torch.
    """
    for folder, recipe in recipes.items():
        if not (folder / "config.json").exists():
            continue
        differences = runs.find_differences(folder, recipe, store, device=device, ignore=["device"])
        if differences:
            raise KitError(
                f"{folder} is not the run that this study would train: {'; '.join(differences)}. "
                "Remove it to have it trained again, or choose another --out"
            )


def _require_one_run(recipe: Recipe) -> None:
    """Refuse a cross-validation: a study would train only one of its folds."""
    if recipe.folds is not None and recipe.fold is None:
        raise KitError(
            f"a study trains one run per recipe and seed, not {recipe.folds} folds: leave out "
            "--folds, or name one with --fold"
        )


def _require_last_epoch(recipe: Recipe) -> None:
    """Refuse best epochs: the recipe whose curve jumps more would win by chance."""
    if recipe.keep == "best":
        raise KitError(
            "a study judges the last epoch, since the best of noisy ones flatters the recipe whose "
            "curve jumps more: leave out --keep best, or give --keep last"
        )
