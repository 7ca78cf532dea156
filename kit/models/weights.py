"""Weights that people bring: reading them safely, and fitting them to a model."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kit.base import KitError


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a backbone's weights without its classifier, unpickling nothing but tensors."""
    if not path.is_file():
        raise KitError(f"no weights at {path}")
    classifier = str(model.default_cfg["classifier"])  # type: ignore[index]
    state = {
        name: tensor
        for name, tensor in _read_weights(path).items()
        if not name.startswith(f"{classifier}.")
    }
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise KitError(f"{path} does not fit the model: {error}") from error
    missing = [name for name in missing if not name.startswith(f"{classifier}.")]
    if missing or unexpected:
        first = (missing + unexpected)[0]
        raise KitError(
            f"{path} does not fit the model: {len(missing)} tensors are missing and "
            f"{len(unexpected)} are unknown, first {first}"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, from safetensors or from a PyTorch file that holds nothing else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if not zipfile.is_zipfile(path):
            raise KitError(f"{path} is neither a .safetensors file nor one written by torch.save")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError) as error:
        raise KitError(f"cannot read weights from {path}: {error}") from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise KitError(f"{path} holds no table of tensors: give a state dict")
    return dict(tensors)
