"""Teachers: finished runs that a training listens to, and that may not know what it holds out."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kit import models
from kit.base import Indices, KitError, Recipe, parse_recipe
from kit.data import Holdout, Resize, Store
from kit.runs.folder import inside, read_bytes, read_config
from kit.runs.folds import members, require_distinct
from kit.runs.holdout import read_split
from kit.runs.predictions import read_metrics
from kit.training import Normalize, Teacher

_WEIGHTS = ("encoder.safetensors", "model.safetensors")


def still_taught(recipe: Recipe, folder: Path) -> Recipe:
    """Return a recipe without its teachers where the run in a folder has all its epochs.

    Nothing asks them any more, and they may be gone.
    """
    history = inside(folder, "history.jsonl")
    if not recipe.teacher or not history.is_file():
        return recipe
    is_trained = read_bytes(history).count(b"\n") >= recipe.epochs
    return replace(recipe, teacher=()) if is_trained else recipe


def require_teachers(recipe: Recipe) -> None:
    """Refuse a recipe whose teachers are not finished, or are one run, before data is opened.

    Raises
    ------
    KitError
        If one is not finished, or is named twice, or has another number of folds.
    """
    require_distinct(recipe.teacher)
    for run in _own_teachers(recipe):
        read_config(run)


def describe_teachers(recipe: Recipe) -> dict[str, str]:
    """Return the fingerprint, SHA-256, of the weights of each run that a recipe has as a teacher.

    Of a cross-validation that of all its runs.

    Raises
    ------
    KitError
        If a run is not finished.
    """
    return {str(run): _fingerprint(run) for run in recipe.teacher}


def _fingerprint(run: Path) -> str:
    found = hashlib.sha256()
    for member in members(run):
        read_metrics(member)
        for path in (inside(member, name) for name in _WEIGHTS):
            if path.is_file():
                found.update(read_bytes(path))
    return found.hexdigest()


def other_teachers(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Say for two records of config.json which teachers have other weights by now."""
    old, new = then.get("teachers", {}), now.get("teachers", {})
    for run in sorted(old.keys() & new.keys()):
        if old[run] != new[run]:
            yield f"the teacher {run} has other weights now"


def check_teachers(recipe: Recipe, store: Store, holdout: Holdout) -> list[tuple[Path, Resize]]:
    """Return the runs that teach a recipe's run, and what each sees of its batches.

    Raises
    ------
    KitError
        If one is not finished, of other data, was trained on a tile that this run holds out or
        leaves out, may have heard of it, chose its epoch by it, or sees more of a tile.
    """
    require_distinct(recipe.teacher)
    withheld, taught = _withheld(recipe, store, holdout), []
    for run in _own_teachers(recipe):
        config = read_config(run)
        theirs = parse_recipe(config["recipe"], source=f"{run}/config.json")
        _check_data(run, config["data"], store)
        sides = read_split(run, store)
        _check_holdout(run, theirs, sides, _withheld(theirs, store, sides), withheld)
        taught.append((run, _view(run, theirs, recipe)))
    return taught


def open_teachers(recipe: Recipe, store: Store, holdout: Holdout, device: str) -> list[Teacher]:
    """Return a recipe's teachers on a device, checked; none where they have no weight.

    Raises
    ------
    KitError
        As `check_teachers` and `load` do.
    """
    # It imports runs of all kinds, and these import this.
    from kit.runs.trained import load

    taught = check_teachers(recipe, store, holdout)
    return [
        Teacher(
            models.fuse_norms(trained.model.eval()).requires_grad_(False),
            view,
            Normalize(*trained.recipe.channel_statistics).to(trained.device),
            trained.dtype,
        )
        for run, view in taught
        if recipe.is_taught
        for trained in [load(run, device=device)]
    ]


def _own_teachers(recipe: Recipe) -> Iterator[Path]:
    """Yield the runs that teach: of a cross-validation a fold's own one, and to others all."""
    for run in recipe.teacher:
        runs = members(run)
        for member in runs:
            read_metrics(member)
        if len(runs) == 1 or recipe.fold is None:
            yield from runs
        elif len(runs) == recipe.folds:
            yield runs[recipe.fold]
        else:
            raise KitError(
                f"the teacher {run} has {len(runs)} folds, and this training {recipe.folds}: train "
                "one with the same --folds"
            )


def _check_data(run: Path, data: dict[str, Any], store: Store) -> None:
    if data["fingerprint"] == store.fingerprint:
        return
    which = "the stand-in" if data["is_standin"] and not store.is_standin else "other data"
    raise KitError(
        f"the teacher {run} was trained on {which}, and not on what {store.folder} holds: train "
        "one on the same --data"
    )


def _check_holdout(
    run: Path, theirs: Recipe, sides: Holdout, kept_from_it: Indices, withheld: Indices
) -> None:
    """Refuse a teacher that knows labels of tiles that the run may know nothing of."""
    known, how = np.intersect1d(sides.train, withheld), "was trained on"
    if theirs.is_taught:
        known = np.setdiff1d(withheld, kept_from_it)
        how = "has a teacher itself, which may have been trained on"
    if len(known):
        raise KitError(
            f"the teacher {run} {how} {len(known):,} of the {len(withheld):,} tiles that this run "
            "holds out or leaves out, so its figures would be too high: train the teacher with the "
            "same --slides, --validate-on, --leave-out, --train-tiles, --folds, --fold and --seed"
        )
    if theirs.keep == "best" and np.isin(sides.valid, withheld).any():
        raise KitError(
            f"the teacher {run} kept the epoch that did best on tiles that this run holds out, so "
            "its figures would be too high: train the teacher with --keep last"
        )


def _withheld(recipe: Recipe, store: Store, holdout: Holdout) -> Indices:
    """Return the tiles that a run may know nothing of: held out, left out, or not drawn."""
    if recipe.leave_out or recipe.train_tiles is not None:
        return np.setdiff1d(np.arange(len(store.train)), holdout.train)
    return holdout.valid


def _view(run: Path, theirs: Recipe, recipe: Recipe) -> Resize:
    """Return what a teacher sees of a batch's images: its own crop of the tile, at its own size."""
    if theirs.crop > recipe.crop:
        raise KitError(
            f"the teacher {run} sees the central {theirs.crop} pixels of a tile, and this run cuts "
            f"out {recipe.crop}: give --crop {theirs.crop}"
        )
    side, rest = divmod(theirs.crop * recipe.size, recipe.crop)
    if rest or (recipe.size - side) % 2:
        raise KitError(
            f"the teacher {run} sees the central {theirs.crop} pixels of a tile, which are no "
            f"whole number in this run's images: give --crop {theirs.crop}"
        )
    if side < min(theirs.crop, theirs.size):
        raise KitError(
            f"the teacher {run} sees {theirs.crop} pixels of a tile as {theirs.size}, of which "
            f"this run's images keep {side}: give a larger --size"
        )
    return Resize(side, theirs.size, theirs.interpolation)
