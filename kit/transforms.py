"""Albumentations pipelines for tiles, and the seeds that make them repeatable.

Only transforms that keep the centre in place are here: a shift, a random crop or a cut-out
would move or hide what the label is about.
"""

import os
from typing import TypeAlias

# Without this albumentations asks the network for its newest version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np

from kit import competition
from kit.config import Augmentation, Interpolation

Pipeline: TypeAlias = A.Compose

_INTERPOLATIONS: dict[Interpolation, int] = {
    # Pixel centres, as Pillow and so Keras do it; INTER_NEAREST takes the corners.
    "nearest": cv2.INTER_NEAREST_EXACT,
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "bicubic": cv2.INTER_CUBIC,
}


def resize(crop: int, size: int, interpolation: Interpolation) -> Pipeline:
    """Cut out the central square and resize it.

    Parameters
    ----------
    crop
        Side of the square in pixels, up to 96.
    size
        Side of the result in pixels.
    """
    steps = []
    if crop < competition.TILE_SIZE:
        steps.append(A.CenterCrop(crop, crop))
    if size != crop:
        steps.append(A.Resize(size, size, interpolation=_INTERPOLATIONS[interpolation]))
    return Pipeline(steps, strict=True)


def augmentation(kind: Augmentation, strength: float = 1.0) -> Pipeline | None:
    """Return the random transforms of a kind, or None where there are none.

    d4 is one of the eight symmetries of the square, each equally likely; stain is d4 and a
    jitter of the haematoxylin and eosin densities: each is scaled by up to 30 % and shifted by
    up to 0.2, both times `strength` (Ruifrok and Johnston 2001; Tellez et al. 2018).
    """
    steps: dict[Augmentation, list[A.BasicTransform]] = {
        "none": [],
        "d4": [A.D4(p=1)],
        "stain": [
            A.D4(p=1),
            A.HEStain(
                method="preset",
                preset="ruifrok",
                intensity_scale_range=(1 - 0.3 * strength, 1 + 0.3 * strength),
                intensity_shift_range=(-0.2 * strength, 0.2 * strength),
                augment_background=False,
                p=1,
            ),
        ],
    }
    return Pipeline(steps[kind], strict=True) if steps[kind] else None


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of one tile's augmentation in one epoch.

    Albumentations 2.0.8 gives every loader worker the same draws, and the same again each
    epoch. Seeding each tile by what it is, not by who loads it, makes the draws independent
    of the number of workers, and those of a resumed run the same.
    """
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
