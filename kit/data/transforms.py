"""Transforms of tiles, and the draws that make them repeatable.

Only transforms that keep the centre in place are here: a shift, a random crop or a cut-out
would move or hide what the label is about.
"""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from kit.base import Array, Augmentation, Floats, Indices, Interpolation
from kit.data.stains import jitter_stains, stain_draws

Keys = npt.NDArray[np.uint64]
"""(tiles,): what the draws for each tile follow from, a hash of seed, epoch and index."""

_INTERPOLATIONS: dict[Interpolation, int] = {
    # Pixel centres, as Pillow and so Keras do it; INTER_NEAREST takes the corners.
    "nearest": cv2.INTER_NEAREST_EXACT,
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "bicubic": cv2.INTER_CUBIC,
}

SYMMETRIES = tuple(
    (bool(element & 1), tuple(axis for axis in (0, 1) if element & 2 << axis))
    for element in range(8)
)
"""The eight symmetries of the square (D4): whether one transposes, and the axes that it flips
afterwards, 0 the rows and 1 the columns. The first one changes nothing."""
MIN_SIGMA = 0.2
"""Of a blur, in pixels."""
_FLIP_CODES = {(0,): 0, (1,): 1, (0, 1): -1}


@dataclass(frozen=True)
class Resize:
    """Cut out the central square and resize it; the same as albumentations' transforms.

    Parameters
    ----------
    crop
        Side of the square in pixels, up to 96.
    size
        Side of the result in pixels.
    """

    crop: int
    size: int
    interpolation: Interpolation

    def __call__(self, image: Array, out: Array | None = None) -> Array:
        """Return an image of (size, size, 3), written to `out` where it is given."""
        edge = (len(image) - self.crop) // 2
        square = image[edge : edge + self.crop, edge : edge + self.crop]
        if self.size == self.crop and out is None:
            return square
        # To the same size OpenCV copies.
        code = _INTERPOLATIONS[self.interpolation]
        return cv2.resize(square, (self.size, self.size), out, interpolation=code)

    def matrix(self) -> npt.NDArray[np.float32]:
        """Return what resizing multiplies a row of the square's pixels by: (size, crop)."""
        code, unit = _INTERPOLATIONS[self.interpolation], np.eye(self.crop, dtype=np.float32)
        return np.asarray(cv2.resize(unit, (self.crop, self.size), interpolation=code))


def symmetry(image: Array, element: int) -> Array:
    """Return a square image (side, side, channels) under one of `SYMMETRIES`."""
    transposes, axes = SYMMETRIES[element]
    if transposes:
        image = cv2.transpose(image)
    return cv2.flip(image, _FLIP_CODES[axes]) if axes else image


def turn_and_zoom(images: Array, angles: Floats, zooms: Floats) -> Array:
    """Turn images about their centre and enlarge them; edges are mirrored into what is bare.

    The centre stays in place, and with it what the label is about.

    Parameters
    ----------
    images
        (images, height, width, 3) uint8.
    angles
        (images,) in degrees, anticlockwise.
    zooms
        (images,) factors; above 1 enlarges.
    """
    height, width = images.shape[1:3]
    centre = ((width - 1) / 2, (height - 1) / 2)
    result = np.empty_like(images)
    for image, angle, zoom, output in zip(images, angles, zooms, result, strict=True):
        matrix = cv2.getRotationMatrix2D(centre, angle, zoom)
        border = cv2.BORDER_REFLECT_101
        cv2.warpAffine(image, matrix, (width, height), output, cv2.INTER_LINEAR, border)
    return result


def blur(images: Array, sigmas: Floats) -> Array:
    """Blur images by Gaussians of (images,) sigmas in pixels; 0 leaves an image as it is."""
    result = images.copy()
    for image, sigma, output in zip(images, sigmas, result, strict=True):
        if sigma > 0:
            cv2.GaussianBlur(image, (0, 0), sigma, output)
    return result


def jitter_colours(images: Array, gains: Floats, grays: Floats) -> Array:
    """Multiply each channel by a gain, then draw the channels towards their mean.

    Parameters
    ----------
    images
        (images, height, width, 3) uint8, RGB.
    gains
        (images, 3).
    grays
        (images,) shares of grey: 0 keeps the colours, 1 leaves none.
    """
    result = np.empty_like(images)
    for image, matrix, output in zip(images, colour_matrices(gains, grays), result, strict=True):
        cv2.transform(image, matrix, dst=output)
    return result


def colour_matrices(gains: Floats, grays: Floats) -> Floats:
    """Return what `jitter_colours` does to colours: (images, 3, 3)."""
    keep = (1 - grays)[:, None, None] * np.eye(3) + grays[:, None, None] / 3
    matrices: Floats = keep * gains[:, None, :]
    return matrices


T = TypeVar("T")


