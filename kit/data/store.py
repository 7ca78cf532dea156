"""The packed tiles: one uint8 array a split, memory-mapped, with its index and a manifest.

store/train.npy      (tiles, 96, 96, 3) uint8      store/train.csv   id,label
store/test.npy       (tiles, 96, 96, 3) uint8      store/test.csv    id
store/manifest.json  written last: what was packed, and its fingerprint
"""

import hashlib
import io
import json
import mmap
import os
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from kit.base import (
    FolderLock,
    KitError,
    Split,
    atomic_folder,
    competition,
    read_table,
    require_ids,
    require_labels,
    write_text,
)

FORMAT = 1
MAX_PROBLEMS = 50
STANDIN_NOTICE = (
    "*** STAND-IN: the tiles in {data} are synthetic. No figure here says anything of the "
    "competition. ***"
)
SKIPPED_NOTICE = (
    "note: {count:,} bad training tiles were left out when {folder} was packed; its manifest.json "
    "names them"
)
# A tile has 27,935 bytes, the largest table 9.5 MB. What claims to be larger is not inflated.
_MAX_TILE_BYTES = 2**20
_MAX_TABLE_BYTES = 2**28
_CHUNK = 64

UInt8Array = npt.NDArray[np.uint8]
StrArray = npt.NDArray[np.str_]


class CorruptArchiveError(KitError):
    """The archive's bytes are not what they were when it was made: fetch it again."""


class TileError(ValueError):
    """One tile that cannot be trusted, and why."""


class CorruptMemberError(TileError):
    """A member of an archive whose bytes are not what they were when it was put there."""


Problems = dict[str, TileError]
"""What is wrong, by the tile's name in its archive or folder."""


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
        0 or 1 a tile; None for the test split.
    """

    tiles: UInt8Array
    ids: StrArray
    labels: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Store:
    """The packed competition.

    Attributes
    ----------
    fingerprint
        SHA-256 over all ids and labels. As an id is the hash of its pixels, two stores of one
        fingerprint hold the same pixels, too.
    is_standin
        Whether the tiles are synthetic.
    skipped
        What was wrong with each tile that was left out, by its name.
    """

    folder: Path
    train: TileSet
    test: TileSet
    fingerprint: str
    is_standin: bool
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
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
    if not is_packed(data) and _find_source(data):
        print(f"{data} is not packed yet: packing it now, once", file=sys.stderr)
    return pack(data)


def is_packed(data: Path) -> bool:
    """Whether a folder's tiles are packed, and its archive, if still there, is the one packed."""
    folder = competition.store_folder(competition.data_folder(data))
    if not (folder / "manifest.json").is_file():
        return False
    manifest = _read_manifest(folder)
    source = _find_source(data)
    return manifest["format"] == FORMAT and (
        source is None or manifest["packed_from"] == source.identity()
    )


def pack(data: Path, *, skip_bad: bool = False) -> Store:
    """Pack a folder's archive, or its extracted tiles, proving every tile on the way.

    Every archive member's CRC is checked, and every tile's id against the SHA-1 of its pixels.
    Nothing counts as packed before the manifest is written: an interrupted packing starts
    clean the next time, and a finished one is returned at once.

    Parameters
    ----------
    skip_bad
        Leave bad training tiles out, with their labels, and record them in the manifest. A bad
        test tile is refused all the same: a submission needs a probability for each of them.

    Raises
    ------
    CorruptArchiveError
        If the archive's bytes have changed since it was made.
    KitError
        If there is no data, a table or a tile is bad, or the disk is full. All bad tiles are
        named, up to `MAX_PROBLEMS`.
    """
    folder = competition.store_folder(competition.data_folder(data))
    if not is_packed(data):
        _pack(data, folder, skip_bad)
    packed = _load(folder)
    if packed.is_standin:
        print(STANDIN_NOTICE.format(data=data), file=sys.stderr)
    if packed.skipped:
        print(SKIPPED_NOTICE.format(count=len(packed.skipped), folder=folder), file=sys.stderr)
    return packed


