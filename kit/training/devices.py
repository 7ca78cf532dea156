"""Several devices of one machine: a process on each, which share out the runs of a command."""

import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from kit.base import KitError, StoppedError, trust_code, trusts_code
from kit.training.bar import Progress, TrainingBar, tell_instead
from kit.training.device import prepare_process, uses_cuda_graphs

# A forked process could not use a GPU that this one has used.
PROCESSES: Any = multiprocessing.get_context("spawn")

# Seconds between two signs of a worker's progress.
_INTERVAL = 0.2

Result = TypeVar("Result", covariant=True)


class Work(Protocol[Result]):
    """What is called on each device. It is pickled, to be sent to other processes."""

    def __call__(self, *, device: str) -> Result: ...


@dataclass(frozen=True)
class Devices:
    """Where the runs of a command are computed.

    Attributes
    ----------
    device
        Of this process, as `--device` names it.
    workers
        The device of each process that is started, as `--devices` names it; none where this one
        computes by itself.
    """

    device: str
    workers: tuple[str, ...] = ()


def choose_devices(device: str, devices: Sequence[str] = ()) -> Devices:
    """Read the options `--device` and `--devices`.

    Parameters
    ----------
    devices
        `auto` for all GPUs; `cuda:0 cuda:1` for some of them, one of them twice for two processes
        on it; `cpu:2` for two processes that share the CPU's cores equally.

    Raises
    ------
    KitError
        If they contradict each other, or there is no such device.
    """
    if not devices:
        return Devices(device)
    named = f"--devices {' '.join(devices)}"
    if device != "auto":
        raise KitError(f"{named} and --device {device} contradict each other: give one of them")
    if tuple(devices) == ("auto",):
        names = [f"cuda:{number}" for number in range(_count_gpus())] or ["auto"]
    else:
        names = [name for word in devices for name in _read_word(word, named)]
    kinds = {name.partition(":")[0] for name in names}
    if len(kinds) > 1:
        raise KitError(f"{named}: the runs of a command are computed on one kind of device")
    if len(names) == 1:
        return Devices(names[0])
    if kinds == {"cuda"}:
        # What this process asks of `cuda` it asks of one that it was given.
        torch.cuda.set_device(names[0])
    return Devices(kinds.pop(), tuple(names))


def share_out(
    devices: Devices, work: Work[Result], *, runs: int, how_to_go_on: Callable[[], str]
) -> Result:
    """Call `work(device=...)` in a process on each device, and then here for its result.

    The processes find out between them who computes what, as `study.share_runs` does it. When they
    have ended all is done, and the call here only reads it. With one device it is the only call.

    Parameters
    ----------
    runs
        How many there are to share out, for the bar.
    how_to_go_on
        Returns what to do when no process is left: "go on with: COMMAND".

    Raises
    ------
    KitError
        What the first process to fail has raised: it ends the others, which keep what they have.
        Or if all were killed; one that is killed leaves its runs to the others.
    """
    if devices.workers:
        share = _Share(
            threads=max(1, torch.get_num_threads() // len(devices.workers)),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            cuda_graphs=uses_cuda_graphs(),
            trusts_code=trusts_code(),
        )
        own = devices.workers[:runs]
        with TrainingBar(runs) as bar, _started(work, own, share) as workers:
            _follow(workers, bar)
        if all(worker.process.exitcode for worker in workers):
            ends = "; ".join(worker.describe_end() for worker in workers)
            raise KitError(f"{ends}. What is finished is kept: {how_to_go_on()}")
    return work(device=devices.device)


@dataclass(frozen=True)
class _Share:
    """How each process computes: with its share of this one's threads, and as this one would."""

    threads: int
    deterministic: bool
    cuda_graphs: bool
    trusts_code: bool


@dataclass
class _Worker:
    """A process on one device, and the end of the pipe through which it tells what it does."""

    device: str
    process: BaseProcess
    connection: Connection
    progress: Progress | None = None

    def finished(self) -> Progress | None:
        """Return what it has told of whole trainings: the rest of one is another worker's."""
        told = self.progress
        return told and Progress(math.floor(told.done + 1e-6), math.floor(told.skipped), "")

    def describe_end(self) -> str:
        code = self.process.exitcode or 0
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        if code == -signal.SIGKILL:
            how = "killed, as the kernel does when memory is short"
        return f"the process on {self.device} was {how}"


def _count_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _read_word(word: str, named: str) -> list[str]:
    """Return the devices that a word of `--devices` names."""
    kind, _, number = word.partition(":")
    count = int(number) if number.isdecimal() and len(number) < 5 else None
    if kind == "cpu" and count:
        if count > (cores := len(os.sched_getaffinity(0))):
            raise KitError(f"{named}: {count} processes on {cores} cores: take cpu:{cores}")
        return ["cpu"] * count
    if kind == "cuda" and count is not None:
        if count >= (gpus := _count_gpus()):
            there = f"{gpus} GPUs, from cuda:0 on" if gpus else "no GPU that PyTorch can use"
            raise KitError(f"{named}: there is no {word}: this machine has {there}")
        return [word]
    raise KitError(
        f"{named}: {word} is none of auto (all GPUs), a GPU's name as cuda:0, and a number of "
        "processes on the CPU as cpu:2"
    )


@contextmanager
def _started(work: Work[object], devices: Sequence[str], share: _Share) -> Iterator[list[_Worker]]:
    """Have a process on each device work while the block lasts; ask those that are left to stop."""
    workers: list[_Worker] = []
    try:
        for device in devices:
            workers.append(_start(work, device, share))
        yield workers
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            hint = "\nstopping after this step; Ctrl-C once more stops at once"
            print(hint, file=sys.stderr, flush=True)
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        # Those that were asked to stop keep a checkpoint first. A full pipe would block them.
        while alive := [worker for worker in workers if not worker.connection.closed]:
            for worker, _ in _messages(alive):
                if worker.connection.closed:
                    worker.process.join()


def _start(work: Work[object], device: str, share: _Share) -> _Worker:
    """Start a process on a device."""
    own, other = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_work, args=(work, device, share, other))
    # Signals to all processes of a terminal or a job are for this one to pass on.
    signals = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()
    return _Worker(device, process, own)


