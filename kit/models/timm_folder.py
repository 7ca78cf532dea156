"""A model as timm reads it from a folder: config.json and model.safetensors."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from kit.base import CLASS_NAMES, TILE_SIZE, Pixels, Recipe, competition

RESAMPLING = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""How Pillow, and so timm, can resize."""

TileTransform = Callable[[Pixels], Tensor]
"""From a tile of shape (96, 96, 3) to a network's input (3, size, size)."""


def timm_config(model: Any, recipe: Recipe, resampling: str) -> dict[str, Any]:
    """Return config.json in timm's form.

    Parameters
    ----------
    model
        From `create_model`, of timm.
    resampling
        One of `RESAMPLING`.
    """
    mean, std = recipe.channel_statistics
    known = {
        key: model.pretrained_cfg.get(key) for key in ("pool_size", "first_conv", "classifier")
    }
    # Some that are built for a size take others, and resize their positions to them.
    is_built_for_a_size = model.pretrained_cfg.get("fixed_input_size", False)
    built_for = model.pretrained_cfg["input_size"][-1]
    return {
        "architecture": recipe.model.partition(".")[0],
        "num_classes": 1,
        "num_features": model.num_features,
        "label_names": [CLASS_NAMES[1]],
        "model_args": {"img_size": built_for} if is_built_for_a_size else {},
        "pretrained_cfg": {
            "input_size": [competition.CHANNELS, recipe.size, recipe.size],
            "fixed_input_size": is_built_for_a_size and built_for == recipe.size,
            "interpolation": resampling,
            "crop_pct": _crop_share(recipe),
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": 1,
            **known,
        },
    }


def timm_transform(pretrained_cfg: dict[str, Any]) -> TileTransform:
    """Return what timm itself does with an image, by the configuration of a model."""
    from PIL import Image
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    options = resolve_data_config(pretrained_cfg=pretrained_cfg)  # type: ignore[no-untyped-call]
    transform: Any = create_transform(**options)
    return lambda tile: transform(Image.fromarray(np.ascontiguousarray(tile)))


def read_timm_folder(folder: Path) -> tuple[nn.Module, TileTransform]:
    """Return the model, in evaluation mode, and the transform that timm makes of a folder."""
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval(), timm_transform(model.pretrained_cfg)


def _crop_share(recipe: Recipe) -> float:
    """Return the share of the resized tile that timm cuts out: it resizes before it crops."""
    share = recipe.crop / TILE_SIZE
    side = round(recipe.size / share)
    # timm rounds down what it computes from the share.
    return share if math.floor(recipe.size / share) == side else recipe.size / (side + 0.5)
