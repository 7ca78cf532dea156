"""The kit's transforms on tensors of whole batches, for tiles that lie in a GPU's memory.

They are those of `transforms` within rounding, which is once at the end here.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kit.base import Floats, Indices, Interpolation
from kit.data import stains, transforms
from kit.data.transforms import SYMMETRIES, Draws, Resize

# As torch names them. What OpenCV does by area where it enlarges, torch does not.
ENLARGEMENTS: dict[Interpolation, str] = {
    "nearest": "nearest-exact",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}
BACKGROUND = 0.85
LUMINOSITY = (0.299, 0.587, 0.114)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Transform a batch as `transforms.TileAugmentation` does.

    Parameters
    ----------
    images
        (images, side, side, 3) uint8, RGB, on any device.

    Returns
    -------
    Tensor
        The same shape and type, on the same device.
    """
    pixels = images.float()
    if draws.turns is not None:
        pixels = turn_and_zoom(pixels, *draws.turns)
    if draws.sigmas is not None:
        pixels = blur(pixels, draws.sigmas)
    pixels = symmetry(pixels, draws.elements)
    if draws.stains is not None:
        pixels = jitter_stains(pixels, *draws.stains)
    if draws.colours is not None:
        pixels = _transform(pixels, _like(transforms.colour_matrices(*draws.colours), pixels))
    return _round(pixels)


def enlarge(images: Tensor, resize: Resize) -> Tensor:
    """Cut out the central square of (images, side, side, 3) uint8 and enlarge it."""
    edge = (images.shape[1] - resize.crop) // 2
    square = images[:, edge : edge + resize.crop, edge : edge + resize.crop]
    if resize.size == resize.crop:
        return square
    maps = functional.interpolate(
        square.permute(0, 3, 1, 2).float(), resize.size, mode=ENLARGEMENTS[resize.interpolation]
    )
    return _round(maps.permute(0, 2, 3, 1))


def turn_and_zoom(pixels: Tensor, angles: Floats, zooms: Floats) -> Tensor:
    """Turn images about their centre and enlarge them, see `transforms.turn_and_zoom`."""
    radians = torch.deg2rad(_like(angles, pixels))
    cos, sin = (part / _like(zooms, pixels) for part in (radians.cos(), radians.sin()))
    zero = torch.zeros_like(cos)
    sources = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    maps = pixels.permute(0, 3, 1, 2)
    grid = functional.affine_grid(sources, list(maps.shape), align_corners=True)
    turned = functional.grid_sample(maps, grid, padding_mode="reflection", align_corners=True)
    return turned.permute(0, 2, 3, 1)


def blur(pixels: Tensor, sigmas: Floats) -> Tensor:
    """Blur images by Gaussians of (images,) sigmas; 0 leaves an image as it is."""
    weights = _like(gaussians(sigmas), pixels)
    for _ in range(2):
        # Along the rows of the image, then of the transposed one.
        pixels = _blur_rows(pixels, weights).transpose(1, 2)
    return pixels


def gaussians(sigmas: Floats) -> Floats:
    """Return OpenCV's Gaussian kernels of (images,) sigmas, (images, width of the widest)."""
    sigma = sigmas[:, None]
    # Of 8-bit images OpenCV takes about three sigmas either way.
    radius = (np.rint(6 * sigma + 1).astype(int) | 1) // 2
    distance = np.arange(-radius.max(), radius.max() + 1)
    weights = np.exp(-0.5 * (distance / np.maximum(sigma, 1e-6)) ** 2)
    weights = np.where(np.abs(distance) <= radius, weights, 0)
    kernels: Floats = weights / weights.sum(1, keepdims=True)
    return kernels


def _blur_rows(pixels: Tensor, weights: Tensor) -> Tensor:
    width, reach = pixels.shape[2], weights.shape[1] // 2
    rows = pixels.permute(0, 3, 1, 2)
    padded = functional.pad(rows, (reach, reach, 0, 0), mode="reflect").permute(0, 2, 3, 1)
    blurred = torch.zeros_like(pixels)
    for shift, weight in enumerate(weights.T):
        blurred += weight[:, None, None, None] * padded[:, :, shift : shift + width]
    return blurred


def symmetry(pixels: Tensor, elements: Indices) -> Tensor:
    """Return square images (images, side, side, 3), each under its own of `SYMMETRIES`."""
    side = pixels.shape[1]
    positions = np.arange(side**2, dtype=np.int32).reshape(side, side)
    sources = np.stack([transforms.symmetry(positions, element).ravel() for element in range(8)])
    index = torch.from_numpy(sources[elements].astype(np.int64)).to(pixels.device)
    flat = pixels.flatten(1, 2)
    return flat.gather(1, index[:, :, None].expand(-1, -1, 3)).view(pixels.shape)


def eight_views(images: Tensor) -> list[Tensor]:
    """Return square images (images, channels, side, side) under each of `SYMMETRIES`."""
    views = []
    for transposes, axes in SYMMETRIES:
        view = images.transpose(2, 3) if transposes else images
        view = view.flip([2 + axis for axis in axes])
        views.append(view.contiguous(memory_format=torch.channels_last))
    return views


def jitter_stains(pixels: Tensor, scales: Floats, shifts: Floats) -> Tensor:
    """Scale and shift the stains' densities, see `stains.jitter_stains`."""
    densities = -(pixels / 255).clamp_min(1e-6).log()
    matrices = _like(stains.stain_matrices(scales, shifts), pixels)
    jittered = _transform(densities, matrices[:, :, :3]) + matrices[:, None, None, :, 3]
    background = _transform(densities, _like(stains.KEEP_STAINS, pixels)[None])
    is_background = pixels @ pixels.new_tensor(LUMINOSITY) > BACKGROUND * 255
    return 255 * torch.where(is_background[..., None], background, jittered).neg().exp()


def _transform(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each pixel's colour by its image's matrix."""
    return (pixels.flatten(1, 2) @ matrices.mT).view(pixels.shape)


def _like(values: Floats, pixels: Tensor) -> Tensor:
    return torch.from_numpy(values).to(pixels)


def _round(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
