"""Grad-CAM: where on a tile a model's answer comes from."""

from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor, nn
from torch.nn import functional

from kit.base import TILE_SIZE, Floats, Pixels
from kit.data import eval_loader, recipe_dataset
from kit.models import GroupConv2d
from kit.runs import TrainedModel
from kit.training import Normalize


def grad_cam(trained: TrainedModel, tiles: Pixels) -> Floats | None:
    """Return where a model's answers come from.

    Grad-CAM of the answer that was given, tumour or none, from the map of the last convolution
    that is larger than one pixel, taken after the norm and the activation that follow it:
    max(0, sum over channels of map times the mean gradient of the logit, or of minus the logit
    where the answer is no). Scaled to 1 tile by tile and laid over the crop that the model sees.

    Parameters
    ----------
    tiles
        (tiles, 96, 96, 3), RGB.

    Returns
    -------
    ndarray or None
        (tiles, 96, 96) in [0, 1], NaN outside the crop; None for a model without such a map, and
        where captum is not installed.

    References
    ----------
    Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2.
    """
    # Captum takes half a second to import, which whoever draws no gallery can do without.
    try:
        from captum.attr import LayerGradCam
    except ModuleNotFoundError:
        # Kaggle's image lacks it.
        return None

    recipe, model = trained.recipe, trained.model.eval()
    loader = eval_loader(recipe_dataset(tiles, recipe))
    normalize = Normalize(*recipe.channel_statistics)
    inputs = torch.cat([normalize(images) for images, _ in loader]).to(trained.device)
    layer = _last_map(model, inputs[:1])
    if layer is None:
        return None
    with torch.no_grad():
        answers = model(inputs).squeeze(1).sign()
    explained = LayerGradCam(lambda images: model(images).squeeze(1) * answers, layer)
    maps: Tensor = explained.attribute(inputs, relu_attributions=True).detach().cpu().double()
    maps = functional.interpolate(maps, (recipe.crop, recipe.crop), mode="bilinear")
    maps = maps / maps.amax((2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    border = TILE_SIZE - recipe.crop
    sides = (border // 2, border - border // 2) * 2
    return functional.pad(maps.squeeze(1), sides, value=torch.nan).numpy()


def overlay(pixels: Pixels, heat: Floats) -> Pixels:
    """Lay a map in [0, 1] over a tile, the stronger the more opaque; grey where it is NaN."""
    seen = np.isfinite(heat)
    strength = np.where(seen, heat, 0)
    colours = 255 * colormaps["viridis"](strength)[..., :3]
    opacity = 0.75 * strength[..., None]
    blended = (1 - opacity) * pixels + opacity * colours
    grey = 0.5 * pixels.mean(-1, keepdims=True) + 0.5 * 200
    overlaid: Pixels = np.where(seen[..., None], blended, grey).astype(np.uint8)
    return overlaid


def _last_map(model: nn.Module, image: Tensor) -> nn.Module | None:
    """Return the last layer with an output of the height and width of the last convolution's.

    For a network of convolution, norm and activation that is the activation; for a ResNet, its
    last stage.
    """
    outputs: list[tuple[nn.Module, tuple[int, ...]]] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((module, tuple(output.shape[2:])))

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    maps = [
        size
        for module, size in outputs
        if isinstance(module, nn.Conv2d | GroupConv2d) and min(size, default=0) > 1
    ]
    return next((module for module, size in reversed(outputs) if maps and size == maps[-1]), None)
