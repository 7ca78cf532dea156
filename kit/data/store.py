"""The packed tiles: one uint8 array per split, memory-mapped, with its index and a manifest.

store/train.npy      (tiles, 96, 96, 3) uint8      store/train.csv   id,label
store/test.npy       (tiles, 96, 96, 3) uint8      store/test.csv    id
store/manifest.json  written last: what was packed, and its fingerprint
"""

import hashlib
import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.base import (
    SPLITS,
    TILE_BYTES,
    FolderLock,
    KitError,
    Labels,
    Pixels,
    Split,
    Strings,
    atomic_folder,
    competition,
    read_json,
)
from kit.data.archive import Folder, Source, find_source
from kit.data.mapped import map_file
from kit.data.pack import FORMAT, fingerprint, read_index, tiles_shape, without, write_store

STANDIN_NOTICE = (
    "*** STAND-IN: the tiles in {data} are synthetic. No figure here says anything of the "
    "competition. ***"
)
SKIPPED_NOTICE = (
    "note: {count:,} bad training tiles were left out when {folder} was packed; its manifest.json "
    "names them. To pack them again, delete that folder"
)
OUTSIDE_NOTICE = "note: {data} is read-only, so its packed tiles are in {folder}"


@dataclass(frozen=True)
class TileSet:
    """One split of the competition.

    Attributes
    ----------
    tiles
        (tiles, 96, 96, 3), RGB, mapped from disk.
    ids
        40 hex digits each, in the order of `tiles`: that of the competition's own table.
    labels
        (tiles,), 0 or 1; None for the test split.
    features
        Folder of what encoders make of the tiles, beside the store; None keeps nothing.
    """

    tiles: Pixels
    ids: Strings
    labels: Labels | None = None
    features: Path | None = None

    @property
    def split(self) -> Split:
        """Which one it is."""
        return "test" if self.labels is None else "train"

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Store:
    """The packed competition.

    Attributes
    ----------
    data
        The folder of the competition's data; a table of slides may lie there.
    folder
        Where the packed tiles lie.
    fingerprint
        SHA-256 over all ids and labels. As an id is the hash of its pixels, two stores of one
        fingerprint hold the same pixels, too.
    is_standin
        Whether the tiles are synthetic.
    skipped
        What was wrong with each tile that was left out, by its name.
    """

    data: Path
    folder: Path
    train: TileSet
    test: TileSet
    fingerprint: str
    is_standin: bool
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """The training tiles' labels."""
        assert self.train.labels is not None
        return self.train.labels


def open_store(data: Path) -> Store:
    """Open the packed tiles of a data folder, packing them first where need be.

    Raises
    ------
    KitError
        If there is no data, or it cannot be packed.
    """
    if not is_packed(data) and find_source(data):
        print(f"{data} is not packed yet: packing it now, once", file=sys.stderr)
    return pack_tiles(data)


def is_packed(data: Path) -> bool:
    """Return whether a folder's tiles are packed: those of its archive, if that is still there."""
    source = find_source(data)
    return _holds(_store_folder(data, source), source)


def pack_tiles(data: Path, *, skip_bad: bool = False) -> Store:
    """Pack a folder's archive, or its extracted tiles, proving every tile on the way.

    Every archive member's CRC is checked, and every tile's id against the SHA-1 of its pixels.
    Nothing counts as packed before the manifest is written: an interrupted packing starts
    clean the next time, and a finished one is returned at once.

    The tiles go to `store` in the folder, which may be a link to a larger disk. If the folder is
    read-only, they go to the working folder, under a name that is that of this data alone.

    Parameters
    ----------
    skip_bad
        Leave bad training tiles out, with their labels, and record them in the manifest. A bad
        test tile is refused even so: a submission needs a probability for each of them.

    Raises
    ------
    CorruptArchiveError
        If the archive's bytes have changed since it was made.
    KitError
        If there is no data, a table or a tile is bad, or the disk is full. All bad tiles are
        named, up to `MAX_PROBLEMS`.
    """
    source = find_source(data)
    folder = _store_folder(data, source)
    if not _holds(folder, source):
        if source is None:
            raise _no_data(data)
        _pack(source, folder, skip_bad)
    packed = _load(competition.data_folder(data), folder)
    if not folder.is_relative_to(packed.data):
        print(OUTSIDE_NOTICE.format(data=data, folder=folder), file=sys.stderr)
    if packed.is_standin:
        print(STANDIN_NOTICE.format(data=data), file=sys.stderr)
    if packed.skipped:
        print(SKIPPED_NOTICE.format(count=len(packed.skipped), folder=folder), file=sys.stderr)
    return packed