def _work(work: Work[object], device: str, share: _Share, connection: Connection) -> None:
    """Do a process's work, telling the parent through a pipe what it does and why it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(share.threads)
    if device != "cpu":
        # Read when CUDA is first used, which is later than this.
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(device)
    prepare_process(deterministic=share.deterministic, cuda_graphs=share.cuda_graphs)
    trust_code(share.trusts_code)
    tell_instead(_Teller(connection))
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        suppress(BrokenPipeError),
    ):
        try:
            work(device=device.partition(":")[0])
        except (Exception, StoppedError) as error:
            connection.send_bytes(_pickled(error))
            sys.exit(1)


def _visible(device: str) -> str:
    """Return how CUDA's variable names a GPU, of those that it leaves to this process."""
    number = int(device.partition(":")[2])
    left = os.environ.get("CUDA_VISIBLE_DEVICES")
    return left.split(",")[number] if left else str(number)


def _stop_with_parent() -> None:
    """Stop this process, as SIGTERM does, when the one that has started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class _Teller:
    """Sends what a bar would show, but not every step."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.next = 0.0

    def __call__(self, message: Progress | str) -> None:
        if isinstance(message, Progress):
            if time.monotonic() < self.next:
                return
            self.next = time.monotonic() + _INTERVAL
        self.connection.send(message)


def _pickled(error: BaseException) -> bytes:
    """Pickle an error; what another process could not unpickle, as the text of its traceback."""
    with suppress(pickle.PicklingError, TypeError, AttributeError):
        content = pickle.dumps(error)
        pickle.loads(content)
        return content
    return pickle.dumps(RuntimeError(traceback.format_exc()))


def _follow(workers: Sequence[_Worker], bar: TrainingBar) -> None:
    """Show what the workers do until all have ended; raise the first error of any."""
    while alive := [worker for worker in workers if not worker.connection.closed]:
        for worker, message in _messages(alive):
            match message:
                case BaseException():
                    raise message
                case str():
                    bar.say(message)
                case Progress():
                    worker.progress = message
                case None:
                    worker.process.join()
                    worker.progress = worker.finished()
                    if worker.process.exitcode and len(alive) > 1:
                        bar.say(f"note: {worker.describe_end()}: the others take over its runs")
        bar.show(_joint(worker.progress for worker in workers))


def _messages(workers: Sequence[_Worker]) -> Iterator[tuple[_Worker, Any]]:
    """Wait for the workers to tell something; yield it, or None for those that have ended."""
    ready = wait([worker.connection for worker in workers])
    for worker in workers:
        if worker.connection in ready:
            try:
                yield worker, worker.connection.recv()
            # A killed one may leave half a message.
            except (EOFError, OSError):
                worker.connection.close()
                yield worker, None


def _joint(told: Iterable[Progress | None]) -> Progress:
    """Return the progress of all workers together: what is finished each counts, by whomever."""
    parts = [progress for progress in told if progress is not None]
    texts = [part.text for part in parts if part.text]

    def total(values: Iterable[float]) -> float:
        # Shares of steps add up to a whole within rounding.
        wholes = [(value, math.floor(value + 1e-6)) for value in values]
        own = sum(max(0.0, value - whole) for value, whole in wholes)
        return max((whole for _, whole in wholes), default=0) + own

    return Progress(
        total(part.done for part in parts),
        total(part.skipped for part in parts),
        # More would leave no room for the bar.
        "; ".join(texts) if len(texts) < 4 else f"{len(texts)} processes at work",
    )
