"""What can be known of a training before it starts, or of a run before it is used."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from kit import models
from kit.base import KitError, Recipe, read_custom, require_file, temporary_folder
from kit.data import Holdout, Store, check_holdouts, recipe_augmentation
from kit.runs.folder import read_config, require_free
from kit.runs.folds import fold_recipes
from kit.runs.holdout import resumed_holdout
from kit.runs.identity import compare, describe, require_same
from kit.runs.teachers import check_teachers, still_taught
from kit.training import check_schedule, choose_device, choose_precision


def check_without_data(
    recipes: Iterable[Recipe], *, device: str = "auto", cam_layer: str | None = None
) -> None:
    """Check of recipes what their options alone tell, before data is opened, and packed if need be.

    Parameters
    ----------
    cam_layer
        Of the page's Grad-CAM, see `kit.models.find_map_layer`.

    Raises
    ------
    KitError
        If there is no such device, or it does not compute in such a precision, or there is no such
        model, or it does not take the recipe's options, or there is no such layer, code or table of
        slides. Weights, which a finished run does without, are not looked for.
    """
    chosen = choose_device(device)
    for recipe in recipes:
        choose_precision(recipe.precision, chosen)
        if recipe.is_backbone:
            models.find_source(recipe.model)
        for reference in recipe.custom.values():
            read_custom(reference)
        require_file("slides", recipe.slides)
        _check_parts(_bare(recipe), cam_layer)


def _bare(recipe: Recipe) -> Recipe:
    """Return what a recipe's network and augmentation depend on, published weights apart."""
    own = models.follow_model(recipe)
    return replace(own, pretrained=False, weights=None, fold=None, seed=0, teacher=())


@cache
def _check_parts(recipe: Recipe, cam_layer: str | None) -> None:
    """Build a recipe's augmentation and network once, and look for a layer."""
    recipe_augmentation(recipe)
    network = models.create_model(recipe)
    if cam_layer is not None:
        models.find_map_layer(network, recipe.size, cam_layer)


def check_trainable(
    recipes: Iterable[Recipe], store: Store, *, device: str = "auto"
) -> list[Holdout]:
    """Check that each of several recipes, as of folds, seeds and arms, can be trained on a store.

    Nothing is made or fetched.

    Returns
    -------
    list
        Each recipe's training and validation tiles.

    Raises
    ------
    KitError
        If a side of a holdout lacks a class, a batch is not filled, a schedule has too few steps,
        a model or an augmentation cannot be built, a teacher knows what is held out, or there is no
        such device or no temporary folder.
    """
    # PyTorch's optimisers ask for it when they are made.
    temporary_folder()
    recipes, chosen = list(recipes), choose_device(device)
    holdouts = check_holdouts(store, recipes)
    for recipe, holdout in zip(recipes, holdouts, strict=True):
        choose_precision(recipe.precision, chosen)
        check_schedule(recipe, len(holdout.train) // recipe.batch_size)
        _check_parts(_bare(recipe), None)
        check_teachers(recipe, store, holdout)
    return holdouts


def find_differences(
    folder: Path,
    recipe: Recipe,
    store: Store,
    *,
    device: str = "auto",
    ignore: Collection[str] = (),
) -> list[str]:
    """Say in what the run in a folder differs from the one that would be trained there now.

    Parameters
    ----------
    ignore
        Of "kit", "torch", "timm", "precision" and "device" what may differ.

    Raises
    ------
    KitError
        If the folder's config.json cannot be read.
    """
    now = describe(recipe, store, folder, choose_device(device))
    fixed, changeable = compare(read_config(folder), now, ignore=ignore)
    return fixed + changeable


def check_run(
    folder: Path, recipe: Recipe, store: Store, *, device: str = "auto", force: bool = False
) -> None:
    """Check that the run in a folder is the one that would be trained there now.

    Parameters
    ----------
    force
        Take other epochs, versions, another device, precision or table of slides.

    Raises
    ------
    KitError
        Naming each difference.
    """
    now = describe(recipe, store, folder, choose_device(device))
    require_same(folder, compare(read_config(folder), now), force=force)
    resumed_holdout(folder, recipe, store, force=force)


def check_folds(
    recipe: Recipe,
    store: Store,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
) -> dict[Path, Recipe]:
    """Return the recipe of each run of a cross-validation by its folder, when all can be trained.

    Parameters
    ----------
    resume, force
        Go on with runs that were begun, see `Run`.

    Raises
    ------
    KitError
        If a fold cannot be trained, its folder holds something, or a run of other options, or
        there is a fold too many.
    """
    recipes = dict(fold_recipes(recipe, folder))
    if surplus := set(folder.glob("fold-*")) - recipes.keys():
        raise KitError(f"{min(surplus)} is none of the {len(recipes)} folds: move it away")
    for part, own in recipes.items():
        if not resume or not (part / "config.json").exists():
            require_free(part, whole=folder)
        else:
            check_run(part, own, store, device=device, force=force)
    asked = [still_taught(own, part) if resume else own for part, own in recipes.items()]
    check_trainable(asked, store, device=device)
    return recipes
