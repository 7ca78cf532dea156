"""Files and folders that are written whole or not at all."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.base.errors import KitError
from kit.base.locks import FileLock
from kit.base.text import shorten


def temporary_folder() -> Path:
    """Return the folder for temporary files.

    Raises
    ------
    KitError
        If the system has none that can be used.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise KitError(
            "there is no usable temporary folder: set TMPDIR to a folder with room"
        ) from error


def require_file(option: str, path: Path | None) -> None:
    """Refuse a file that an option names and that is not there; None names none.

    Raises
    ------
    KitError
        Naming both.
    """
    if path is not None and not path.exists():
        raise KitError(f"--{option} {path}: there is no such file")


def output_file(path: Path) -> Path:
    """Return where a file is to be written that a user names, which may be a link to its place.

    Ask early: what cannot be written is better known before what it takes hours to compute.

    Raises
    ------
    KitError
        If it is a folder, a device or a pipe, or its folder cannot be written.
    """
    _require_replaceable_file(path)
    place = Path(os.path.realpath(path))
    folder = next(parent for parent in place.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise KitError(f"cannot write {path}: {folder} is not a folder that can be written")
    return place


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    A kill at any instant leaves either the old file or the new one. When the block raises,
    the temporary file is removed and `path` is as it was. A link is replaced, not followed:
    whoever left it in a run folder would have another file written. See `output_file`.

    Raises
    ------
    KitError
        If `path` is a folder, a device or a pipe, the disk is full, the folder cannot be written,
        or another process writes `path`.
    """
    _require_replaceable_file(path)
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
def atomic_folder(folder: Path, *, marker: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its place when the block ends well.

    A kill at any instant leaves the old folder, the new one, or none. A link to a folder stays, and
    what it leads to is replaced.

    Parameters
    ----------
    marker
        A file by which a folder is known that may be replaced; without one only an empty folder is.

    Raises
    ------
    KitError
        If there is something else in its place, the disk is full or the folder cannot be written.
    """
    place = Path(os.path.realpath(folder))
    partial, old = (place.with_name(f"{place.name}.{end}") for end in ("partial", "partial-old"))
    try:
        _require_replaceable(place, marker, name=folder)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        _exchange(partial, place, old)
        _sync(place.parent)
    except OSError as error:
        raise KitError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def _require_replaceable_file(path: Path) -> None:
    """Refuse what is there and is no regular file: it would be replaced by one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise KitError(f"cannot write {shorten(str(path))}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise KitError(f"cannot write {path}: it is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise KitError(f"cannot write {path}: it is a device or a pipe; name a regular file")


def _require_replaceable(place: Path, marker: str | None, *, name: Path) -> None:
    """Refuse what is no folder, and a folder that somebody else has filled."""
    if not place.exists() or (marker and (place / marker).is_file()):
        return
    if not place.is_dir() or any(place.iterdir()):
        raise KitError(f"{name} holds other files than the kit's: move it away, or name another")


def _exchange(new: Path, place: Path, old: Path) -> None:
    """Move a folder to its place, and what was there aside."""
    if not place.exists():
        new.rename(place)
        return
    place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        old.rename(place)
        raise


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
