"""Cross-validation: a folder with one run per fold, whose held-out predictions are pooled."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit import stats
from kit.base import KitError, Recipe, parse_recipe, recipe_values
from kit.runs.folder import read_config, resume_command
from kit.runs.predictions import read_valid, write_predictions


def fold_recipes(recipe: Recipe, folder: Path) -> Iterator[tuple[Path, Recipe]]:
    """Yield the folder and the recipe of each run of a cross-validation."""
    assert recipe.folds is not None
    for fold in range(recipe.folds):
        yield folder / f"fold-{fold}", dataclasses.replace(recipe, fold=fold)


def is_cross_validation(folder: Path) -> bool:
    """Whether a folder holds runs of folds in place of a run."""
    return any(folder.glob("fold-*"))


def begun_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a run, or what a cross-validation's would be, had it one.

    Raises
    ------
    KitError
        If the folder holds neither.
    """
    if not is_cross_validation(folder):
        return read_config(folder)
    # Folds that are trained side by side need not begin with the first.
    begun = [path.parent for path in folder.glob("fold-*/config.json")]
    config = read_config(min(begun or folder.glob("fold-*")))
    return config | {"recipe": config["recipe"] | {"fold": None}}


def keeps_best(folder: Path) -> bool:
    """Whether a run, or a cross-validation's, kept the epoch that did best on its holdout."""
    return bool(begun_config(folder)["recipe"].get("keep") == "best")


def members(folder: Path) -> list[Path]:
    """Return the runs of a cross-validation's folder, or the one run that a folder is.

    Raises
    ------
    KitError
        If a fold is missing, not finished or another cross-validation's.
    """
    if not is_cross_validation(folder):
        return [folder]
    folds = _folds(folder, force=True)
    if not (folder / "metrics.json").is_file():
        raise _not_finished(folder)
    return folds


def require_distinct(folders: Sequence[Path]) -> None:
    """Refuse a run that is named twice, and so would count twice, by whatever path.

    Raises
    ------
    KitError
        Naming both.
    """
    seen: dict[Path, Path] = {}
    for folder in folders:
        for member in members(folder):
            before = seen.setdefault(member.resolve(), folder)
            if before is not folder:
                raise KitError(f"{before} and {folder} hold the same run: name it once")


def pool_folds(folder: Path, *, force: bool = False) -> dict[str, Any]:
    """Pool the held-out predictions of a cross-validation; return their figures.

    Writes valid.csv and metrics.json, which make its folder one to predict with.

    Parameters
    ----------
    force
        Pool folds that were trained by other versions, or on other devices.

    Raises
    ------
    KitError
        If a fold is missing, not finished or another cross-validation's, or two folds hold out
        the same tile.
    """
    tables = [read_valid(fold) for fold in _folds(folder, force=force)]
    table = pd.concat(tables).sort_values("id")
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise KitError(f"{folder}: two folds hold out the tile {twice.iloc[0]}: train them again")
    aucs = [stats.auc(one["label"], one["logit"]) for one in tables]
    return write_predictions(
        folder,
        *(table[column].to_numpy() for column in ("id", "label", "logit")),
        auc_by_fold=aucs,
        mean_auc_of_folds=float(np.mean(aucs)),
    )


def _folds(folder: Path, *, force: bool) -> list[Path]:
    """Return the folders of a cross-validation's finished runs, in their order."""
    # It takes PyTorch, which looking at a folder does not.
    from kit.runs.identity import compare, require_same

    configs = {path.name: read_config(path) for path in sorted(folder.glob("fold-*"))}
    first = next(iter(configs.values()))
    recipe = parse_recipe(first["recipe"], source=f"{folder}/{next(iter(configs))}/config.json")
    if recipe.folds is None:
        raise KitError(f"{folder} holds runs that are no folds of a cross-validation")
    wanted = dict(fold_recipes(recipe, folder))
    if surplus := configs.keys() - {path.name for path in wanted}:
        raise KitError(f"{folder}/{min(surplus)} is none of the {recipe.folds} folds: move it away")
    for path, own in wanted.items():
        if not (path / "metrics.json").is_file():
            raise _not_finished(folder)
        expected = first | {"recipe": recipe_values(own)}
        require_same(path, compare(configs[path.name], expected), force=force)
    return list(wanted)


def _not_finished(folder: Path) -> KitError:
    return KitError(
        f"{folder} is a cross-validation that is not finished: go on with: {resume_command(folder)}"
    )
