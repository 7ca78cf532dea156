"""Files and folders that are written whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from kit.base.errors import KitError

LOCK_NAME = ".lock"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    A kill at any instant leaves either the old file or the new one. When the block raises,
    the temporary file is removed and `path` is as it was.

    Raises
    ------
    KitError
        If the disk is full, the folder cannot be written, or another process writes `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(path.with_name(f"{path.name}.partial")) as partial:
            yield partial
            _sync(partial)
            partial.replace(path)
        _sync(path.parent)
    except BlockingIOError as error:
        raise KitError(f"another process writes {path}: wait for it, or name another") from error
    except OSError as error:
        raise KitError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its place when the block ends well.

    A kill at any instant leaves the old folder, the new one, or none.

    Raises
    ------
    KitError
        If the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise KitError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class FolderLock:
    """Keep other processes out of a folder for as long as this object lives.

    Or for as long as a `with` block lasts. The lock is the process's own (POSIX `fcntl`): it ends
    with the process, however that ends, and children do not inherit it.

    Raises
    ------
    KitError
        If another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Let other processes in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def _claimed(partial: Path) -> Iterator[Path]:
    """Keep a temporary file to this process, and remove it unless the block ends well.

    Raises
    ------
    BlockingIOError
        If another process has it.
    """
    if partial.is_symlink():
        # Whoever left it there would have another file written.
        partial.unlink()
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have put it in its place since it was opened.
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise BlockingIOError
        try:
            yield partial
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Wait until the disk holds `path`, a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
