"""Several processes that train one model together, started by torchrun.

Without torchrun everything here does nothing: there is one process, and its rank is 0.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from kit.base import Floats, KitError, StoppedError

# How long a process waits for one that is alive but silent; one that dies is noticed at once.
_TIMEOUT = timedelta(minutes=10)


def rank() -> int:
    """Return this process's rank among those that train together; rank zero writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started; leave them at the end of the block.

    Tensors on a CPU travel by gloo, those on a GPU by NCCL. Only rank zero prints. Of several
    processes that fail only the first one says so.

    Raises
    ------
    KitError
        If there are more processes than GPUs, or another process ends too early.
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
        leave_group()
    except (KitError, StoppedError) as error:
        _tell_once(store, error)
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        lost = KitError(
            "another process of this training has ended or fallen silent, and so this one ends "
            "too: type the command again with --resume to go on from the last checkpoint"
        )
        _tell_once(store, lost)


def leave_group() -> None:
    """Go on alone: from here on the world size is 1."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let rank zero go through the block before the others do."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def data_parallel(model: nn.Module) -> nn.Module:
    """Return what to call in place of the model, so that gradients are the mean over processes.

    All processes get rank zero's weights, and before each step its running statistics.
    """
    return DistributedDataParallel(model) if world_size() > 1 else model


def all_reduce(*values: float, operation: Literal["sum", "min"] = "sum") -> list[float]:
    """Return each value's sum over the processes, or its minimum."""
    if world_size() == 1:
        return list(values)
    reduced = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(reduced, dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MIN)
    return reduced.tolist()


def all_gather(values: Floats) -> Floats:
    """Return the values of all processes in one array, in the order of their ranks."""
    if world_size() == 1:
        return values
    parts: list[Floats] = [values] * world_size()
    dist.all_gather_object(parts, values)
    return np.concatenate(parts)


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes rank zero's buffers: BatchNorm's running statistics."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _join() -> Store:
    """Join the group; return the store that its processes share."""
    devices, here = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < devices < here:
        raise KitError(
            f"{here} processes do not fit {devices} GPUs: take --nproc-per-node={devices} (or, to "
            "train on CPUs, set CUDA_VISIBLE_DEVICES to nothing)"
        )
    if devices:
        # From here on `cuda` is this process's own.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store: Store
    store, rank, world_size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if devices else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
    )
    return store


def _tell_once(store: Store, error: KitError | StoppedError) -> None:
    """Raise an error in the first process that comes here; end the others silently."""
    try:
        is_first = store.add("errors", 1) == 1
    except RuntimeError:
        # The process that kept the store is gone.
        is_first = True
    if is_first:
        raise error
    # A proper exit would wait for the processes that are gone, for ever.
    os._exit(error.status)


def _is_lost_process(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