@dataclass(frozen=True)
class Draws(Generic[T]):
    """What is drawn for the tiles of a batch; None for what an augmentation leaves out.

    The arrays are NumPy's, or PyTorch's on any device.

    Attributes
    ----------
    elements
        (tiles,), which of `SYMMETRIES`.
    turns
        Angles and zooms, (tiles,) each, see `turn_and_zoom`.
    sigmas
        (tiles,), see `blur`.
    stains
        Scales and shifts, (tiles, 2) each, see `jitter_stains`.
    colours
        Gains, (tiles, 3), and shares of grey, (tiles,), see `jitter_colours`.
    """

    elements: T
    turns: tuple[T, T] | None
    sigmas: T | None
    stains: tuple[T, T] | None
    colours: tuple[T, T] | None


class TileAugmentation:
    """The kit's own random transforms, drawn for a whole batch and applied tile by tile.

    A general pipeline spends 80 us on its generator before it has touched a tile, half of
    what the small CNN's training step takes; here a tile costs a few calls of OpenCV.

    Parameters
    ----------
    stains
        Whether to jitter the stains after the symmetry.
    gain, gray
        How far each channel's gain may be from 1, and the largest share of grey.
    strength
        Of the stains' jitter, see `StainJitter`.
    zoom, blur
        Tiles are turned by up to 45 degrees, zoomed by up to a factor of `exp(zoom)` either way,
        and every second one is blurred by 0.2 to 0.2 + `blur` pixels; 0 does neither.
    """

    COUNT = 13

    def __init__(
        self,
        *,
        stains: bool = False,
        gain: float = 0.0,
        gray: float = 0.0,
        strength: float = 1.0,
        zoom: float = 0.0,
        blur: float = 0.0,
    ) -> None:
        self.stains = stains
        self.gain = gain
        self.gray = gray
        self.strength = strength
        self.zoom = zoom
        self.blur = blur

    def __call__(self, images: Array, keys: Keys) -> Array:
        """Return transformed images; the draws follow from each tile's key alone."""
        draws = self.draw(keys)
        if draws.turns is not None:
            images = turn_and_zoom(images, *draws.turns)
        if draws.sigmas is not None:
            images = blur(images, draws.sigmas)
        turned = np.empty_like(images)
        for position, element in enumerate(draws.elements.astype(int)):
            turned[position] = symmetry(images[position], element)
        if draws.stains is not None:
            turned = jitter_stains(turned, *draws.stains)
        if draws.colours is not None:
            turned = jitter_colours(turned, *draws.colours)
        return turned

    def draw(self, keys: Keys) -> Draws[Floats]:
        """Return what the tiles of these keys are given."""
        return self.draw_from(uniforms(keys, self.COUNT), np)

    def draw_from(self, uniform: Any, library: Any) -> Draws[Any]:
        """Turn (tiles, COUNT) draws from [0, 1), arrays of NumPy or torch, into the tiles' own."""
        zooms = library.exp(self.zoom * (2 * uniform[:, 10] - 1))
        sigmas = (uniform[:, 11] < 0.5) * (MIN_SIGMA + self.blur * uniform[:, 12])
        gains = 1 - self.gain + 2 * self.gain * uniform[:, 5:8]
        return Draws(
            elements=library.floor(8 * uniform[:, 0]),
            turns=(90 * uniform[:, 9] - 45, zooms) if self.zoom else None,
            sigmas=sigmas if self.blur else None,
            stains=stain_draws(uniform[:, 1:5], self.strength) if self.stains else None,
            colours=(gains, self.gray * uniform[:, 8]) if self.gain else None,
        )


def augmentation(kind: Augmentation, strength: float = 1.0) -> TileAugmentation | None:
    """Return the random transforms of a kind, or None where there are none.

    d4 is one of the eight symmetries of the square, each equally likely; stain is d4 and a
    jitter of the haematoxylin and eosin densities, see `StainJitter`; colour is stain, a gain of
    up to 15 % per channel, and any share of grey; full is stain, gains of up to 10 %, up to 30 %
    of grey, any angle, a zoom of up to 22 %, and a blur of every second tile.
    """
    options: dict[Augmentation, dict[str, Any]] = {
        "d4": {},
        "stain": {"stains": True},
        "colour": {"stains": True, "gain": 0.15, "gray": 1.0},
        "full": {"stains": True, "gain": 0.1, "gray": 0.3, "zoom": 0.2, "blur": 0.8},
    }
    return TileAugmentation(strength=strength, **options[kind]) if kind in options else None


def tile_keys(seed: int, epochs: Indices, indices: Indices) -> Keys:
    """Return the key of each tile's augmentation: a hash of seed, epoch and index."""
    keys = _mix(np.full(len(indices), seed, np.uint64))
    for part in (epochs, indices):
        keys = _mix(keys ^ part.astype(np.uint64))
    return keys


def uniforms(keys: Keys, count: int) -> Floats:
    """Return (tiles, count) draws from [0, 1), those of a row from its key alone.

    SplitMix64 seeded with the key: its counter makes the draws of a batch one expression.

    References
    ----------
    Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    counters = keys[:, None] + np.arange(count, dtype=np.uint64) * _GOLDEN
    draws: Floats = (_mix(counters) >> np.uint64(11)).astype(float) * 2.0**-53
    return draws


def _mix(values: Keys) -> Keys:
    """Take SplitMix64's next number from each of its states."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
