"""Arrays of tiles that are mapped from files, and are never copied to another process."""

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np


class MappedPixels(np.memmap[Any, np.dtype[np.uint8]]):
    """A memory-mapped array; a process that it is sent to maps the same file again.

    A plain `numpy.memmap` is pickled with all its content, so that each loader worker that is not
    forked would hold a copy. Parts of this array are plain arrays.
    """

    descriptor: int | None = None
    """Of its file if that has no name."""

    def __getitem__(self, index: Any) -> Any:
        """Return a part as a plain array, which is quicker to make."""
        return np.asarray(self)[index]

    def __reduce__(self) -> Any:
        """Name the file, or send its descriptor; what was derived from the array is copied."""
        base: Any = self.base
        if not isinstance(base, mmap.mmap):
            return np.asarray(self).__reduce__()
        if self.descriptor is None:
            return map_file, (self.filename, self.offset, self.shape)
        # Imported late: only processes that are started need it.
        from multiprocessing.reduction import DupFd

        return _map_descriptor, (DupFd(self.descriptor), self.shape)


def map_file(path: Path, offset: int, shape: tuple[int, ...]) -> MappedPixels:
    """Map a file's bytes from an offset on, to be read."""
    return MappedPixels(path, np.uint8, "r", offset, shape)


def map_temporary(shape: tuple[int, ...]) -> MappedPixels:
    """Map a new file without a name, in the folder of temporary files, to be written.

    Its pages may leave the memory again, and it ends with the last process that has it mapped.

    Raises
    ------
    OSError
        If the disk has no room for it.
    """
    with tempfile.TemporaryFile() as file:
        # A disk that fills up later would kill the process.
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
        array = MappedPixels(file, np.uint8, "r+", 0, shape)
        array.descriptor = os.dup(file.fileno())
    weakref.finalize(array, os.close, array.descriptor)
    return array


def _map_descriptor(duplicate: Any, shape: tuple[int, ...]) -> MappedPixels:
    with os.fdopen(duplicate.detach(), "rb") as file:
        return MappedPixels(file, np.uint8, "r", 0, shape)
