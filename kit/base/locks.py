"""Locks between processes: each ends with the process that holds it, however that ends."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from weakref import WeakSet

from kit.base.errors import KitError, require_linux

with suppress(ImportError):
    # Not on Windows, where no lock gets as far.
    import fcntl

LOCK_NAME = ".lock"


class FileLock:
    """Hold a lock on a file, for as long as this object lives or a `with` block lasts.

    The lock belongs to this process alone: processes that are forked from it let it go, so none of
    them can keep it beyond the end of this one. A program that inherits the `descriptor` holds it,
    too.

    Parameters
    ----------
    path
        Made if it is not there. A symbolic link in its place is removed, not followed.
    wait
        Wait for other processes to release it.
    shared
        Hold it together with others that share it.

    Raises
    ------
    BlockingIOError
        If another process holds it, unless `wait`.
    OSError
        If the file cannot be opened for writing.
    KitError
        On a system without such locks.
    """

    descriptor: int | None = None

    def __init__(self, path: Path, *, wait: bool = True, shared: bool = False) -> None:
        require_linux()
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        self.descriptor = _open(path)
        try:
            fcntl.flock(self.descriptor, operation)
            # Whoever held it may have moved or deleted the file since it was opened.
            while not _is_open(self.descriptor, path):
                self.release()
                self.descriptor = _open(path)
                fcntl.flock(self.descriptor, operation)
        except BaseException:
            self.release()
            raise
        _release_when_forked()
        _held.add(self)

    def __enter__(self) -> int:
        assert self.descriptor is not None
        return self.descriptor

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Let other processes have it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class FolderLock(FileLock):
    """Keep other processes out of a folder, which is made if it is not there.

    Raises
    ------
    KitError
        If another process is at work there, unless `wait`, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, wait: bool = False) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            super().__init__(folder / LOCK_NAME, wait=wait)
        except BlockingIOError as error:
            raise KitError(
                f"another process is at work in {folder}: wait for it, or choose another folder"
            ) from error
        except OSError as error:
            raise KitError(f"cannot write into {folder}: {error.strerror}") from error


_held: WeakSet[FileLock] = WeakSet()


@cache
def _release_when_forked() -> None:
    """Have each process that is forked from this one close its copies of the locks held here."""
    os.register_at_fork(after_in_child=_release_all)


def _release_all() -> None:
    for lock in list(_held):
        lock.release()


def _open(path: Path) -> int:
    if path.is_symlink():
        # Whoever left it there would have another file opened.
        path.unlink()
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _is_open(descriptor: int, path: Path) -> bool:
    """Whether a path still names the file that a descriptor stands for."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
