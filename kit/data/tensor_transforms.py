"""The kit's transforms on tensors of whole batches, for tiles that lie in a GPU's memory.

They are those of `transforms` within rounding, which is once at the end here.
"""

import functools
import math

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
    if all(part is None for part in (draws.turns, draws.sigmas, draws.stains, draws.colours)):
        return symmetry(images, draws.elements)
    # One map per colour: kernels then read whole rows.
    maps = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    if draws.turns is not None:
        maps = turn_and_zoom(maps, *draws.turns)
    if draws.sigmas is not None:
        maps = blur(maps, draws.sigmas, widest=transforms.MIN_SIGMA + augmentation.blur)
    if draws.stains is not None:
        maps = jitter_stains(maps, *draws.stains)
    if draws.colours is not None:
        maps = jitter_colours(maps, *draws.colours)
    # What changes colours alone may come before it, and bytes are moved sooner than floats.
    return symmetry(_as_images(maps), draws.elements)


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
    return _as_images(maps)


def resize_batch(images: Tensor, resize: Resize) -> Tensor:
    """Resize uint8 images (images, 3, side, side), on any device, as `Resize` does each of them.

    Within a level: OpenCV rounds the weights of some, and halves in another way.
    """
    edge = (images.shape[3] - resize.crop) // 2
    square = images[..., edge : edge + resize.crop, edge : edge + resize.crop]
    if resize.size == resize.crop:
        return square
    matrix = _resizing(resize, images.device)
    return _as_images(matrix @ square.float() @ matrix.T).permute(0, 3, 1, 2)


@functools.cache
def _resizing(resize: Resize, device: torch.device) -> Tensor:
    """Return the matrix that resizes a row of pixels: (size, crop)."""
    return torch.from_numpy(resize.matrix()).to(device)


def turn_and_zoom(maps: Tensor, angles: Tensor, zooms: Tensor) -> Tensor:
    """Turn maps (images, 3, side, side) about their centre and enlarge them.

    See `transforms.turn_and_zoom`.
    """
    radians = torch.deg2rad(angles)
    cos, sin = (part.float() / zooms.float() for part in (radians.cos(), radians.sin()))
    line = torch.linspace(-1, 1, maps.shape[3], device=maps.device)[:, None]
    # Where each pixel comes from: a part for its column and a part for its row.
    columns = torch.stack([cos, sin], 1)[:, None] * line
    rows = torch.stack([-sin, cos], 1)[:, None] * line
    grid = rows[:, :, None] + columns[:, None]
    return functional.grid_sample(maps, grid, padding_mode="reflection", align_corners=True)


def blur(maps: Tensor, sigmas: Tensor, widest: float) -> Tensor:
    """Blur maps (images, 3, side, side) by Gaussians of (images,) sigmas, none above `widest`.

    0 changes nothing.
    """
    side, weights = maps.shape[3], gaussians(sigmas, widest).float()
    taps = _reflected_shifts(side, weights.shape[1] // 2, maps.device)
    # What each pixel takes from those of its row, or of its column.
    matrices = (weights @ taps).view(-1, 1, side, side)
    return matrices @ (maps @ matrices.mT)


@functools.cache
def _reflected_shifts(side: int, reach: int, device: torch.device) -> Tensor:
    """Return the matrices that shift a row by -reach to reach pixels: (2 * reach + 1, side**2).

    Beyond its ends a row goes on as its mirror image.
    """
    sources = np.pad(np.arange(side), reach, mode="reflect")
    shifts = [np.eye(side)[sources[first : first + side]] for first in range(2 * reach + 1)]
    return torch.from_numpy(np.stack(shifts)).float().flatten(1).to(device)


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


def symmetry(images: Tensor, elements: Tensor) -> Tensor:
    """Return square images (images, side, side, 3), each under its own of `SYMMETRIES`."""
    index = _sources(images.shape[1], images.device)[elements.long()]
    flat = images.flatten(1, 2)
    return flat.gather(1, index[:, :, None].expand(-1, -1, 3)).view(images.shape)


@functools.cache
def _sources(side: int, device: torch.device) -> Tensor:
    """Return where each pixel of a square comes from under each symmetry: (8, side**2)."""
    positions = np.arange(side**2, dtype=np.int32).reshape(side, side)
    sources = np.stack([transforms.symmetry(positions, element).ravel() for element in range(8)])
    return torch.from_numpy(sources.astype(np.int64)).to(device)


def eight_views(images: Tensor) -> list[Tensor]:
    """Return square images (images, channels, side, side) under each of `SYMMETRIES`."""
    return [view_of(images, number) for number in range(len(SYMMETRIES))]


def view_of(images: Tensor, number: int) -> Tensor:
    """Return one of `eight_views`; the first is the images themselves."""
    transposes, axes = SYMMETRIES[number]
    view = images.transpose(2, 3) if transposes else images
    view = view.flip([2 + axis for axis in axes])
    return view.contiguous(memory_format=torch.channels_last)


def turn_back(images: Tensor, number: int) -> Tensor:
    """Return images as they were before `view_of` showed them under one of `SYMMETRIES`."""
    transposes, axes = SYMMETRIES[number]
    image = images.flip([2 + axis for axis in axes])
    return image.transpose(2, 3) if transposes else image


def jitter_stains(maps: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    """Scale and shift the stains' densities in maps (images, 3, side, side).

    See `stains.jitter_stains`. A new density D is a matrix times the old one plus an offset, both
    those of the tissue and, below them, those of the background; D is log(255) - log(pixel).
    """
    colours, unmix, keep, luminosity = _constants(maps.device)
    mixes = (colours.T * scales.float()[:, None, :]) @ unmix
    matrices = torch.cat([mixes, keep.expand_as(mixes)], 1)
    offsets = shifts.float() @ colours
    offsets = torch.cat([offsets, torch.zeros_like(offsets)], 1)
    biases = math.log(255) * (1 - matrices.sum(2)) - offsets
    pixels = maps.flatten(2)
    logs = pixels.clamp_min(255e-6).log_()
    tissue, background = torch.baddbmm(biases[:, :, None], matrices, logs).chunk(2, 1)
    is_background = luminosity @ pixels > BACKGROUND * 255
    return torch.where(is_background, background, tissue).exp_().view(maps.shape)


def jitter_colours(maps: Tensor, gains: Tensor, grays: Tensor) -> Tensor:
    """Multiply maps (images, 3, side, side) by gains and draw them towards grey.

    See `transforms.jitter_colours`.
    """
    shares = grays.float()[:, None, None]
    keep = (1 - shares) * torch.eye(3, device=maps.device) + shares / 3
    return ((keep * gains.float()[:, None, :]) @ maps.flatten(2)).view(maps.shape)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """Return the stains' matrices and the weights of luminosity, copied to a device once."""
    values = (stains.JITTERED, stains.UNMIX, stains.KEEP_STAINS, np.array([LUMINOSITY]))
    return tuple(torch.from_numpy(value).float().to(device) for value in values)


def _as_images(maps: Tensor) -> Tensor:
    """Round maps (images, 3, side, side), which are overwritten, to images of bytes."""
    rounded = maps.round_().clamp_(0, 255)
    return rounded.to(torch.uint8, memory_format=torch.channels_last).permute(0, 2, 3, 1)