def _no_data(data: Path) -> KitError:
    others = sorted(path.name for path in data.glob("*.zip"))
    hint = f"If {others[0]} is the archive, rename it. " if others else ""
    return KitError(
        f"no data in {data}: neither {competition.ARCHIVE} nor train/ and test/.\n{hint}"
        "Type `make download` for the competition's data, or `make demo` for a synthetic stand-in"
    )


def _store_folder(data: Path, source: Source | None) -> Path:
    """Return where a folder's packed tiles lie, or will lie."""
    data = competition.data_folder(data)
    inside = data / "store"
    is_writable = os.access(data, os.W_OK) or inside.is_symlink() or not data.exists()
    if is_writable or _holds(inside, source):
        return inside
    # Where version 0.4 packed all data that is read-only, whichever it was.
    shared = Path("store")
    if source is not None and _holds(shared, source):
        return shared
    digest = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:8]
    return Path(f"packed-{digest}") / "store"


def _holds(folder: Path, source: Source | None) -> bool:
    """Whether a store is whole and holds the tiles of a source, if that is still there."""
    if not (folder / "manifest.json").is_file():
        return False
    manifest = _read_manifest(folder)
    if manifest["format"] != FORMAT:
        return False
    identity = source and source.identity()
    if identity is None or manifest["packed_from"] == identity:
        return True
    # Extracted folders had another identity in version 0.4; what the tables say decides.
    return isinstance(source, Folder) and manifest["fingerprint"] == _fingerprint(source, manifest)


def _fingerprint(source: Folder, manifest: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of a store of this source, less the tiles that were left out."""
    try:
        return fingerprint(without(manifest.get("skipped", {}), read_index(source)))
    except KitError:
        # Packing will say it.
        return None


def _pack(source: Source, folder: Path, skip_bad: bool) -> None:
    """Pack a source's tiles into a new store that takes the place of an old one."""
    target = _target(folder)
    with (
        FolderLock(target.parent),
        source.open() as opened,
        atomic_folder(target, marker="manifest.json") as partial,
    ):
        write_store(partial, opened, skip_bad=skip_bad)


def _target(folder: Path) -> Path:
    """Return the folder that a store's path leads to, which may lie on another disk."""
    target = Path(os.path.realpath(folder))
    if target.is_symlink():
        raise KitError(f"{folder} is a link to itself: remove it")
    if target.is_mount():
        raise KitError(
            f"{folder} leads to {target}, the top of a disk, which cannot be replaced: make it a "
            "link to a folder there"
        )
    return target


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    keys = {"format", "fingerprint", "is_standin", "packed_from"}
    try:
        manifest = read_json(path, dict[str, Any], what="a store's manifest")
    except KitError as error:
        raise _damaged(folder, error) from error
    if not keys <= manifest.keys():
        raise _damaged(folder, "manifest.json lacks keys")
    return manifest


def _damaged(folder: Path, what: object) -> KitError:
    return KitError(f"{folder} is damaged ({what}): delete it and pack again")


def _load(data: Path, folder: Path) -> Store:
    """Map a finished store, if its tables are those that were packed."""
    manifest = _read_manifest(folder)
    try:
        index = b"".join((folder / f"{split}.csv").read_bytes() for split in SPLITS)
        if hashlib.sha256(index).hexdigest() != manifest["fingerprint"]:
            raise _damaged(folder, "its tables are not those that were packed")
        train, test = (_load_split(folder, split) for split in SPLITS)
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    return Store(
        data,
        folder,
        train,
        test,
        manifest["fingerprint"],
        manifest["is_standin"],
        manifest.get("skipped", {}),
    )


def _load_split(folder: Path, split: Split) -> TileSet:
    types = {"id": str, "label": np.int64} if split == "train" else {"id": str}
    index = pd.read_csv(folder / f"{split}.csv", dtype=types, usecols=list(types))
    tiles = _map(folder / f"{split}.npy", len(index))
    labels = index["label"].to_numpy() if split == "train" else None
    # Where a store's link leads there is room.
    features = Path(os.path.realpath(folder)).with_name("features")
    return TileSet(tiles, index["id"].to_numpy(str), labels, features)


def _map(path: Path, count: int) -> Pixels:
    """Map an array of tiles whose header is the one that packing writes.

    So no header that a stranger wrote is parsed, and no object in it is unpickled.
    """
    header = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": tiles_shape(count)}
    np.lib.format.write_array_header_1_0(header, layout)
    start = header.tell()
    with path.open("rb") as file:
        is_whole = file.read(start) == header.getvalue()
    if not is_whole or path.stat().st_size != start + count * TILE_BYTES:
        raise ValueError(f"{path.name} does not hold {count} tiles")
    return map_file(path, start, tiles_shape(count))
