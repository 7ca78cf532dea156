"""Files that are written whole or not at all."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kit.errors import KitError

LOCK_NAME = ".lock"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    A kill at any instant leaves either the old file or the new one. When the block raises,
    the temporary file is removed and `path` is as it was.

    Raises
    ------
    KitError
        If the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link that a stranger left there would be written through.
        partial.unlink(missing_ok=True)
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise KitError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        # Where the folder is a file, nothing was written either.
        with suppress(NotADirectoryError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


class FolderLock:
    """Keep other processes out of a folder for as long as this object lives.

    The lock is the process's own (POSIX `fcntl`): it ends with the process, however that ends,
    and children do not inherit it.

    Raises
    ------
    KitError
        If another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise KitError(
                f"another process is at work in {folder}: wait for it, or choose another folder"
            ) from error
        except OSError as error:
            raise KitError(f"cannot write into {folder}: {error.strerror}") from error

    def __del__(self) -> None:
        """Let other processes in."""
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _sync(path: Path) -> None:
    """Wait until the disk holds `path`, a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
