"""last.pt: all that resuming needs, written whole and read without running anything."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from kit.base import KitError, atomic_path

# What reading a damaged checkpoint raises; zipfile and zlib have errors of their own.
_NOT_A_CHECKPOINT = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values."""
    # Through memory: where the disk is full, torch.save raises no OSError.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read last.pt, unpickling nothing but tensors and plain values."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load itself checks no CRC.
            if archive.testzip() is not None:
                raise KitError(f"{path} is damaged: start anew with another --out (CRC mismatch)")
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except _NOT_A_CHECKPOINT as error:
        raise KitError(f"{path} is damaged: start anew with another --out ({error})") from error
    return state
