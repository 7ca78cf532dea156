"""The competition's facts: its names, its files, its tiles, and where they may lie."""

import hashlib
import os
from pathlib import Path
from typing import Literal

SLUG = "histopathologic-cancer-detection"
RULES_PAGE = f"https://www.kaggle.com/c/{SLUG}/rules"
ARCHIVE = f"{SLUG}.zip"
LABELS_FILE = "train_labels.csv"
SAMPLE_FILE = "sample_submission.csv"
SLIDES_FILE = "slides.csv"
# Written beside a synthetic archive, and into the archive's own comment as well.
STANDIN_FILE = "standin.json"
STANDIN_COMMENT = b"synthetic stand-in, not the competition's data"

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
CLASS_NAMES = ("negative", "positive")

TRAIN_TILES = 220_025
TILE_SIZE = 96
"""Height and width of a tile in pixels."""
CENTRE_SIZE = 32
"""Height and width in pixels of the central square that decides the label."""
CHANNELS = 3
TILE_BYTES = TILE_SIZE * TILE_SIZE * CHANNELS
CHANNEL_MEAN = (0.702, 0.546, 0.696)
"""Mean of the training tiles' red, green and blue, in [0, 1]."""
CHANNEL_STD = (0.239, 0.282, 0.216)
"""Standard deviation of the training tiles' red, green and blue, in [0, 1]."""

KAGGLE_INPUTS = (Path("/kaggle/input/competitions") / SLUG, Path("/kaggle/input") / SLUG)


def tile_id(pixels: bytes | memoryview) -> str:
    """Return the id that a tile's pixels prove.

    Parameters
    ----------
    pixels
        The raw RGB bytes, row by row, `TILE_BYTES` of them.

    Returns
    -------
    str
        40 hex digits: the SHA-1 of the pixels.
    """
    return hashlib.sha1(pixels, usedforsecurity=False).hexdigest()


def data_folder(data: Path) -> Path:
    """Return the folder that holds the competition's files.

    On Kaggle, where `data` does not exist, this is the mount of the competition's data.
    """
    if not data.exists() and "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return next((mount for mount in KAGGLE_INPUTS if mount.is_dir()), data)
    return data
