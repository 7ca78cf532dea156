"""The holdout of a run that goes on: its own split.csv is what counts."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base import KitError, Recipe, read_table, require_ids
from kit.data import Holdout, Store, recipe_holdout
from kit.runs.folder import inside, read_bytes, read_config


def holdout_fingerprint(store: Store, holdout: Holdout) -> str:
    """Return the SHA-256 of which tiles are trained and which are validated on."""
    sides = ("\n".join(store.train.ids[rows]) for rows in holdout)
    return hashlib.sha256("\n\n".join(sides).encode()).hexdigest()


def run_holdout(recipe: Recipe, store: Store, *, refit: bool = False) -> Holdout:
    """Return the sides of a run; a refit trains on both."""
    sides = recipe_holdout(store, recipe)
    return Holdout(np.union1d(*sides), np.array([], np.intp)) if refit else sides


def resumed_holdout(
    folder: Path, recipe: Recipe, store: Store, *, force: bool, refit: bool = False
) -> Holdout:
    """Return the holdout of a run that was begun, which the recipe must still give.

    Parameters
    ----------
    force
        Take that of split.csv, whatever the recipe gives by now.

    Raises
    ------
    KitError
        If the two differ, as when the table of slides has changed or is gone, or split.csv is
        another one.
    """
    path = inside(folder, "split.csv")
    expected = read_config(folder)["data"].get("split")
    # It is not there where the run was stopped before its first step.
    kept = read_split(folder, store) if path.is_file() else None
    if kept is not None:
        if force:
            return kept
        expected = holdout_fingerprint(store, kept)
    put_back = f"put back what the run was begun with, or add --force to go on with {path}"
    try:
        chosen = run_holdout(recipe, store, refit=refit)
    except KitError as error:
        if kept is None:
            raise
        # Such as a table of slides that is gone.
        raise KitError(f"{error}: {put_back}") from error
    if expected not in (None, holdout_fingerprint(store, chosen)):
        source = "another version of the kit" if recipe.slides is None else recipe.slides
        raise KitError(f"{folder} has another holdout than {source} gives now: {put_back}")
    return chosen


def read_split(folder: Path, store: Store) -> Holdout:
    """Read a run's split.csv.

    Raises
    ------
    KitError
        If it is damaged, of other data, or not the one that the run was begun with.
    """
    path = inside(folder, "split.csv")
    sides = _read_sides(path, store)
    if read_config(folder)["data"].get("split") not in (None, holdout_fingerprint(store, sides)):
        raise KitError(f"{path} is not the split that the run was begun with: put it back")
    return sides


def _read_sides(path: Path, store: Store) -> Holdout:
    table = read_table(read_bytes(path), ["id", "fold"], source=str(path))
    ids = require_ids(table["id"], source=str(path))
    rows = pd.Index(store.train.ids).get_indexer(pd.Index(ids))
    sides = table["fold"].isin(["train", "valid"]).to_numpy()
    bad = table[(rows < 0) | ~sides]
    if len(bad):
        raise KitError(
            f"{path} line {bad.index[0]}: {','.join(bad.iloc[0])[:60]!r} is not a training tile of "
            "the data and its side, train or valid"
        )
    return Holdout(*(np.sort(rows[table["fold"] == side]) for side in ("train", "valid")))
