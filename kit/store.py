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
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from kit import competition
from kit.competition import Split
from kit.errors import KitError
from kit.files import FolderLock, atomic_folder, write_text

FORMAT = 1
MAX_PROBLEMS = 10
STANDIN_NOTICE = (
    "*** STAND-IN: the tiles in {data} are synthetic. No figure here says anything of the "
    "competition. ***"
)
_CHUNK = 64

UInt8Array = npt.NDArray[np.uint8]
StrArray = npt.NDArray[np.str_]


class CorruptArchiveError(KitError):
    """The archive's bytes are not what they were when it was made: fetch it again."""


class TileError(ValueError):
    """One tile that cannot be trusted, and why."""


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
    """

    folder: Path
    train: TileSet
    test: TileSet
    fingerprint: str
    is_standin: bool

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


def pack(data: Path) -> Store:
    """Pack a folder's archive, or its extracted tiles, proving every tile on the way.

    Every archive member's CRC is checked, and every tile's id against the SHA-1 of its pixels.
    Nothing counts as packed before the manifest is written: an interrupted packing starts
    clean the next time, and a finished one is returned at once.

    Raises
    ------
    CorruptArchiveError
        If the archive's bytes have changed since it was made.
    KitError
        If there is no data, a table or a tile is bad, or the disk is full.
    """
    folder = competition.store_folder(competition.data_folder(data))
    if not is_packed(data):
        _pack(data, folder)
    packed = _load(folder)
    if packed.is_standin:
        print(STANDIN_NOTICE.format(data=data), file=sys.stderr)
    return packed


def _pack(data: Path, folder: Path) -> None:
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
        _write_store(partial, members, source)


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
        tags = _tiff_tags(tiff, order)
    except struct.error as error:
        raise TileError("truncated TIFF header") from error
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


def _tiff_tags(tiff: bytes, order: str) -> dict[int, tuple[int, ...]]:
    """Return the integer tags of the first directory."""
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
    return tags


class _Archive:
    """The competition's zip, mapped, so that threads inflate its members side by side."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> dict[str, Any]:
        status = self.path.stat()
        return {"source": self.path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}

    @contextmanager
    def open(self) -> Iterator[Self]:
        try:
            with zipfile.ZipFile(self.path) as archive, self.path.open("rb") as file:
                self._infos = {info.filename: info for info in archive.infolist()}
                self.is_standin = archive.comment == competition.STANDIN_COMMENT
                if len(self._infos) != len(archive.infolist()):
                    raise CorruptArchiveError(f"{self.path} holds two members of one name")
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with self._bytes:
                    yield self
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise CorruptArchiveError(f"{self.path} is not a whole zip file: {error}") from error

    def names(self) -> list[str]:
        return list(self._infos)

    def read(self, name: str) -> bytes:
        """Inflate one member and check its size and CRC (APPNOTE 6.3.10, 4.3.7)."""
        info = self._infos[name]
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise TileError("encrypted, or compressed by another method than deflate")
        if self._bytes[info.header_offset : info.header_offset + 4] != b"PK\x03\x04":
            raise TileError("no zip member where the directory says")
        lengths = struct.unpack_from("<HH", self._bytes, info.header_offset + 26)
        start = info.header_offset + 30 + sum(lengths)
        content = self._bytes[start : start + info.compress_size]
        if info.compress_type == zipfile.ZIP_DEFLATED:
            content = _inflate(content, info.file_size)
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise TileError("CRC mismatch")
        return content


def _inflate(content: bytes, size: int) -> bytes:
    """Inflate at most one byte more than `size`, so that no member can fill the memory."""
    try:
        return zlib.decompressobj(-15).decompress(content, size + 1)
    except zlib.error as error:
        raise TileError(f"cannot inflate: {error}") from error


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
        tables = [name for name in _TABLES if (self.path / name).is_file()]
        tiles = (
            f"{split}/{entry.name}"
            for split in competition.SPLITS
            for entry in os.scandir(self.path / split)
        )
        return [*tables, *tiles]

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


_Source = _Archive | _Folder
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
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return manifest


def _load(folder: Path) -> Store:
    """Map a finished store."""
    manifest = _read_manifest(folder)
    train, test = (_load_split(folder, split) for split in competition.SPLITS)
    return Store(folder, train, test, manifest["fingerprint"], manifest["is_standin"])


def _load_split(folder: Path, split: Split) -> TileSet:
    index = pd.read_csv(folder / f"{split}.csv", dtype={"id": str})
    tiles = np.load(folder / f"{split}.npy", mmap_mode="r")
    labels = index["label"].to_numpy(np.int64) if split == "train" else None
    return TileSet(tiles, index["id"].to_numpy(str), labels)


