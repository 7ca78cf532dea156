"""Where tiles are packed from: the competition's archive, or its files, extracted."""

import hashlib
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from kit.base import SPLITS, KitError, competition
from kit.data.tiff import TileError

TABLES = (competition.LABELS_FILE, competition.SAMPLE_FILE)


class CorruptArchiveError(KitError):
    """An archive that has changed since it was made: fetch it again."""


class CorruptMemberError(TileError):
    """A member of an archive that has changed since the archive was made."""


class Archive:
    """The competition's zip, mapped, so that threads inflate its members side by side.

    All of its files may lie in one folder, as some programs pack them; names leave that out.
    """

    readers = os.cpu_count() or 1
    """Threads to read with."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> dict[str, Any]:
        """Return what tells this archive from another one without reading it."""
        status = self.path.stat()
        return {"source": self.path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Map the archive for as long as the block lasts.

        Raises
        ------
        CorruptArchiveError
            If it is not a whole zip file.
        """
        self._read_directory()
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self._bytes,
        ):
            yield self

    def _read_directory(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = archive.infolist()
                self.is_standin = archive.comment == competition.STANDIN_COMMENT
        # A ValueError is a name that is not text.
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise CorruptArchiveError(f"{self.path} is not a whole zip file: {error}") from error
        except OSError as error:
            raise KitError(f"cannot read {self.path}: {error.strerror}") from error
        names = [_with_slashes(info.filename) for info in members]
        top = _top_folder(names)
        # The folder on top is a member itself where a program packs folders, too.
        pairs = [
            (name.removeprefix(top), info)
            for name, info in zip(names, members, strict=True)
            if not top or name != top
        ]
        self._names = [name for name, _ in pairs]
        self._infos = dict(pairs)

    def names(self) -> list[str]:
        """Return the members' names in the order in which they are stored."""
        return self._names

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


def is_outside(name: str) -> bool:
    """Return whether a name is absolute, or leads up, on any system."""
    first, *_ = parts = re.split(r"[/\\]", name)
    return not first or first.endswith(":") or ".." in parts


def _with_slashes(name: str) -> str:
    """Return a member's name as zip has it; some programs on Windows write backslashes."""
    return name if is_outside(name) else name.replace("\\", "/")


def _top_folder(names: list[str]) -> str:
    """Return the path, "" or ending in "/", below which all of the competition's files lie."""
    if competition.LABELS_FILE in names:
        return ""
    tops = {
        name.removesuffix(competition.LABELS_FILE)
        for name in names
        if name.endswith(f"/{competition.LABELS_FILE}") and not is_outside(name)
    }
    return tops.pop() if len(tops) == 1 else ""


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


class Folder:
    """The competition's files, extracted."""

    readers = 32
    """Threads to read with: on a mount of the network, as Kaggle's, each waits for its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_standin = (path / competition.STANDIN_FILE).exists()

    def identity(self) -> dict[str, Any] | None:
        """Return a digest of both tables, which name every tile, and by its id its pixels.

        None where a table is missing, or cannot be read.
        """
        digest = hashlib.sha256()
        for name in TABLES:
            try:
                digest.update(hashlib.sha256((self.path / name).read_bytes()).digest())
            except OSError:
                return None
        return {"source": "folder", "tables": digest.hexdigest()}

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Do nothing; an archive must be opened."""
        yield self

    def names(self) -> list[str]:
        """Return the names of the tables and of all that lies beside tiles."""
        found = [name for name in TABLES if (self.path / name).is_file()]
        tiles = (
            f"{split}/{entry.name}" for split in SPLITS for entry in os.scandir(self.path / split)
        )
        return [*found, *tiles]

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file that is not larger than `limit`."""
        path = self.path / name
        # A pipe or a device would never end.
        if not path.is_file():
            raise TileError("not a file")
        _check_size(path.stat().st_size, limit)
        try:
            return path.read_bytes()
        except OSError as error:
            raise TileError(f"cannot be read: {error.strerror}") from error


Source = Archive | Folder


def find_source(data: Path) -> Source | None:
    """Return what there is to pack in a data folder, the archive first."""
    folder = competition.data_folder(data)
    if (folder / competition.ARCHIVE).is_file():
        return Archive(folder / competition.ARCHIVE)
    extracted = extracted_folder(folder)
    return Folder(extracted) if extracted is not None else None


def extracted_folder(data: Path) -> Path | None:
    """Return the folder, `data` or the only one in it, that holds those of both splits."""
    folder = competition.data_folder(data)
    if _has_splits(folder):
        return folder
    below = [inner for inner in folder.glob("*/") if _has_splits(inner)]
    return below[0] if len(below) == 1 else None


def _has_splits(folder: Path) -> bool:
    return all((folder / split).is_dir() for split in SPLITS)
