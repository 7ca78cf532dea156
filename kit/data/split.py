"""Who trains and who validates: stratified, or with no slide on both sides."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from kit.base import Indices, KitError, Labels, Recipe, Strings, write_text
from kit.data.slides import UNKNOWN, read_recipe_slides
from kit.data.store import Store

# A grouped share is made of this many parts, each with about the same share of positives.
_PARTS = 10


class Holdout(NamedTuple):
    """Rows of the training split, sorted, none on both sides."""

    train: Indices
    valid: Indices


def holdout(labels: Labels, recipe: Recipe, slides: Strings | None = None) -> Holdout:
    """Choose the tiles to train and to validate on.

    Without slides: draw the same number of tiles of each class, `per_class` at the most, and
    keep a stratified share, `holdout`, of them for validation, as the study does. Tiles of one
    slide look alike, so the score on such a holdout is too high.

    With slides: keep whole slides for validation, those named by `validate_on` or a random
    share, with all their tiles, and balance the training side alone. The tiles of the slides in
    `leave_out` are on neither side.

    Cross-validation: the tiles, or the slides, fall into `folds` parts, stratified, and the
    part `fold` is held out, in place of a share.

    Of the training side `train_tiles` are drawn, with its share of positives.

    Parameters
    ----------
    labels
        (tiles,), 0 or 1.
    recipe
        Only its options named above and its seed are used.
    slides
        (tiles,), the slide of each tile; tiles whose slide is `UNKNOWN` are on neither side.

    Raises
    ------
    KitError
        If a side would lack a class, or the recipe names a slide that is not there.
    """
    _check_labels(labels)
    if slides is None:
        rows = _balance(labels, np.arange(len(labels)), recipe)
        valid = _tiles_to_validate(labels, rows, recipe)
        train = np.setdiff1d(rows, valid)
        _check_sides(labels, train, valid)
    else:
        _check_slides(slides, recipe)
        rows = np.flatnonzero(~np.isin(slides, [*recipe.leave_out, UNKNOWN]))
        valid = _slides_to_validate(labels, rows, slides, recipe)
        train = np.setdiff1d(rows, valid)
        _check_sides(labels, train, valid)
        train = _balance(labels, train, recipe)
    return Holdout(np.sort(_draw(labels, train, recipe)), np.sort(valid))


def recipe_holdout(store: Store, recipe: Recipe) -> Holdout:
    """Choose the tiles of a store to train and to validate on, by the recipe's slides if any.

    Raises
    ------
    KitError
        As `holdout` and `read_slides` do.
    """
    slides = None if recipe.slides is None else read_recipe_slides(recipe.slides, store)
    return holdout(store.labels, recipe, slides)


def check_holdouts(store: Store, recipes: Iterable[Recipe]) -> list[Holdout]:
    """Refuse trainings of which one could not begin, before the first of them does.

    Returns
    -------
    list
        Each recipe's training and validation tiles.

    Raises
    ------
    KitError
        Naming the fold and the seed of which a side would lack a class or fill no batch.
    """
    slides: dict[Path | None, Strings | None] = {None: None}
    holdouts = []
    for recipe in recipes:
        if recipe.slides not in slides and recipe.slides is not None:
            slides[recipe.slides] = read_recipe_slides(recipe.slides, store)
        try:
            chosen = holdout(store.labels, recipe, slides[recipe.slides])
            check_batch(len(chosen.train), recipe.batch_size)
        except KitError as error:
            fold = "" if recipe.fold is None else f"fold {recipe.fold} of {recipe.folds}, "
            raise KitError(f"{fold}seed {recipe.seed}: {error}") from error
        holdouts.append(chosen)
    return holdouts


def check_batch(tiles: int, batch_size: int) -> None:
    """Refuse training tiles that do not fill a batch."""
    if tiles < batch_size:
        raise KitError(
            f"{tiles} training tiles do not fill a batch of {batch_size}: choose a smaller "
            "--batch-size (batch_size in a recipe)"
        )


def write_split(path: Path, ids: Strings, chosen: Holdout) -> None:
    """Write id,fold (train or valid) for the chosen tiles, in the order of `ids`."""
    fold = pd.Series(pd.NA, index=range(len(ids)), dtype="string")
    fold[chosen.train] = "train"
    fold[chosen.valid] = "valid"
    table = pd.DataFrame({"id": ids, "fold": fold}).dropna()
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _balance(labels: Labels, rows: Indices, recipe: Recipe) -> Indices:
    """Draw the same number of rows of each class, `per_class` at the most."""
    if recipe.per_class is None:
        return rows
    rng = np.random.default_rng(recipe.seed)
    classes = [rows[labels[rows] == label] for label in (0, 1)]
    count = min(recipe.per_class, *map(len, classes))
    return np.concatenate([rng.choice(members, count, replace=False) for members in classes])


def _draw(labels: Labels, rows: Indices, recipe: Recipe) -> Indices:
    """Draw as many rows as the recipe says, with the same share of positives."""
    count = recipe.train_tiles
    if count is None or count == len(rows):
        return rows
    if not 2 <= count < len(rows):
        raise KitError(
            f"--train-tiles {count}: the training side has {len(rows)} tiles, and training takes "
            "two or more"
        )
    try:
        drawn, _ = train_test_split(
            rows, train_size=count, stratify=labels[rows], random_state=recipe.seed
        )
    except ValueError as error:
        raise KitError(
            f"--train-tiles {count} of {len(rows)}: each class needs a tile on both sides of the "
            "draw"
        ) from error
    return np.asarray(drawn)


def _tiles_to_validate(labels: Labels, rows: Indices, recipe: Recipe) -> Indices:
    """Choose rows with the same share of positives as the others."""
    if recipe.folds is not None:
        return rows[_part(labels[rows], None, recipe.folds, recipe.fold or 0, recipe.seed)]
    try:
        _, valid = train_test_split(
            rows, test_size=recipe.holdout, stratify=labels[rows], random_state=recipe.seed
        )
    except ValueError as error:
        # scikit-learn speaks of its own arguments.
        raise KitError(
            f"cannot hold out {recipe.holdout} of {len(rows)} tiles: each side needs a tile of "
            "each class. Choose another --holdout, or draw more tiles with --per-class"
        ) from error
    return np.asarray(valid)


def _slides_to_validate(labels: Labels, rows: Indices, slides: Strings, recipe: Recipe) -> Indices:
    """Choose all rows of some slides: those named, those of a fold, or those of about a share."""
    own, seed = slides[rows], recipe.seed
    if recipe.validate_on:
        return rows[np.isin(own, recipe.validate_on)]
    if recipe.folds is not None:
        return rows[_part(labels[rows], own, recipe.folds, recipe.fold or 0, seed)]
    count = len(set(own))
    if count < 2:
        raise KitError(
            "all tiles are of one slide: a holdout by slide needs two or more. Without --slides "
            "single tiles are held out"
        )
    # No more parts than the larger class has tiles can be made.
    parts = min(_PARTS, count, int(np.bincount(labels[rows]).max()))
    taken = range(max(1, round(recipe.holdout * parts)))
    held_out = [rows[_part(labels[rows], own, parts, part, seed)] for part in taken]
    return np.concatenate(held_out)


def _part(labels: Labels, slides: Strings | None, parts: int, part: int, seed: int) -> Indices:
    """Divide tiles into parts with about the same share of positives; return those of one."""
    kind = StratifiedKFold if slides is None else StratifiedGroupKFold
    divided = kind(parts, shuffle=True, random_state=seed).split(labels, labels, slides)
    try:
        with warnings.catch_warnings():
            # A class of fewer tiles than parts: whether both sides have it is checked later.
            warnings.simplefilter("ignore", UserWarning)
            return np.asarray(list(divided)[part][1])
    except ValueError as error:
        units, what = (len(labels), "tiles") if slides is None else (len(set(slides)), "slides")
        raise KitError(
            f"{units} {what} do not make {parts} folds: ask for fewer --folds"
        ) from error


def _check_slides(slides: Strings, recipe: Recipe) -> None:
    """Refuse names that are no slide's, and names of all slides."""
    known = set(slides) - {UNKNOWN}
    if unknown := sorted({*recipe.validate_on, *recipe.leave_out} - known):
        some = ", ".join(sorted(known)[:8])
        raise KitError(
            f"no slide {unknown[0]} in the table: there are {some}. Name one of these with "
            "--validate-on or --leave-out"
        )
    kept = known - set(recipe.leave_out)
    if not kept:
        raise KitError(f"--leave-out names all {len(known)} slides: leave some to train on")
    if not kept - set(recipe.validate_on):
        raise KitError(f"--validate-on names all {len(kept)} slides: leave one or more to train on")


def _check_labels(labels: Labels) -> None:
    """Refuse labels that no choice of a holdout could make do with."""
    for label in (0, 1):
        count = np.count_nonzero(labels == label)
        if count < 2:
            raise KitError(
                f"{count} of {len(labels)} training tiles are of class {label}: to train and to "
                "validate takes two or more of each class. See the labels in train_labels.csv"
            )


def _check_sides(labels: Labels, train: Indices, valid: Indices) -> None:
    """Refuse a side on which a class is missing."""
    for side, rows in {"training": train, "validation": valid}.items():
        for label in (0, 1):
            if not np.any(labels[rows] == label):
                raise KitError(
                    f"the {side} side has no tile of class {label} ({len(rows)} tiles in all): "
                    "choose another share, other slides, or more tiles"
                )
