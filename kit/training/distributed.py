"""Several processes that train one model together, started by torchrun.

Without torchrun everything here does nothing: there is one process, and its rank is 0.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from kit.base import KitError

# How long a process waits for one that lives but says nothing; one that dies is noticed at once.
_TIMEOUT = timedelta(minutes=10)


def rank() -> int:
    """Return this process's place among those that train together; 0 writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started; on the way out, leave them.

    Tensors of a processor travel by gloo, those of a GPU by NCCL. Only rank 0 prints, and of
    all processes one alone tells an error: the first.

    Raises
    ------
    KitError
        If there are more processes than GPUs, or another process ends before its time.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    store = _join()
    try:
        with ExitStack() as silence:
            if rank() > 0:
                nowhere = silence.enter_context(Path(os.devnull).open("w"))
                silence.enter_context(redirect_stdout(nowhere))
                silence.enter_context(redirect_stderr(nowhere))
            yield
        leave()
    except KitError as error:
        _tell_once(store, error)
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        lost = KitError(
            "another process of this training has ended or fallen silent, and so this one ends "
            "too: type the command again with --resume to go on from the last checkpoint"
        )
        _tell_once(store, lost)


def leave() -> None:
    """Go on alone: from here on `size` is 1."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def first() -> Iterator[None]:
    """Let rank 0 go through the block before the others do."""
    if size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if size() > 1 and rank() == 0:
        dist.barrier()


def wrap(model: nn.Module) -> nn.Module:
    """Return what to call in place of the model, so that gradients are the mean over processes.

    All processes get rank 0's weights, and before each step its running statistics.
    """
    return DistributedDataParallel(model) if size() > 1 else model


def total(*values: float) -> list[float]:
    """Return each value's sum over the processes."""
    if size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def concatenate(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the values of all processes, in the order of their ranks."""
    if size() == 1:
        return values
    parts: list[npt.NDArray[np.float64]] = [values] * size()
    dist.all_gather_object(parts, values)
    return np.concatenate(parts)


def copy_buffers(model: nn.Module) -> None:
    """Give all processes rank 0's buffers: BatchNorm's running statistics."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _join() -> Store:
    """Join the group; return the store that its processes share."""
    devices, here = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < devices < here:
        raise KitError(
            f"{here} processes do not fit {devices} GPUs: take --nproc-per-node={devices} (or, to "
            "train on processors, set CUDA_VISIBLE_DEVICES to nothing)"
        )
    if devices:
        # From here on `cuda` is this process's own.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store: Store
    store, rank, size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if devices else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    return store


def _tell_once(store: Store, error: KitError) -> None:
    """Raise an error in the first process that comes here; end the others without a word."""
    try:
        is_first = store.add("errors", 1) == 1
    except RuntimeError:
        # Who kept the store is gone.
        is_first = True
    if is_first:
        raise error
    # Waiting for the processes that are gone, as a proper exit would, takes for ever.
    os._exit(error.status)


def _is_lost_process(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
