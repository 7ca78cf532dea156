"""Features: what an encoder made of a split's tiles, kept in a file that is whole or absent.

One array of half precision, a row per tile in the store's order, mapped into memory. Its writing
may be stopped at any instant and goes on where it stood.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kit.base import FileLock, KitError

Features = npt.NDArray[np.float16]
"""(tiles, features)."""

BLOCK = 1024
"""Rows that reach the disk before the next ones are written."""


class FeatureFile:
    """One split's features under one view.

    Parameters
    ----------
    path
        Of the finished array. The rows of one that is not finished lie beside it.
    shape
        (tiles, features).
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path = path
        self.shape = shape
        self._row_bytes = 2 * shape[1]
        layout: dict[str, Any] = {"descr": "<f2", "fortran_order": False, "shape": shape}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, layout)
        self._header = header.getvalue()

    @property
    def bytes(self) -> int:
        """The size of the finished file."""
        return len(self._header) + self.shape[0] * self._row_bytes

    @property
    def exists(self) -> bool:
        """Whether the finished array is there."""
        return self.read() is not None

    def read(self) -> Features | None:
        """Return the finished array, mapped; None where there is none of this shape."""
        try:
            with self.path.open("rb") as file:
                is_whole = file.read(len(self._header)) == self._header
        except FileNotFoundError:
            return None
        if not is_whole or self.path.stat().st_size != self.bytes:
            return None
        return np.memmap(self.path, np.float16, "r", len(self._header), self.shape)

    def write(self, encode: Callable[[int], Iterable[Features]]) -> Features:
        """Write what is missing, and return the finished array.

        Parameters
        ----------
        encode
            Given a row, yields the features of that tile and all that follow.

        Raises
        ------
        KitError
            If a feature is not finite in half precision, the disk is full or the folder cannot be
            written, or another process writes the same features. What is written stays.
        """
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            # Not one that ends with the block: its rows are to stay.
            with FileLock(partial, wait=False) as descriptor:
                with os.fdopen(os.dup(descriptor), "r+b") as file:
                    self._append(file, encode)
                partial.replace(self.path)
        except BlockingIOError as error:
            raise KitError(f"another process writes {self.path}: wait for it") from error
        except OSError as error:
            raise KitError(f"cannot write {self.path}: {error.strerror or error}") from error
        finished = self.read()
        assert finished is not None
        return finished

    def _append(self, file: BinaryIO, encode: Callable[[int], Iterable[Features]]) -> None:
        row = self._begin(file)
        for block in _blocks(encode(row), BLOCK) if row < self.shape[0] else ():
            self._check(block, row)
            file.write(block.tobytes())
            file.flush()
            os.fsync(file.fileno())
            row += len(block)
        if row != self.shape[0]:
            raise ValueError(f"{row} rows were encoded of {self.shape[0]}")

    def _begin(self, file: BinaryIO) -> int:
        """Go behind the last row that surely is on the disk; return how many there are."""
        start = len(self._header)
        size = os.fstat(file.fileno()).st_size
        is_own = file.read(start) == self._header
        # The block that was being written when the machine went off may hold anything.
        blocks = max(0, (size - start - 1) // (BLOCK * self._row_bytes)) if is_own else 0
        file.seek(0)
        file.write(self._header)
        file.truncate(start + blocks * BLOCK * self._row_bytes)
        file.seek(0, os.SEEK_END)
        return blocks * BLOCK

    def _check(self, block: Features, row: int) -> None:
        if block.shape[1] != self.shape[1]:
            raise ValueError(f"{block.shape[1]} features in place of {self.shape[1]}")
        bad = np.flatnonzero(~np.isfinite(block).all(1))
        if len(bad):
            raise KitError(
                f"the features of tile {row + int(bad[0])} are not finite in half precision: take "
                "another --pool, or --precision fp32"
            )


def _blocks(parts: Iterable[Features], rows: int) -> Iterator[Features]:
    """Yield arrays of so many rows, the last of as many as are left."""
    waiting: list[Features] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= rows:
            joined = np.concatenate(waiting)
            stop = count - count % rows
            yield from np.split(joined[:stop], stop // rows)
            waiting, count = [joined[stop:]], count - stop
    if count:
        yield np.concatenate(waiting)
