"""Haematoxylin and eosin: their colours, and a jitter of how much of each a tile holds."""

from typing import Any

import cv2
import numpy as np

from kit.base import Array, Floats

# Each is (2, 3): the optical density of red, green and blue of haematoxylin and of eosin.
RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23 (2001) 291-299,
table 1."""
JITTERED = np.array([[0.644211, 0.716556, 0.266844], [0.092789, 0.954111, 0.283111]])
"""As albumentations has them."""
BROWNISH = np.array([[0.54, 0.67, 0.50], [0.18, 0.80, 0.58]])
PURPLE = np.array([[0.58, 0.74, 0.33], [0.13, 0.95, 0.27]])
"""The two laboratories of the training slides, as estimated from the competition's tiles."""
UNSEEN = np.array([[0.38, 0.46, 0.25], [0.28, 1.25, 0.85]])
"""The laboratory of the stand-in's test slides: less haematoxylin, more eosin."""

UNMIX = np.linalg.pinv(JITTERED.T)
"""(2, 3): splits an optical density into the two stains by least squares."""
KEEP_STAINS = JITTERED.T @ UNMIX
"""(3, 3): turns optical densities into what the two stains explain of them."""
_OPTICAL_DENSITY = -np.log(np.maximum(np.arange(256, dtype=np.float32) / 255, 1e-6))
# Luminosity less 85 % of white, a hundredfold: what rounds to 0 or saturates there is tissue.
_IS_BACKGROUND = np.array([[29.9, 58.7, 11.4, -85 * 255 + 0.5]])


def jitter_stains(images: Array, scales: Floats, shifts: Floats) -> Array:
    """Scale and shift the haematoxylin and eosin densities of the tissue in images.

    The optical density -log(image / 255) of a pixel is split into the two stains by least
    squares; their densities times a scale plus a shift give the new pixel. Background, brighter
    than 85 % of white, keeps its densities. This is `albumentations.HEStain` for a batch.

    Parameters
    ----------
    images
        (images, height, width, 3) uint8, RGB.
    scales, shifts
        (images, 2), for haematoxylin and eosin.

    References
    ----------
    Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution, 2001.
    """
    # OpenCV takes the batch for one tall image, but for what differs from tile to tile.
    tall = images.reshape(-1, images.shape[2], 3)
    densities = cv2.LUT(tall, _OPTICAL_DENSITY)
    result = np.empty(images.shape, np.float32)
    for matrix, density, output in zip(
        stain_matrices(scales, shifts), densities.reshape(images.shape), result, strict=True
    ):
        cv2.transform(density, matrix, dst=output)
    background = cv2.transform(densities, KEEP_STAINS)
    cv2.copyTo(background, cv2.transform(tall, _IS_BACKGROUND), dst=result.reshape(tall.shape))
    np.negative(result, out=result)
    jittered: Array = cv2.convertScaleAbs(cv2.exp(result.reshape(tall.shape)), alpha=255)
    return jittered.reshape(images.shape)


def stain_matrices(scales: Floats, shifts: Floats) -> Floats:
    """Return what `jitter_stains` does to optical densities: (images, 3, 4), offsets last."""
    mixes = np.einsum("sc,ns,sd->ncd", JITTERED, scales, UNMIX)
    return np.concatenate([mixes, (shifts @ JITTERED)[:, :, None]], axis=2)


def stain_draws(uniform: Any, strength: float) -> tuple[Any, Any]:
    """Turn (tiles, 4) draws from [0, 1), an array of any library, into scales and shifts.

    Both are (tiles, 2), for haematoxylin and eosin.
    """
    centred = strength * (2 * uniform - 1)
    return 1 + 0.3 * centred[:, :2], 0.2 * centred[:, 2:]
