"""Who trains and who validates: stratified, or with no slide on both sides."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from kit.base import (
    SLIDES_FILE,
    KitError,
    Recipe,
    read_table,
    require_ids,
    require_values,
    write_text,
)
from kit.data.store import Store

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]

# A grouped share is made of this many parts, each with about the same share of positives.
_PARTS = 10


class Holdout(NamedTuple):
    """Rows of the training split, sorted, none on both sides."""

    train: Indices
    valid: Indices


def holdout(
    labels: Labels,
    *,
    fraction: float = 0.3,
    per_class: int | None = None,
    seed: int = 0,
    slides: Sequence[str] | npt.NDArray[np.str_] | None = None,
    validate_on: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    folds: int | None = None,
    fold: int | None = None,
) -> Holdout:
    """Choose the tiles to train and to validate on.

    Without slides: draw the same number of tiles of each class, `per_class` at the most, and
    keep a stratified `fraction` of them for validation, as the study does. Tiles of one slide
    look alike, so such a holdout flatters.

    With slides: keep whole slides for validation, those named by `validate_on` or a random
    `fraction`, with all their tiles, and balance the training side alone.

    Parameters
    ----------
    labels
        0 or 1 a tile.
    fraction
        Share for validation, in (0, 1).
    per_class
        Most tiles of a class to draw; None takes every tile, balanced or not.
    slides
        The slide of each tile.
    validate_on, leave_out
        Values of `slides`; the tiles of those left out are on neither side.
    folds, fold
        Cross-validation: the tiles, or the slides, fall into `folds` parts, stratified, and the
        part `fold` (from 0) is held out, in place of `fraction`.

    Raises
    ------
    KitError
        If a side would lack a class, or a slide is named that is not there.
    """
    _check_labels(labels)
    rng = np.random.default_rng(seed)
    if slides is None:
        chosen = _balance(labels, np.arange(len(labels)), per_class, rng)
        train, valid = (
            _stratified(labels, chosen, fraction, seed)
            if folds is None
            else _part(labels, chosen, None, folds, fold or 0, seed)
        )
        _check_sides(labels, train, valid)
    else:
        slides = np.asarray(slides)
        _check_slides(slides, [*validate_on, *leave_out])
        rows = np.flatnonzero(~np.isin(slides, list(leave_out)))
        if not np.setdiff1d(slides[rows], list(validate_on)).size:
            raise KitError(
                f"--validate-on names all {len(set(slides[rows]))} slides: leave one or more to "
                "train on"
            )
        if validate_on:
            on_valid = np.isin(slides[rows], list(validate_on))
            if on_valid.all():
                raise KitError("--validate-on names all slides: leave one or more to train on")
            train, valid = rows[~on_valid], rows[on_valid]
        elif folds is not None:
            train, valid = _part(labels, rows, slides, folds, fold or 0, seed)
        else:
            train, valid = _share_of_slides(labels, rows, slides, fraction, seed)
        _check_sides(labels, train, valid)
        train = _balance(labels, train, per_class, rng)
    return Holdout(np.sort(train), np.sort(valid))


def read_slides(path: Path, ids: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """Read the slide of each tile from a CSV of id,slide.

    Tiles that are not among `ids` may stand there, too.

    Raises
    ------
    KitError
        If the file is not such a table, or names a tile twice, or leaves one or its slide out.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise KitError(f"cannot read id,slide from {path}: {error.strerror}") from error
    table = read_table(content, ["id", "slide"], source=str(path))
    known = require_ids(table["id"], source=str(path))
    wanted = known.isin(ids)
    require_values(table["slide"][wanted], source=str(path))
    slides = table["slide"].set_axis(known)[wanted.to_numpy()].reindex(ids)
    if slides.isna().any():
        missing = slides.index[slides.isna()]
        raise KitError(
            f"{path} has no slide for {len(missing)} tiles, first {missing[0]}: "
            "add their lines, or give a table of all the training tiles"
        )
    return slides.to_numpy(str)


def choose_holdout(recipe: Recipe, store: Store) -> Holdout:
    """Choose a recipe's training and validation tiles."""
    slides = None
    if recipe.slides is not None:
        slides = read_slides(recipe.slides, store.train.ids)
    return holdout(
        store.labels,
        fraction=recipe.holdout,
        per_class=recipe.per_class,
        seed=recipe.seed,
        slides=slides,
        validate_on=recipe.validate_on,
        leave_out=recipe.leave_out,
        folds=recipe.folds,
        fold=recipe.fold,
    )


