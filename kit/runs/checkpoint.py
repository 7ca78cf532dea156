"""last.pt: all that resuming needs, written whole and read without running anything."""

import io
import pickle
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kit.base import EpochResult, KitError, atomic_path, parse_recipe
from kit.runs.identity import compare
from kit.training import TrainingState

# What reading a damaged checkpoint raises; zipfile and zlib have errors of their own.
_NOT_A_CHECKPOINT = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
)
# What a state raises that is given another one's values, or values of other types.
_DOES_NOT_FIT = (RuntimeError, ValueError, KeyError, TypeError, AttributeError)


def write_checkpoint(
    path: Path, state: dict[str, Any], history: list[EpochResult], identity: dict[str, Any]
) -> None:
    """Write the state dict of a training, the results of its epochs, and which run it is of."""
    content = {
        "run": identity,
        "history": [asdict(result) for result in history],
        **state,
    }
    # Through memory: where the disk is full, torch.save raises no OSError.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def load_checkpoint(
    path: Path, state: TrainingState, identity: dict[str, Any]
) -> list[EpochResult]:
    """Take a state back to a checkpoint, and return the results of the epochs until then.

    Parameters
    ----------
    identity
        Of the run that goes on; the checkpoint must be of this one.

    Raises
    ------
    KitError
        If the file is damaged, or of another run.
    """
    content = _read(path)
    try:
        # The kit's version 0.4.0 did not write down which run a checkpoint is of.
        if (run := content.get("run")) is not None:
            parse_recipe(run["recipe"], source=str(path))
            if fixed := compare(run, identity).fixed:
                raise KitError(f"{path} is of another run: {'; '.join(fixed)}")
        state.load_state_dict(content)
        history = [EpochResult(**result) for result in content["history"]]
    except _DOES_NOT_FIT as error:
        reason = " ".join(str(error).split())[:200]
        raise KitError(f"{path} does not fit the run's options: {reason}") from error
    if [result.epoch for result in history] != [*range(1, state.epoch + 1)]:
        raise KitError(
            f"{path} is damaged: train the run again (it has the results of {len(history)} of "
            f"{state.epoch} epochs)"
        )
    return history


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint, unpickling nothing but tensors and plain values."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load itself checks no CRC.
            if archive.testzip() is not None:
                raise KitError(f"{path} is damaged: train the run again (CRC mismatch)")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own message advises to run what a stranger may have written.
        raise KitError(
            f"{path} is damaged: train the run again (it holds more than tensors and plain values)"
        ) from error
    except _NOT_A_CHECKPOINT as error:
        reason = " ".join(str(error).split())[:200]
        raise KitError(f"{path} is damaged: train the run again ({reason})") from error
    if not isinstance(content, dict):
        raise KitError(f"{path} is damaged: train the run again (it holds no state)")
    return content
