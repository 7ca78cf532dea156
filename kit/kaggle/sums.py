"""The checksums of what a kernel leaves, written there as files are finished, and read here."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from io import BufferedReader
from pathlib import Path

from kit.base import LOCK_NAME, KitError, read_json, write_text

CHECKSUMS = "checksums.json"


class Checksums:
    """Those of all files below some places of a folder.

    Kaggle's client proves nothing that it fetches, and a kernel that Kaggle ends writes nothing
    more. So the table is kept up to date while the kernel runs. What is still being written, under
    a temporary name, is no part of it.
    """

    def __init__(self, folder: Path, places: Iterable[str]) -> None:
        self._folder = folder
        self._places = tuple(places)
        self._written: dict[str, str] | None = None
        # By name: which file, of which size and date it was, and its sum.
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}

    def update(self) -> None:
        """Write the table, if any file is new or another one."""
        sums = {name: self._sum(name) for name in sorted(self._names())}
        found = {name: value for name, value in sums.items() if value is not None}
        if found != self._written:
            write_text(self._folder / CHECKSUMS, json.dumps(found, indent=2) + "\n")
            self._written = found

    def _names(self) -> Iterable[str]:
        for place in self._places:
            top = self._folder / place
            for path in [top, *top.rglob("*")]:
                name = path.relative_to(self._folder)
                if path.name != LOCK_NAME and not is_unfinished(name):
                    yield name.as_posix()

    def _sum(self, name: str) -> str | None:
        """Return a file's sum; None if it is none, or has gone."""
        path = self._folder / name
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_ino, status.st_size, status.st_mtime_ns)
                known = self._known.get(name)
                if known is None or known[0] != identity:
                    known = self._known[name] = identity, _digest(file)
        except FileNotFoundError:
            return None
        return known[1]


def read_checksums(folder: Path) -> dict[str, str]:
    """Read the table that a kernel has left.

    Raises
    ------
    KitError
        If it came damaged.
    """
    try:
        return read_json(folder / CHECKSUMS, dict[str, str], what="a list of checksums")
    except KitError as error:
        raise KitError(f"{CHECKSUMS} came damaged: type `make pull` again") from error


def whole_files(folder: Path, expected: Mapping[str, str]) -> set[str]:
    """Return the names of the files of a folder that are what their sums say."""
    found = set()
    for name, value in expected.items():
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                found |= {name} if _digest(file) == value else set()
    return found


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def is_unfinished(name: Path) -> bool:
    """Whether a file has, or lies in a folder of, a name under which `kit.base` begins files."""
    return any(part.endswith((".partial", ".partial-old")) for part in name.parts)