def slides_of(store: Store, path: str | Path | None = None) -> npt.NDArray[np.str_] | None:
    """Read each training tile's slide from `path`, or from slides.csv beside the store.

    Returns
    -------
    ndarray or None
        (tiles,), in the order of the store's training tiles; None where there is no such file.

    Raises
    ------
    KitError
        If the file is not a table of slides, or leaves a tile out.
    """
    path = store.folder.parent / SLIDES_FILE if path is None else Path(path)
    return read_slides(path, store.train.ids) if path.is_file() else None


def write(path: Path, ids: npt.NDArray[np.str_], chosen: Holdout) -> None:
    """Write id,fold (train or valid) for the chosen tiles, in the order of `ids`."""
    fold = pd.Series(pd.NA, index=range(len(ids)), dtype="string")
    fold[chosen.train] = "train"
    fold[chosen.valid] = "valid"
    table = pd.DataFrame({"id": ids, "fold": fold}).dropna()
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _balance(
    labels: Labels, rows: Indices, per_class: int | None, rng: np.random.Generator
) -> Indices:
    """Draw the same number of rows of each class, `per_class` at the most."""
    if per_class is None:
        return rows
    classes = [rows[labels[rows] == label] for label in (0, 1)]
    count = min(per_class, *map(len, classes))
    return np.concatenate([rng.choice(members, count, replace=False) for members in classes])


def _stratified(
    labels: Labels, rows: Indices, fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Split rows so that both sides have the same share of positives."""
    try:
        train, valid = train_test_split(
            rows, test_size=fraction, stratify=labels[rows], random_state=seed
        )
    except ValueError as error:
        # scikit-learn speaks of its own arguments.
        raise KitError(
            f"cannot hold out {fraction} of {len(rows)} tiles: each side needs a tile of each "
            "class. Choose another --holdout, or draw more tiles with --per-class"
        ) from error
    return train, valid


def _check_slides(slides: npt.NDArray[np.str_], named: Sequence[str]) -> None:
    """Refuse names that are no slide's."""
    unknown = sorted(set(named) - set(slides))
    if unknown:
        known = ", ".join(sorted(set(slides))[:8])
        raise KitError(
            f"no slide {unknown[0]} in the table: there are {known}. Name one of these with "
            "--validate-on or --leave-out"
        )


def _share_of_slides(
    labels: Labels, rows: Indices, slides: npt.NDArray[np.str_], fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Split rows so that about a share of them, whole slides, validates."""
    count = len(set(slides[rows]))
    if count < 2:
        raise KitError(
            "all tiles are of one slide: a holdout by slide needs two or more. Without --slides "
            "single tiles are held out"
        )
    # No more parts than the larger class has tiles can be made.
    parts = min(_PARTS, count, int(np.bincount(labels[rows]).max()))
    taken = max(1, round(fraction * parts))
    valid = np.concatenate(
        [_part(labels, rows, slides, parts, part, seed)[1] for part in range(taken)]
    )
    return np.setdiff1d(rows, valid), valid


def _part(
    labels: Labels,
    rows: Indices,
    slides: npt.NDArray[np.str_] | None,
    folds: int,
    fold: int,
    seed: int,
) -> tuple[Indices, Indices]:
    """Split rows into parts with about the same share of positives, and hold one of them out."""
    kind = StratifiedKFold if slides is None else StratifiedGroupKFold
    groups = None if slides is None else slides[rows]
    parts = kind(folds, shuffle=True, random_state=seed).split(rows, labels[rows], groups)
    try:
        with warnings.catch_warnings():
            # A class of fewer tiles than parts: whether both sides have it is checked later.
            warnings.simplefilter("ignore", UserWarning)
            train, valid = list(parts)[fold]
    except ValueError as error:
        units, what = (len(rows), "tiles") if groups is None else (len(set(groups)), "slides")
        raise KitError(
            f"{units} {what} do not make {folds} folds: ask for fewer --folds"
        ) from error
    return rows[train], rows[valid]


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
