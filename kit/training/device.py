"""Where and how exactly a model computes: device, precision, and the memory in between."""

import ctypes
import functools
from contextlib import AbstractContextManager

import torch

from kit.base import KitError, Precision

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def choose_device(name: str) -> torch.device:
    """Return the named device; `auto` takes a GPU where there is one.

    Raises
    ------
    KitError
        If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise KitError(f"--device {name} is not available: {error}") from error
    return torch.device(name)


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type that convolutions compute in; `auto` takes what the hardware does fast.

    Raises
    ------
    KitError
        For fp16 on a CPU, which has no arithmetic for it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise KitError("--precision fp16 needs a GPU: take bf16 or fp32 on a CPU")
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    # PyTorch 2.6, which Kaggle has, does not tell.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return a context in which convolutions and products compute in `dtype`."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@functools.cache
def reuse_memory() -> None:
    """Let the C library keep what this process frees, for its next step.

    The activations of a batch are blocks of some megabytes. By default glibc hands each back
    to the system and has it mapped and zeroed again a step later, which on a CPU costs a fifth
    to a third of the small CNN's time. Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_M_TOP_PAD, 64 * 2**20)
