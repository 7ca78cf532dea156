"""Grad-CAM of tiles: where on a tile a model's answer comes from."""

import numpy as np
import torch
from matplotlib import colormaps
from torch.nn import functional

from kit.base import TILE_SIZE, Floats, Pixels
from kit.data import eval_loader, recipe_dataset
from kit.models import find_map_layer
from kit.models import grad_cam as evidence_of
from kit.runs import TrainedModel, scaled_maps
from kit.training import Normalize

OPACITY = 0.75
"""Of a map over a tile, where it is the strongest."""


def grad_cam(trained: TrainedModel, tiles: Pixels, layer: str | None = None) -> Floats | None:
    """Return where a model's answers come from.

    Grad-CAM of the answer that was given, tumour or none: max(0, sum over channels of map times the
    mean gradient of the logit, or of minus the logit where the answer is no). Scaled to 1 tile by
    tile and laid over the crop that the model sees.

    Parameters
    ----------
    tiles
        (tiles, 96, 96, 3), RGB.
    layer
        That has the map; by default see `kit.models.find_map_layer`.

    Returns
    -------
    ndarray or None
        (tiles, 96, 96) in [0, 1], NaN outside the crop; None for a model without such a map.

    References
    ----------
    Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2.
    """
    recipe, model = trained.recipe, trained.model.eval()
    loader = eval_loader(recipe_dataset(tiles, recipe))
    normalize = Normalize(*recipe.channel_statistics)
    inputs = torch.cat([normalize(images) for images, _ in loader]).to(trained.device)
    place = find_map_layer(model, recipe.size, layer)
    if place is None:
        return None
    logits, evidence = evidence_of(model, place, inputs)
    answered = (logits.sign()[:, None, None] * evidence).relu().cpu().double()
    maps = scaled_maps(answered[:, None], recipe.crop)
    border = TILE_SIZE - recipe.crop
    sides = (border // 2, border - border // 2) * 2
    return functional.pad(maps, sides, value=torch.nan).numpy()


def overlay(pixels: Pixels, heat: Floats) -> Pixels:
    """Lay a map in [0, 1] over a tile, the stronger the more opaque; grey where it is NaN."""
    seen = np.isfinite(heat)
    strength = np.where(seen, heat, 0)
    colours = 255 * colormaps["viridis"](strength)[..., :3]
    opacity = OPACITY * strength[..., None]
    blended = (1 - opacity) * pixels + opacity * colours
    grey = 0.5 * pixels.mean(-1, keepdims=True) + 0.5 * 200
    overlaid: Pixels = np.where(seen[..., None], blended, grey).astype(np.uint8)
    return overlaid
