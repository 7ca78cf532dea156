"""The slide that each tile is from, as the community's tables say it."""

import hashlib
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

from kit.base import (
    SLIDES_FILE,
    KitError,
    Recipe,
    Strings,
    read_table,
    require_ids,
    require_values,
)
from kit.data.store import Store

FULL_TABLE = "patch_id_wsi_full.csv"
TABLES = (SLIDES_FILE, FULL_TABLE)
"""What a table is called that is found by itself: by the kit, and by the community."""
UNKNOWN = ""
"""The slide of a tile that a table does not name."""


def read_slides(path: Path, ids: Strings) -> Strings:
    """Read the slide of each tile from a CSV of id,slide, or of id,wsi as the community has it.

    The table may name other tiles, too.

    Returns
    -------
    ndarray
        (tiles,), in the order of `ids`; `UNKNOWN` for those that are not in the table.

    Raises
    ------
    KitError
        If the file is not such a table, names a tile twice, leaves a slide empty, or knows none of
        the tiles.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise KitError(f"cannot read id,slide from {path}: {error.strerror}") from error
    aliases = {"slide": ["wsi"]}
    table = read_table(content, ["id", "slide"], source=str(path), aliases=aliases)
    known = require_ids(table["id"], source=str(path))
    wanted = known.isin(ids)
    if not wanted.any():
        raise KitError(f"{path} names none of the {len(ids):,} tiles: give the table of these")
    require_values(table["slide"][wanted], source=str(path))
    slides = table["slide"].set_axis(known)[wanted.to_numpy()].reindex(ids)
    return slides.fillna(UNKNOWN).to_numpy(str)


def read_recipe_slides(path: Path, store: Store) -> Strings:
    """Read the slides of the training tiles for a holdout; say how many tiles it leaves out.

    Raises
    ------
    KitError
        As `read_slides` does.
    """
    slides = read_slides(path, store.train.ids)
    if missing := int((slides == UNKNOWN).sum()):
        hint = "" if path.name == FULL_TABLE else f". The community's whole table is {FULL_TABLE}"
        _note(
            f"{path} is partial: it has no slide for {missing:,} of {len(slides):,} training "
            f"tiles, which are left out{hint}"
        )
    return slides


def find_slides_table(store: Store) -> Path | None:
    """Return the table of slides that lies in a store's data folder, if one does."""
    return next((path for name in TABLES if (path := store.data / name).is_file()), None)


def note_unused_slides(store: Store, recipe: Recipe) -> None:
    """Say so where a table of slides lies in the data folder and does not choose the holdout."""
    table = find_slides_table(store)
    if table is not None and recipe.slides is None:
        _note(
            f"{table} does not choose the holdout, which is one of single tiles: "
            f"--slides {shlex.quote(str(table))} keeps slides apart"
        )


@dataclass(frozen=True)
class KnownSlides:
    """The slides of the training tiles for a page or a table, or why it shows none.

    Attributes
    ----------
    of_tiles
        As `read_slides` returns it; None where no table says.
    note
        Why a table that is there cannot be used; empty otherwise.
    """

    of_tiles: Strings | None = None
    note: str = ""

    def by_id(self, ids: Strings) -> dict[str, str] | None:
        """Return the slide of each of the training tiles' ids that the table names."""
        if self.of_tiles is None:
            return None
        pairs = zip(ids.tolist(), self.of_tiles.tolist(), strict=True)
        return {tile: slide for tile, slide in pairs if slide != UNKNOWN}

    @property
    def notes(self) -> list[str]:
        """The note, if there is one."""
        return [self.note] if self.note else []


def find_slides(store: Store, path: Path | str | None = None) -> KnownSlides:
    """Return the slides of the training tiles for a page or a table, or say why there are none.

    What a page would like to have is never a reason to lose it, so nothing is raised.

    Parameters
    ----------
    path
        The table; by default the one in the store's data folder, when it is said that it is used.
    """
    found = find_slides_table(store) if path is None else Path(path)
    if found is None:
        return KnownSlides()
    try:
        slides = read_slides(found, store.train.ids)
    except KitError as error:
        _note(f"slides are left out here: {error}")
        return KnownSlides(note=f"No slides are shown here: {error}.")
    if path is None:
        _note(f"{found} tells each tile's slide ({(slides != UNKNOWN).sum():,} of {len(slides):,})")
    return KnownSlides(slides)


def slides_fingerprint(path: Path, store: Store) -> str:
    """Return the SHA-256 of what a table says of the training tiles, whatever else is in it.

    Raises
    ------
    KitError
        As `read_slides` does.
    """
    slides = read_slides(path, store.train.ids)
    return hashlib.sha256("\n".join(slides).encode()).hexdigest()


@cache
def _note(text: str) -> None:
    """Print a note, once in a process: a table is read for each fold and seed."""
    # Not by print: a bar may stand on the line.
    tqdm.write(f"note: {text}", file=sys.stderr)
