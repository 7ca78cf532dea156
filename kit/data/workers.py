"""Processes that load batches, and what is said when one of them is lost."""

import atexit
import errno
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any
from weakref import WeakSet

import cv2
from torch.utils.data import DataLoader, get_worker_info

from kit.base import KeptError
from kit.data.datasets import Batch

# A worker's exit code after a batch that it could not send.
_UNSENT = 75
_SHARED_MEMORY = Path("/dev/shm")
# For what a worker and its queues need before its first batch.
_LEAST_SHARED_MEMORY = 2**16
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.EMFILE)


class LostWorkerError(KeptError):
    """A process that loads batches has ended before its time, or could not begin."""

    options = ("--workers", "0")


class _SharedMemoryError(Exception):
    """Shared memory has no room for a batch."""


def init_worker(_: int) -> None:
    """Keep OpenCV to one thread, and leave it to the parent when a worker ends."""
    cv2.setNumThreads(0)
    # Terminals and schedulers signal all processes of a training; the parent decides.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    setattr(Queue, "_on_queue_feeder_error", staticmethod(_end_unsent))  # noqa: B010


def _end_unsent(*_: object) -> None:
    """End the process: a batch that could not be sent is lost, and the parent waits for it."""
    os._exit(_UNSENT)


def share(batch: Any) -> Any:
    """Move a worker's batch to shared memory here: later a thread does, and its errors are lost."""
    if get_worker_info() is not None:
        try:
            for tensor in batch:
                tensor.share_memory_()
        except RuntimeError as error:
            raise _SharedMemoryError(str(error)) from None
    return batch


@contextmanager
def watched_workers(loader: DataLoader[Batch]) -> Iterator[None]:
    """Tell in one line of a worker that is lost, and end all workers when the block ends.

    Raises
    ------
    LostWorkerError
        If a worker of `loader` was killed, failed, or could not be started.
    """
    if not loader.num_workers:
        yield
        return
    _require_shared_memory(loader)
    _watched.add(loader)
    try:
        yield
    except (RuntimeError, OSError, EOFError, _SharedMemoryError) as error:
        message = _explain(loader, error)
        if message is None:
            raise
        raise LostWorkerError(message) from error
    finally:
        stop_workers(loader)


def stop_workers(loader: DataLoader[Batch]) -> None:
    """End a loader's workers; it starts others when it is read again."""
    iterator: Any = loader._iterator
    loader._iterator = None
    if iterator is not None:
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()


_watched: WeakSet[DataLoader[Batch]] = WeakSet()


@atexit.register
def _stop_all() -> None:
    # At its end Python asks them by SIGTERM, which they ignore, and waits.
    for loader in list(_watched):
        stop_workers(loader)


def _require_shared_memory(loader: DataLoader[Batch]) -> None:
    needed = loader.num_workers * _LEAST_SHARED_MEMORY
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free < needed:
        raise LostWorkerError(f"shared memory is full: {_advice(loader)}")


def _explain(loader: DataLoader[Batch], error: Exception) -> str | None:
    """Say what has become of a loader's workers; None if an error is not of their making."""
    if isinstance(error, _SharedMemoryError):
        return f"shared memory is full: {_advice(loader)}"
    iterator: Any = loader._iterator
    if iterator is None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return (
                f"{loader.num_workers} loader workers cannot start ({error.strerror}): choose "
                "fewer --workers"
            )
        return None
    lost = _lost(iterator._workers)
    return _obituary(lost, loader) if lost is not None else None


def _lost(workers: list[BaseProcess], patience: float = 1.0) -> BaseProcess | None:
    """Return a worker that has ended; its connections may have broken an instant before."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        # The signal that it has ended may come only now, and PyTorch's handler raises.
        with suppress(RuntimeError):
            if lost := [worker for worker in workers if worker.exitcode is not None]:
                return lost[0]
            time.sleep(0.05)
    return None


def _obituary(worker: BaseProcess, loader: DataLoader[Batch]) -> str:
    code = worker.exitcode or 0
    who = f"a loader worker (process {worker.pid})"
    if code == -signal.SIGKILL:
        return f"{who} was killed, as the kernel does when memory is short: choose fewer --workers"
    if code == -signal.SIGBUS:
        return (
            f"{who} could not read its memory: a disk failed, or shared memory is full: "
            f"{_advice(loader)}"
        )
    if code == _UNSENT:
        return (
            f"{who} could not send a batch: more files are open than `ulimit -n` allows, or shared "
            f"memory is full: {_advice(loader)}"
        )
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"{who} ended {how}: --workers 0 loads in this process, and shows why"


def _advice(loader: DataLoader[Batch]) -> str:
    there = _SHARED_MEMORY.is_dir()
    size = f"{shutil.disk_usage(_SHARED_MEMORY).total / 2**20:,.0f} MB" if there else "not there"
    return (
        f"{_SHARED_MEMORY} ({size}) is too small for the batches of {loader.num_workers} workers. "
        "Choose --workers 0, or give a container more (docker run --shm-size=2g)"
    )
