"""Who trains and who validates: stratified, or with no slide on both sides."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from kit.errors import KitError
from kit.files import write_text

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
    validate_on
        Values of `slides`.

    Raises
    ------
    KitError
        If a side would lack a class, or `validate_on` names a slide that is not there.
    """
    _check_labels(labels)
    rng = np.random.default_rng(seed)
    if slides is None:
        chosen = _balance(labels, np.arange(len(labels)), per_class, rng)
        train, valid = _stratified(labels, chosen, fraction, seed)
        _check_sides(labels, train, valid)
    else:
        on_valid = _on_validation_slides(labels, np.asarray(slides), fraction, validate_on, seed)
        train, valid = np.flatnonzero(~on_valid), np.flatnonzero(on_valid)
        _check_sides(labels, train, valid)
        train = _balance(labels, train, per_class, rng)
    return Holdout(np.sort(train), np.sort(valid))


def read_slides(path: Path, ids: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """Read the slide of each tile from a CSV of id,slide.

    Raises
    ------
    KitError
        If the file is not such a table, or names a tile twice, or leaves one out.
    """
    try:
        table = pd.read_csv(path, dtype=str, usecols=["id", "slide"])
    except (OSError, ValueError) as error:
        raise KitError(f"cannot read id,slide from {path}: {error}") from error
    twice = table["id"].duplicated()
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise KitError(f"{path} line {row + 2}: id {table['id'][row]} stands there twice")
    slides = table.set_index("id")["slide"].reindex(ids)
    if slides.isna().any():
        missing = slides.index[slides.isna()]
        raise KitError(f"{path} has no slide for {len(missing)} tiles, first {missing[0]}")
    return slides.to_numpy(str)


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


def _on_validation_slides(
    labels: Labels,
    slides: npt.NDArray[np.str_],
    fraction: float,
    validate_on: Sequence[str],
    seed: int,
) -> npt.NDArray[np.bool_]:
    """Tell for each tile whether its slide is one to validate on."""
    unknown = set(validate_on) - set(slides)
    if unknown:
        known = ", ".join(sorted(set(slides))[:8])
        raise KitError(
            f"no slide {sorted(unknown)[0]} in the table: there are {known}. Name one of these "
            "with --validate-on"
        )
    if len(set(slides)) < 2:
        raise KitError(
            "all tiles are of one slide: a holdout by slide needs two or more. Without --slides "
            "single tiles are held out"
        )
    if set(validate_on) == set(slides):
        raise KitError(
            f"--validate-on names all {len(set(slides))} slides: leave one or more to train on"
        )
    if validate_on:
        return np.isin(slides, list(validate_on))
    parts = min(_PARTS, len(set(slides)), np.bincount(labels).max())
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    taken = max(1, round(fraction * parts))
    on_valid = np.zeros(len(labels), bool)
    with warnings.catch_warnings():
        # A class of fewer tiles than parts: whether both sides have it is checked later.
        warnings.simplefilter("ignore", UserWarning)
        chosen = list(folds.split(slides, labels, slides))[:taken]
    for _, rows in chosen:
        on_valid[rows] = True
    return on_valid


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