def _pack(data: Path, folder: Path, skip_bad: bool) -> None:
    """Pack a folder's tiles into a new store that takes the place of an old one."""
    source = _find_source(data)
    if source is None:
        raise KitError(
            f"no data in {data}: neither {competition.ARCHIVE} nor train/ and test/.\n"
            "Type `make download` for the competition's data, or `make demo` for a synthetic "
            "stand-in"
        )
    with (
        FolderLock(folder.parent),
        source.open() as members,
        atomic_folder(folder) as partial,
    ):
        _write_store(partial, members, source, skip_bad)


def tile_pixels(tiff: bytes) -> memoryview:
    """Return the pixels of one of the competition's TIFF files.

    The header is read, not assumed, and only the competition's own layout is accepted:
    96x96 RGB, 8 bits a channel, uncompressed, interleaved, one strip (TIFF 6.0, section 6).

    Raises
    ------
    TileError
        Saying what is different.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8 or struct.unpack_from(f"{order}H", tiff, 2)[0] != 42:
        raise TileError("not a TIFF file")
    try:
        tags, following = _tiff_directory(tiff, order)
    except struct.error as error:
        raise TileError("truncated TIFF header") from error
    if following:
        raise TileError("TIFF of more than one page")
    for tag, (name, expected) in _LAYOUT.items():
        if tags.get(tag, _DEFAULTS.get(tag)) != expected:
            raise TileError(f"TIFF {name} is {tags.get(tag)}, not {expected}")
    if len(tags.get(_STRIP_OFFSETS, ())) != 1:
        raise TileError("TIFF pixels are not in one strip")
    start = tags[_STRIP_OFFSETS][0]
    if start + competition.TILE_BYTES > len(tiff):
        raise TileError("truncated TIFF pixels")
    return memoryview(tiff)[start : start + competition.TILE_BYTES]


_STRIP_OFFSETS = 273
_DEFAULTS = {259: (1,), 284: (1,)}
_LAYOUT = {
    256: ("width", (competition.TILE_SIZE,)),
    257: ("height", (competition.TILE_SIZE,)),
    258: ("bits per sample", (8, 8, 8)),
    259: ("compression", (1,)),
    262: ("photometric interpretation", (2,)),
    277: ("samples per pixel", (3,)),
    284: ("planar configuration", (1,)),
}
_TYPE_FORMATS = {1: "B", 3: "H", 4: "I"}


def _tiff_directory(tiff: bytes, order: str) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return the integer tags of the first directory, and where the next one is (0: nowhere)."""
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, directory)
    tags = {}
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, entry)
        if kind not in _TYPE_FORMATS or length > len(tiff):
            continue
        values = f"{order}{length}{_TYPE_FORMATS[kind]}"
        inline = struct.calcsize(values) <= 4
        offset = entry + 8 if inline else struct.unpack_from(f"{order}I", tiff, entry + 8)[0]
        tags[tag] = struct.unpack_from(values, tiff, offset)
    (following,) = struct.unpack_from(f"{order}I", tiff, directory + 2 + 12 * count)
    return tags, following


