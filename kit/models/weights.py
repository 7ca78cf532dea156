"""Weights that people bring: reading them without running anything, and fitting them to a model."""

import argparse
import pickle
import struct
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kit.base import KitError

State = dict[str, Tensor]

# Where training code keeps a model's weights in its checkpoints. An average of them is the better
# model: it comes first, as in timm.
_TABLES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "teacher")

_REMEDY = "save the weights alone, with torch.save(model.state_dict(), FILE)"

# What a file of torch.save began with before PyTorch 1.6: a pickled number.
_BEFORE_ZIP = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")

# What reading a file that is no checkpoint raises, from the first byte to the last object.
_NOT_WEIGHTS = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
)


def load_weights(model: nn.Module, path: Path, *, apart_from: Collection[str]) -> None:
    """Load all of a timm model but its classifiers from a file.

    A state dict may lie in a checkpoint of timm, PyTorch Lightning or others, and its names may
    have a prefix, such as that of DataParallel. Where names or shapes differ, they go through
    timm's own conversion for the model, which also resizes embeddings of positions.

    Parameters
    ----------
    apart_from
        Names of the modules that are left as they are.

    Raises
    ------
    KitError
        If the file holds no weights, or not those of this model.
    """
    state = _without_prefix(from_transformers(read_weights(path)), model)
    expected = _without(apart_from, model.state_dict())
    found = _without(apart_from, state)
    if _misfit(found, expected):
        found = _without(apart_from, _convert(state, model, path))
    misfit = _misfit(found, expected)
    if misfit:
        raise KitError(f"{path} does not fit the model: {misfit}")
    model.load_state_dict(found, strict=False)


# Names of Transformers' DINOv2, and what timm calls the same.
_TRANSFORMERS = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.cls_token": "cls_token",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layernorm.": "norm.",
}


def from_transformers(state: State) -> State:
    """Return the weights of a DINOv2 of the library Transformers under timm's names.

    Other weights are returned as they are.
    """
    if "embeddings.cls_token" not in state or "layernorm.weight" not in state:
        return state
    renamed: State = {}
    for name, tensor in state.items():
        for theirs, ours in _TRANSFORMERS.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    # One product in place of three; nothing is masked.
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    renamed.pop("embeddings.mask_token", None)
    return renamed


def read_weights(path: Path) -> State:
    """Read tensors by name, from safetensors or a file of torch.save. No code in it runs.

    Raises
    ------
    KitError
        If the file is missing or damaged, or holds no table of tensors.
    """
    if not path.is_file():
        raise KitError(f"no weights at {path}")
    try:
        content = _read_file(path)
    except _NOT_WEIGHTS as error:
        raise KitError(
            f"cannot read weights from {path}: it is damaged, neither a .safetensors file nor one "
            f"of torch.save, or holds objects that the kit does not run: {_REMEDY}"
        ) from error
    tensors = _find_table(content)
    if not tensors:
        raise KitError(f"{path} holds no table of tensors: {_REMEDY}")
    return tensors


class _Inert:
    """What stands for any object of a checkpoint but tensors and plain values. It does nothing."""

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _read_file(path: Path) -> Any:
    """Read what a file holds, told by its first bytes."""
    with path.open("rb") as file:
        head = file.read(len(_BEFORE_ZIP))
    # The length of a JSON object comes first, then the object.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return load_file(path)
    if head == _BEFORE_ZIP:
        # timm's checkpoints hold its options.
        return _unpickle(path, [argparse.Namespace])
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return _unpickle(path, [_inert_class(name) for name in names])


def _unpickle(path: Path, harmless: list[Any]) -> Any:
    """Read tensors, plain values and objects of `harmless` classes, and nothing else."""
    with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
        # It warns of pickle protocols that it does not know in full.
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _inert_class(full_name: str) -> type:
    module, _, name = full_name.rpartition(".")
    return type(name, (_Inert,), {"__module__": module, "__qualname__": name})


def _find_table(content: Any) -> State:
    """Return the table of tensors that a checkpoint is, or that it holds."""
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    tables = {name: _find_table(content[name]) for name in _TABLES if name in content}
    return next((table for table in tables.values() if table), tensors)


def _without_prefix(state: State, model: nn.Module) -> State:
    """Return the tensors below the prefix that most of the model's names have, without it.

    What stands beside them, such as a loss, is not the model's.
    """
    own = model.state_dict().keys()
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        starts = (".".join(parts[:depth]) for depth in range(len(parts)))
        prefixes.update(start for start in starts if name[len(start) :].lstrip(".") in own)
    if not prefixes:
        return state
    prefix = prefixes.most_common(1)[0][0]
    start = f"{prefix}." if prefix else ""
    return {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}


def _without(modules: Collection[str], state: Mapping[str, Tensor]) -> State:
    starts = tuple(f"{name}." for name in modules)
    return {name: value for name, value in state.items() if not name.startswith(starts)}


def _convert(state: State, model: nn.Module, path: Path) -> State:
    """Return weights as timm converts them for a model, where it does."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(state, model))
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise KitError(f"{path} does not fit the model: timm cannot convert it") from error


def _misfit(state: State, expected: State) -> str:
    """Say how weights differ from what a model expects in names and shapes; nothing if they fit."""
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        first = min(missing or unknown)
        return f"{len(missing)} tensors are missing and {len(unknown)} are unknown, first {first}"
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            return f"{name} has the shape {list(tensor.shape)}, not {list(expected[name].shape)}"
    return ""