def _write_store(folder: Path, members: _Source, source: _Source) -> None:
    """Write both splits, then the manifest that says they are whole."""
    indices = {
        "train": _read_labels(members, source.path),
        "test": _read_sample(members, source.path),
    }
    _check_honour(indices["train"], indices["test"], source.path)
    digest = hashlib.sha256()
    for split in competition.SPLITS:
        index = indices[split]
        _pack_split(folder / f"{split}.npy", members, split, index["id"].to_list())
        text = index.to_csv(index=False, lineterminator="\n")
        digest.update(text.encode())
        write_text(folder / f"{split}.csv", text)
    manifest = {
        "format": FORMAT,
        "fingerprint": digest.hexdigest(),
        "is_standin": members.is_standin,
        "tiles": {split: len(index) for split, index in indices.items()},
        "packed_from": source.identity(),
    }
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _pack_split(path: Path, members: _Source, split: Split, ids: Sequence[str]) -> None:
    """Copy a split's pixels into one array, in the order of `ids`, proving each tile."""
    rows = {f"{split}/{tile}.tif": row for row, tile in enumerate(ids)}
    names = [name for name in members.names() if name.startswith(f"{split}/") and name[-1] != "/"]
    _check_names(names, rows, members.path)
    tiles = _allocate(path, len(ids))

    def copy(chunk: list[str]) -> list[str]:
        return [problem for name in chunk if (problem := _copy_tile(members, name, tiles, rows))]

    problems: list[str] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as executor,
        tqdm(total=len(names), desc=f"packing {split}", unit=" tiles", mininterval=0.5) as bar,
    ):
        for chunk, found in _in_order(executor, copy, _chunks(names)):
            problems += found
            bar.update(len(chunk))
    if problems:
        _refuse(problems, members)
    tiles.flush()


def _copy_tile(members: _Source, name: str, tiles: UInt8Array, rows: dict[str, int]) -> str | None:
    """Copy one proved tile into its row; return what is wrong with it, if anything is."""
    try:
        pixels = tile_pixels(members.read(name))
        proved = competition.tile_id(pixels)
        if proved != Path(name).stem:
            raise TileError(f"its pixels hash to {proved}")
    except TileError as error:
        return f"{name}: {error}"
    tiles[rows[name]] = np.frombuffer(pixels, np.uint8).reshape(tiles.shape[1:])
    return None


def _in_order(
    executor: ThreadPoolExecutor,
    work: Callable[[list[str]], list[str]],
    chunks: Iterator[list[str]],
) -> Iterator[tuple[list[str], list[str]]]:
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


def _allocate(path: Path, count: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Create an array on disk with its blocks reserved.

    A mapped file that outgrows the disk kills the process; reserving fails with a message.
    """
    shape = (count, competition.TILE_SIZE, competition.TILE_SIZE, competition.CHANNELS)
    tiles = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return tiles


def _refuse(problems: list[str], members: _Source) -> None:
    """Report the bad tiles, all in one message."""
    listed = "\n  ".join(problems[:MAX_PROBLEMS])
    more = f"\n  and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
    message = f"{len(problems)} bad tiles in {members.path}:\n  {listed}{more}\n"
    if isinstance(members, _Archive):
        raise CorruptArchiveError(f"{message}Delete the archive and type `make download` again")
    raise KitError(f"{message}Extract these tiles again from {competition.ARCHIVE}")


def _check_names(names: Sequence[str], rows: dict[str, int], path: Path) -> None:
    """Refuse a split whose tiles and table do not name the same ids."""
    missing = sorted(rows.keys() - names)
    extra = sorted(set(names) - rows.keys())
    if missing or extra:
        first = missing[0] if missing else extra[0]
        raise KitError(
            f"{path}: {len(missing)} tiles of the table are missing and {len(extra)} tiles are "
            f"not in the table, first {first}. Fetch or extract the data again"
        )


def _read_labels(members: _Source, path: Path) -> pd.DataFrame:
    """Read the training table: id,label, labels 0 or 1."""
    table = _read_table(members, competition.LABELS_FILE, path)
    bad = table.index[~table["label"].isin(["0", "1"])]
    if len(bad):
        value = table["label"].iloc[bad[0]]
        raise KitError(
            f"{path}: {competition.LABELS_FILE} line {bad[0] + 2}: label {value!r} is not 0 or 1"
        )
    return table.astype({"label": np.int64})


def _read_sample(members: _Source, path: Path) -> pd.DataFrame:
    """Read the test ids from the sample submission, in its order."""
    return _read_table(members, competition.SAMPLE_FILE, path)[["id"]]


def _read_table(members: _Source, name: str, path: Path) -> pd.DataFrame:
    """Read a table of id,label as text, its ids proper and each there once."""
    if name not in members.names():
        # As a leaderboard does that was saved under the archive's name.
        wrong = CorruptArchiveError if isinstance(members, _Archive) else KitError
        raise wrong(f"{path} holds no {name}: fetch the data again")
    try:
        content = members.read(name)
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except TileError as error:
        raise CorruptArchiveError(f"{path}: {name}: {error}") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise KitError(f"{path}: {name} is not a CSV file: {error}") from error
    if list(table.columns) != ["id", "label"]:
        raise KitError(f"{path}: {name} has the columns {list(table.columns)}, not id,label")
    for what, bad in {
        "is not 40 hex digits": ~table["id"].str.fullmatch("[0-9a-f]{40}"),
        "stands there twice": table["id"].duplicated(),
    }.items():
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise KitError(f"{path}: {name} line {row + 2}: id {table['id'][row]!r} {what}")
    return table


def _check_honour(train: pd.DataFrame, test: pd.DataFrame, path: Path) -> None:
    """Refuse labels for test tiles: they are public elsewhere, and using them is cheating."""
    leaked = train["id"].isin(set(test["id"]))
    if leaked.any():
        raise KitError(
            f"{path}: {competition.LABELS_FILE} labels {leaked.sum()} test tiles, first "
            f"{train['id'][leaked].iloc[0]}: the kit does not train on test tiles"
        )
