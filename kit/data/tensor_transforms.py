"""The kit's transforms on tensors of whole batches, for tiles that lie in a GPU's memory.

They are those of `transforms` within rounding, which is once at the end here.
"""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kit.base import Interpolation
from kit.data import stains, transforms
from kit.data.transforms import SYMMETRIES, Draws, Resize, TileAugmentation

# As torch names them. What OpenCV does by area where it enlarges, torch does not.
ENLARGEMENTS: dict[Interpolation, str] = {
    "nearest": "nearest-exact",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}
BACKGROUND = 0.85
LUMINOSITY = (0.299, 0.587, 0.114)


def augment(images: Tensor, augmentation: TileAugmentation, keys: Tensor) -> Tensor:
    """Transform a batch as `transforms.TileAugmentation` does, with the same draws.

    Nothing is copied from the host and nothing is waited for.

    Parameters
    ----------
    images
        (images, side, side, 3) uint8, RGB, on any device.
    keys
        (images,), from `tile_keys`, on the same device.

    Returns
    -------
    Tensor
        The same shape and type, on the same device.
    """
    draws: Draws[Tensor] = augmentation.draw_from(uniforms(keys, augmentation.COUNT), torch)
    pixels = images.float()
    if draws.turns is not None:
        pixels = turn_and_zoom(pixels, *draws.turns)
    if draws.sigmas is not None:
        pixels = blur(pixels, draws.sigmas, widest=transforms.MIN_SIGMA + augmentation.blur)
    pixels = symmetry(pixels, draws.elements)
    if draws.stains is not None:
        pixels = jitter_stains(pixels, *draws.stains)
    if draws.colours is not None:
        pixels = jitter_colours(pixels, *draws.colours)
    return _round(pixels)


def tile_keys(seed: int, epoch: int | Tensor, indices: Tensor) -> Tensor:
    """Return what `transforms.tile_keys` does, as int64 of the same bits."""
    keys = _mix(torch.full_like(indices, seed))
    for part in (epoch, indices):
        keys = _mix(keys ^ part)
    return keys


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Return what `transforms.uniforms` does: (tiles, count) float64 in [0, 1)."""
    counters = keys[:, None] + torch.arange(count, device=keys.device) * _GOLDEN
    return _shift(_mix(counters), 11).double() * 2.0**-53


def _mix(values: Tensor) -> Tensor:
    """Take SplitMix64's next number from each of its states; int64 wraps as uint64 does."""
    values = values + _GOLDEN
    values = (values ^ _shift(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shift(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shift(values, 31)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros, where int64 would repeat the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


_GOLDEN = _signed(0x9E3779B97F4A7C15)


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


def turn_and_zoom(pixels: Tensor, angles: Tensor, zooms: Tensor) -> Tensor:
    """Turn images about their centre and enlarge them, see `transforms.turn_and_zoom`."""
    radians = torch.deg2rad(angles)
    cos, sin = radians.cos() / zooms, radians.sin() / zooms
    zero = torch.zeros_like(cos)
    sources = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3).float()
    maps = pixels.permute(0, 3, 1, 2)
    grid = functional.affine_grid(sources, list(maps.shape), align_corners=True)
    turned = functional.grid_sample(maps, grid, padding_mode="reflection", align_corners=True)
    return turned.permute(0, 2, 3, 1)


def blur(pixels: Tensor, sigmas: Tensor, widest: float) -> Tensor:
    """Blur images by Gaussians of (images,) sigmas, none above `widest`; 0 changes nothing."""
    weights = gaussians(sigmas, widest).float()
    for _ in range(2):
        # Along the rows of the image, then of the transposed one.
        pixels = _blur_rows(pixels, weights).transpose(1, 2)
    return pixels


def gaussians(sigmas: Tensor, widest: float) -> Tensor:
    """Return OpenCV's Gaussian kernels of (images,) sigmas, as wide as the widest one's."""
    sigma = sigmas[:, None]
    distance = torch.arange(-_radius(widest), _radius(widest) + 1, device=sigmas.device)
    weights = torch.exp(-0.5 * (distance / sigma.clamp_min(1e-6)) ** 2)
    weights = weights * (distance.abs() <= (((6 * sigma + 1).round().long() | 1) // 2))
    return weights / weights.sum(1, keepdim=True)


def _radius(sigma: float) -> int:
    """Return how far OpenCV's kernel reaches: of 8-bit images about three sigmas."""
    return (round(6 * sigma + 1) | 1) // 2


def _blur_rows(pixels: Tensor, weights: Tensor) -> Tensor:
    width, reach = pixels.shape[2], weights.shape[1] // 2
    rows = pixels.permute(0, 3, 1, 2)
    padded = functional.pad(rows, (reach, reach, 0, 0), mode="reflect").permute(0, 2, 3, 1)
    blurred = torch.zeros_like(pixels)
    for shift, weight in enumerate(weights.T):
        blurred += weight[:, None, None, None] * padded[:, :, shift : shift + width]
    return blurred


def symmetry(pixels: Tensor, elements: Tensor) -> Tensor:
    """Return square images (images, side, side, 3), each under its own of `SYMMETRIES`."""
    index = _sources(pixels.shape[1], pixels.device)[elements.long()]
    flat = pixels.flatten(1, 2)
    return flat.gather(1, index[:, :, None].expand(-1, -1, 3)).view(pixels.shape)


@functools.cache
def _sources(side: int, device: torch.device) -> Tensor:
    """Return where each pixel of a square comes from under each symmetry: (8, side**2)."""
    positions = np.arange(side**2, dtype=np.int32).reshape(side, side)
    sources = np.stack([transforms.symmetry(positions, element).ravel() for element in range(8)])
    return torch.from_numpy(sources.astype(np.int64)).to(device)


def eight_views(images: Tensor) -> list[Tensor]:
    """Return square images (images, channels, side, side) under each of `SYMMETRIES`."""
    views = []
    for transposes, axes in SYMMETRIES:
        view = images.transpose(2, 3) if transposes else images
        view = view.flip([2 + axis for axis in axes])
        views.append(view.contiguous(memory_format=torch.channels_last))
    return views


def jitter_stains(pixels: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    """Scale and shift the stains' densities, see `stains.jitter_stains`."""
    densities = -(pixels / 255).clamp_min(1e-6).log()
    colours, unmix, keep, luminosity = _constants(pixels.device)
    matrices = (colours.T * scales.float()[:, None, :]) @ unmix
    offsets = (shifts.float() @ colours)[:, None, None, :]
    jittered = _transform(densities, matrices) + offsets
    background = _transform(densities, keep[None])
    is_background = pixels @ luminosity > BACKGROUND * 255
    return 255 * torch.where(is_background[..., None], background, jittered).neg().exp()


def jitter_colours(pixels: Tensor, gains: Tensor, grays: Tensor) -> Tensor:
    """Multiply by gains and draw towards grey, see `transforms.jitter_colours`."""
    gained = pixels * gains.float()[:, None, None, :]
    return gained.lerp(gained.mean(3, keepdim=True), grays.float()[:, None, None, None])


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """Return the stains' matrices and the weights of luminosity, copied to a device once."""
    values = (stains.JITTERED, stains.UNMIX, stains.KEEP_STAINS, np.array(LUMINOSITY))
    return tuple(torch.from_numpy(value).float().to(device) for value in values)


def _transform(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each pixel's colour by its image's matrix."""
    return (pixels.flatten(1, 2) @ matrices.mT).view(pixels.shape)


def _round(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
