"""Locks between processes."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from kit.base import FileLock, FolderLock, KitError


def test_a_lock_ends_with_its_process_though_a_forked_one_lives(tmp_path: Path) -> None:
    """As a loader's worker does, for some seconds after its parent was killed."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def hold() -> None:
        lock = FolderLock(tmp_path)
        child = os.fork()
        if child == 0:
            time.sleep(60)
        writer.send(child)
        signal.pause()
        lock.release()

    holder = context.Process(target=hold)
    holder.start()
    child = reader.recv()
    try:
        with pytest.raises(KitError, match="another process is at work in"):
            FolderLock(tmp_path)
        holder.kill()
        holder.join()
        FolderLock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_is_shared_with_those_who_share_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        FileLock(path, shared=True),
        FileLock(path, shared=True, wait=False),
        pytest.raises(BlockingIOError),
    ):
        FileLock(path, wait=False)
    FileLock(path, wait=False).release()


def test_a_lock_on_a_file_that_was_moved_away_is_none(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path):
        path.rename(tmp_path / "moved")
        with FileLock(path, wait=False), pytest.raises(BlockingIOError):
            FileLock(path, wait=False)


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KitError, match=r"cannot write into .*file/folder: Not a directory"):
        FolderLock(tmp_path / "file" / "folder")
