"""Files and folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.base.errors import KitError
from kit.base.locks import FileLock


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


@contextmanager
def _claimed(partial: Path) -> Iterator[Path]:
    """Keep a temporary file to this process, and remove it unless the block ends well.

    Raises
    ------
    BlockingIOError
        If another process has it.
    """
    with FileLock(partial, wait=False):
        try:
            yield partial
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _sync(path: Path) -> None:
    """Wait until the disk holds `path`, a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