class _Archive:
    """The competition's zip, mapped, so that threads inflate its members side by side."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> dict[str, Any]:
        status = self.path.stat()
        return {"source": self.path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}

    @contextmanager
    def open(self) -> Iterator[Self]:
        self._read_directory()
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self._bytes,
        ):
            yield self

    def _read_directory(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                self._members = archive.infolist()
                self.is_standin = archive.comment == competition.STANDIN_COMMENT
        # A ValueError is a name that is no text.
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise CorruptArchiveError(f"{self.path} is not a whole zip file: {error}") from error
        self._infos = {info.filename: info for info in self._members}

    def names(self) -> list[str]:
        return [info.filename for info in self._members]

    def read(self, name: str, limit: int) -> bytes:
        """Inflate one member and check its size and CRC (APPNOTE 6.3.10, 4.3.7)."""
        info = self._infos[name]
        _check_size(max(info.file_size, info.compress_size), limit)
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise TileError("encrypted, or compressed by another method than deflate")
        header = self._bytes[info.header_offset : info.header_offset + 30]
        if header[:4] != b"PK\x03\x04" or len(header) < 30:
            raise CorruptMemberError("no zip member where the directory says")
        lengths = struct.unpack_from("<HH", header, 26)
        start = info.header_offset + 30 + sum(lengths)
        content = self._bytes[start : start + info.compress_size]
        if info.compress_type == zipfile.ZIP_DEFLATED:
            content = _inflate(content, info.file_size)
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise CorruptMemberError("CRC mismatch")
        return content


def _inflate(content: bytes, size: int) -> bytes:
    """Inflate at most one byte more than `size`, so that no member can fill the memory."""
    try:
        return zlib.decompressobj(-15).decompress(content, size + 1)
    except zlib.error as error:
        raise CorruptMemberError(f"cannot inflate: {error}") from error


def _check_size(size: int, limit: int) -> None:
    """Refuse what would fill the memory."""
    if size > limit:
        raise TileError(f"{size:,} bytes, which is more than {limit:,}")


class _Folder:
    """The competition's files, extracted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_standin = (path / competition.STANDIN_FILE).exists()

    def identity(self) -> dict[str, Any]:
        labels = self.path / competition.LABELS_FILE
        return {"source": "folder", "mtime_ns": labels.stat().st_mtime_ns}

    @contextmanager
    def open(self) -> Iterator[Self]:
        yield self

    def names(self) -> list[str]:
        found = [name for name in _TABLES if (self.path / name).is_file()]
        tiles = (
            f"{split}/{entry.name}"
            for split in competition.SPLITS
            for entry in os.scandir(self.path / split)
        )
        return [*found, *tiles]

    def read(self, name: str, limit: int) -> bytes:
        path = self.path / name
        # A pipe or a device would never end.
        if not path.is_file():
            raise TileError("not a file")
        _check_size(path.stat().st_size, limit)
        return path.read_bytes()


_Source = _Archive | _Folder
_Indices = dict[Split, pd.DataFrame]
_SPLIT_FOLDERS = tuple(f"{split}/" for split in competition.SPLITS)
_TABLES = (competition.LABELS_FILE, competition.SAMPLE_FILE)


def _find_source(data: Path) -> _Source | None:
    """Return what there is to pack in a data folder, the archive first."""
    folder = competition.data_folder(data)
    if (folder / competition.ARCHIVE).is_file():
        return _Archive(folder / competition.ARCHIVE)
    if all((folder / split).is_dir() for split in competition.SPLITS):
        return _Folder(folder)
    return None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    keys = {"format", "fingerprint", "is_standin", "packed_from"}
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _damaged(folder, f"manifest.json: {error}") from error
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise _damaged(folder, "manifest.json lacks keys")
    return manifest


def _damaged(folder: Path, what: object) -> KitError:
    return KitError(f"{folder} is damaged ({what}): delete it and pack again")


