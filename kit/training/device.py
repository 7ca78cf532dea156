"""Where a model computes and how exactly: device, precision, memory."""

import ctypes
import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from kit.base import KitError, Precision, tells_of_full_memory
from kit.data import Batch

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

FREE_MEMORY = "end other programs that use it, or take --device cpu in place of a GPU"


class FullMemoryError(KitError):
    """The memory of a device is full."""


def choose_device(name: str) -> torch.device:
    """Return the named device; `auto` takes a CUDA GPU where there is one, else the CPU.

    `mps` is an Apple computer's GPU.

    Raises
    ------
    KitError
        If there is no such device, or the kit does not compute on its kind.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise KitError(f"--device {name}: the kit computes on cpu, cuda (also cuda:1, ...) or mps")
    if name.startswith("mps") and not torch.backends.mps.is_available():
        raise KitError(f"--device {name} is not available: it is the GPU of an Apple computer")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise KitError(f"--device {name} is not available: {reason}") from error
    return torch.device(name)


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type that convolutions compute in; `auto` takes what the hardware does fast.

    Raises
    ------
    KitError
        For fp16 on a CPU, which has no arithmetic for it, and anything but fp32 on `mps`.
    """
    if precision == "fp16" and device.type == "cpu":
        raise KitError("--precision fp16 needs a GPU: take bf16 or fp32 on a CPU")
    if device.type == "mps":
        if precision not in ("auto", "fp32"):
            raise KitError(f"--precision {precision} on {device}: the kit computes in fp32 there")
        return torch.float32
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    # PyTorch 2.6, which Kaggle has, does not tell.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if fast else torch.float32


def nearest_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision itself where the device computes in it, else fp32, which all have.

    What was trained in fp16 on a GPU is exact enough on a CPU.
    """
    try:
        choose_precision(precision, device)
    except KitError:
        return "fp32"
    return precision


def move_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, in the layout of the store's images: channels last.

    Raises
    ------
    FullMemoryError
        If it finds no room there.
    """
    with explain_full_memory(device, "loading the model"):
        return model.to(device).to(memory_format=torch.channels_last)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return a context in which convolutions and products compute in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


_uses_graphs = True


def prepare_process(*, deterministic: bool = False, cuda_graphs: bool = True) -> None:
    """Let the rest of this process compute fast.

    See `reuse_memory`, `choose_kernels` and `use_cuda_graphs`.
    """
    reuse_memory()
    choose_kernels(deterministic=deterministic)
    use_cuda_graphs(cuda_graphs)


def choose_kernels(*, deterministic: bool) -> None:
    """Choose a GPU's kernels for the rest of this process; on a CPU there is nothing to choose.

    fp32 is that of IEEE 754, not TF32, which has a tenth of its digits.

    Parameters
    ----------
    deterministic
        Take kernels that give the same bits each time; else the fastest, which cuDNN finds by
        trying them out for each shape.
    """
    if not torch.cuda.is_available():
        return
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # Read when cuBLAS begins.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Warned of, not refused: max pooling, whose windows here do not overlap, counts as if it
    # added up in any order.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def use_cuda_graphs(use: bool) -> None:
    """Choose whether trainings of this process record their steps as CUDA graphs; by default yes.

    A network cannot be recorded that waits for the device within a step, as one does whose shapes
    follow from numbers; what it draws by Python's own generators would be drawn only once.
    """
    global _uses_graphs
    _uses_graphs = use


def uses_cuda_graphs() -> bool:
    """Return what `use_cuda_graphs` has chosen."""
    return _uses_graphs


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on a device; a GPU copies each while it computes with the one before.

    Batches in pinned memory are copied without waiting.
    """
    if device.type != "cuda":
        yield from ((images.to(device), labels.to(device)) for images, labels in batches)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    computing = torch.cuda.current_stream(device)
    ready: Batch | None = None
    for images, labels in batches:
        with torch.cuda.stream(copying):
            copied = (
                images.to(device, non_blocking=True),
                labels.to(device, non_blocking=True),
            )
        if ready is not None:
            yield ready
        computing.wait_stream(copying)
        for part in copied:
            part.record_stream(computing)
        ready = copied
    if ready is not None:
        yield ready


@contextmanager
def explain_full_memory(
    device: torch.device, doing: str, remedy: str = FREE_MEMORY
) -> Iterator[None]:
    """Turn the errors of a full memory, the CPU's or the device's, into a message.

    Parameters
    ----------
    doing, remedy
        What was going on, and what to do: "training", "choose a smaller --batch-size".

    Raises
    ------
    FullMemoryError
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not tells_of_full_memory(error):
            raise
        raise FullMemoryError(f"the memory of {device} is full while {doing}: {remedy}") from error


@functools.cache
def reuse_memory() -> None:
    """Let the C library keep what this process frees, for its next step.

    The activations of a batch are blocks of megabytes to hundreds of them. By default glibc hands
    each back to the system and has it mapped and zeroed again a step later, which on a CPU costs a
    fifth to a third of the small CNN's time and two fifths of an encoder's at 192 px. Blocks are
    taken from the heap, whatever their size: the threshold for maps cannot be raised above 32 MiB.
    Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_M_TOP_PAD, 64 * 2**20)