def _load(folder: Path) -> Store:
    """Map a finished store whose tables are still those that were packed."""
    manifest = _read_manifest(folder)
    try:
        index = b"".join((folder / f"{split}.csv").read_bytes() for split in competition.SPLITS)
        if hashlib.sha256(index).hexdigest() != manifest["fingerprint"]:
            raise _damaged(folder, "its tables are not those that were packed")
        train, test = (_load_split(folder, split) for split in competition.SPLITS)
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    return Store(
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
    return TileSet(tiles, index["id"].to_numpy(str), labels)


def _map(path: Path, count: int) -> UInt8Array:
    """Map an array of tiles whose header is the one that packing writes.

    So no header of a stranger's is parsed, and no object in it unpickled.
    """
    header = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": _shape(count)}
    np.lib.format.write_array_header_1_0(header, layout)
    start = header.tell()
    with path.open("rb") as file:
        is_whole = file.read(start) == header.getvalue()
    if not is_whole or path.stat().st_size != start + count * competition.TILE_BYTES:
        raise ValueError(f"{path.name} does not hold {count} tiles")
    return np.memmap(path, np.uint8, "r", start, _shape(count))


def _write_store(folder: Path, members: _Source, source: _Source, skip_bad: bool) -> None:
    """Write both splits, then the manifest that says they are whole."""
    indices: _Indices = {"train": _read_labels(members), "test": _read_sample(members)}
    _check_honour(indices["train"], indices["test"], source.path)
    problems = _name_problems(members.names(), indices)
    problems |= _pack_tiles(folder, members, _without(problems, indices))
    if problems:
        if not (skip_bad and _are_skippable(problems)):
            _refuse(problems, members)
        indices = _without(problems, indices)
        if indices["train"].empty:
            raise KitError(f"no training tile in {source.path} is good: fetch the data again")
        # Anew, so that the rows of the good tiles follow each other.
        if changed := _pack_tiles(folder, members, indices):
            _refuse(changed, members)
    digest = hashlib.sha256()
    for split in competition.SPLITS:
        text = indices[split].to_csv(index=False, lineterminator="\n")
        digest.update(text.encode())
        write_text(folder / f"{split}.csv", text)
    manifest = {
        "format": FORMAT,
        "fingerprint": digest.hexdigest(),
        "is_standin": members.is_standin,
        "tiles": {split: len(index) for split, index in indices.items()},
        "skipped": {name: str(problems[name]) for name in sorted(problems)},
        "packed_from": source.identity(),
    }
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _pack_tiles(folder: Path, members: _Source, indices: _Indices) -> Problems:
    """Copy the tiles of both splits; return what is wrong with those that were not copied."""
    problems: Problems = {}
    for split, index in indices.items():
        problems |= _pack_split(folder / f"{split}.npy", members, split, index["id"].to_list())
    return problems


def _without(problems: Problems, indices: _Indices) -> _Indices:
    """Return the indices without their bad tiles."""
    return {
        split: index[[_member(split, tile) not in problems for tile in index["id"]]]
        for split, index in indices.items()
    }


def _name_problems(names: Sequence[str], indices: _Indices) -> Problems:
    """Compare the members' names with those of the tables."""
    counts = Counter(names)
    tiles = {name for name in counts if name.startswith(_SPLIT_FOLDERS) and name[-1] != "/"}
    expected = {_member(split, tile) for split in indices for tile in indices[split]["id"]}
    return (
        {name: TileError("missing") for name in expected - tiles}
        | {name: TileError("not in the table") for name in tiles - expected}
        | {name: TileError("stands there twice") for name in tiles if counts[name] > 1}
        | {name: TileError("leads out of its folder") for name in counts if _is_outside(name)}
    )


def _member(split: Split, tile: str) -> str:
    return f"{split}/{tile}.tif"


def _is_outside(name: str) -> bool:
    """Whether a name is absolute, or climbs, on any system."""
    first, *_ = parts = re.split(r"[/\\]", name)
    return not first or first.endswith(":") or ".." in parts


def _are_skippable(problems: Problems) -> bool:
    """Whether no test tile is among them: a submission needs each of those."""
    return not any(name.startswith("test/") for name in problems)


def _pack_split(path: Path, members: _Source, split: Split, ids: Sequence[str]) -> Problems:
    """Copy a split's pixels into one array, in the order of `ids`, proving each tile."""
    tiles = _allocate(path, len(ids))
    rows = {_member(split, tile): row for row, tile in enumerate(ids)}
    # In the order in which they lie on disk.
    names = [name for name in members.names() if name in rows]

    def copy(chunk: list[str]) -> Problems:
        return dict(filter(None, (_copy_tile(members, name, tiles[rows[name]]) for name in chunk)))

    problems: Problems = {}
    with (
        ThreadPoolExecutor(os.cpu_count()) as executor,
        tqdm(total=len(names), desc=f"packing {split}", unit=" tiles", mininterval=0.5) as bar,
    ):
        for chunk, found in _in_order(executor, copy, _chunks(names)):
            problems |= found
            bar.update(len(chunk))
    tiles.flush()
    return problems


def _copy_tile(members: _Source, name: str, row: UInt8Array) -> tuple[str, TileError] | None:
    """Copy one proved tile into its row; return what is wrong with it, if anything is."""
    try:
        pixels = tile_pixels(members.read(name, _MAX_TILE_BYTES))
        proved = competition.tile_id(pixels)
        if proved != Path(name).stem:
            raise TileError(f"its pixels hash to {proved}")
    except TileError as error:
        return name, error
    row[:] = np.frombuffer(pixels, np.uint8).reshape(row.shape)
    return None


def _in_order(
    executor: ThreadPoolExecutor,
    work: Callable[[list[str]], Problems],
    chunks: Iterator[list[str]],
) -> Iterator[tuple[list[str], Problems]]:
    """Yield each chunk with its result; an interruption drops the chunks not yet begun."""
    pending = [(chunk, executor.submit(work, chunk)) for chunk in chunks]
    try:
        for chunk, future in pending:
            yield chunk, future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _chunks(names: Sequence[str]) -> Iterator[list[str]]:
    iterator = iter(names)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _shape(count: int) -> tuple[int, ...]:
    return count, competition.TILE_SIZE, competition.TILE_SIZE, competition.CHANNELS


def _allocate(path: Path, count: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Create an array on disk with its blocks reserved.

    A mapped file that outgrows the disk kills the process; reserving fails with a message.
    """
    tiles = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=_shape(count))
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return tiles


def _refuse(problems: Problems, members: _Source) -> NoReturn:
    """Report the bad tiles, all in one message, and the next step."""
    lines = [f"{name}: {problems[name]}" for name in sorted(problems)[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS:,} more")
    listed = "\n  ".join(lines)
    message = f"{len(problems):,} bad tiles in {members.path}:\n  {listed}\n"
    if isinstance(members, _Archive):
        again = "Delete the archive and type `make download` again"
    else:
        again = f"Extract these tiles again from {competition.ARCHIVE}"
    if any(isinstance(problem, CorruptMemberError) for problem in problems.values()):
        raise CorruptArchiveError(f"{message}{again}")
    if not _are_skippable(problems):
        raise KitError(f"{message}{again}; a submission needs every test tile")
    raise KitError(f"{message}{again}, or leave them out: python kernels/pack.py --skip-bad")


def _read_labels(members: _Source) -> pd.DataFrame:
    """Read the training table: id and label."""
    table, source = _read_table(members, competition.LABELS_FILE)
    labels = require_labels(table["label"], source=source)
    return table.assign(label=labels)


def _read_sample(members: _Source) -> pd.DataFrame:
    """Read the test ids from the sample submission, in its order."""
    table, _ = _read_table(members, competition.SAMPLE_FILE)
    return table[["id"]]


def _read_table(members: _Source, name: str) -> tuple[pd.DataFrame, str]:
    """Read a table of id,label, its ids proved; return what messages call it, too."""
    # As a leaderboard is that was saved under the archive's name.
    wrong = CorruptArchiveError if isinstance(members, _Archive) else KitError
    count = members.names().count(name)
    if count != 1:
        raise wrong(f"{members.path} holds {count or 'no'} {name}: fetch the data again")
    source = f"{members.path}: {name}"
    try:
        content = members.read(name, _MAX_TABLE_BYTES)
    except TileError as error:
        raise wrong(f"{source}: {error}") from error
    table = read_table(content, ["id", "label"], source=source)
    if table.empty:
        raise KitError(f"{source} names no tile: fetch the data again")
    return table.assign(id=require_ids(table["id"], source=source)), source


def _check_honour(train: pd.DataFrame, test: pd.DataFrame, path: Path) -> None:
    """Refuse labels for test tiles: they are public elsewhere, and using them is cheating."""
    leaked = train["id"].isin(set(test["id"]))
    if leaked.any():
        raise KitError(
            f"{path}: {competition.LABELS_FILE} labels {leaked.sum()} test tiles, first "
            f"{train['id'][leaked].iloc[0]}: the kit does not train on test tiles"
        )
