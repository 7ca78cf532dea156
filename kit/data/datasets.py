"""Tiles as tensors: datasets over the packed tiles."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kit.base import (
    CHANNELS,
    TILE_SIZE,
    Indices,
    KitError,
    Labels,
    Pixels,
    Recipe,
    temporary_folder,
)
from kit.data import tensor_transforms, transforms
from kit.data.mapped import map_temporary
from kit.data.pipelines import PerTile, Pipeline, recipe_augmentation
from kit.data.transforms import Keys, Resize, TileAugmentation

Draw = tuple[int, int]
"""An epoch, and an index into a dataset."""
Draws = tuple[int, Indices | Tensor]
"""An epoch, and the indices of a batch: an array, or a tensor on a dataset's device."""
Batch = tuple[Tensor, Tensor]
"""Images (tiles, 3, height, width) uint8, and labels (tiles,)."""

DEVICE_SHARE = 1 / 2
"""Of a GPU's free memory, for tiles."""


class TileDataset(Dataset[Batch]):
    """A PyTorch dataset over packed tiles with albumentations transforms.

    An item is asked for by its index, or by `(epoch, index)`. With an epoch, as the loaders of
    the kit ask, the augmentation follows from the seed, the epoch and the index alone, whichever
    worker loads it. An index alone, as a plain `DataLoader` asks, is augmented differently each
    time, as PyTorch's generator has it. A list of either gives a batch, and so does
    `(epoch, indices)`.

    Parameters
    ----------
    tiles
        (tiles, height, width, 3) uint8, RGB.
    labels
        0 or 1 for each of `tiles`; left out for the test split, where items carry NaN.
    rows
        Which of `tiles` are in the dataset, in its order; all by default.
    resize
        Applied first.
    augment
        Random transforms: the kit's own, or any pipeline of albumentations that gives images
        (height, width, 3) uint8, as it gets them.
    seed
        Of the augmentation.

    Raises
    ------
    KitError
        If a pipeline gives something else for the first tile.

    Examples
    --------
    >>> tiles = np.zeros((2, 96, 96, 3), np.uint8)
    >>> image, label = TileDataset(tiles, np.array([0, 1]))[1]
    >>> image.shape, label.item()
    (torch.Size([3, 96, 96]), 1.0)
    """

    device: torch.device | None = None
    """Where tiles, labels and batches are, where that is not the host."""

    def __init__(
        self,
        tiles: Pixels,
        labels: Labels | None = None,
        *,
        rows: Indices | None = None,
        resize: Resize | None = None,
        augment: "Pipeline | TileAugmentation | PerTile | None" = None,
        seed: int = 0,
    ) -> None:
        self.tiles = tiles
        self.rows = np.arange(len(tiles)) if rows is None else rows
        known = np.full(len(tiles), np.nan) if labels is None else labels
        self.labels = known[self.rows].astype(np.float32)
        self.resize = resize
        is_ready = augment is None or isinstance(augment, TileAugmentation | PerTile)
        self.augment = augment if is_ready else PerTile(augment)
        self.seed = seed
        if isinstance(self.augment, PerTile) and len(self):
            # What is wrong with a pipeline is told here, not in a worker.
            self[0, 0]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: int | Draw | list[int] | list[Draw] | Draws) -> Batch:
        """Return an image of shape (3, height, width), uint8, and its label.

        For a batch, return images of shape (batch, 3, height, width), channels last in memory,
        and labels of shape (batch,).
        """
        if isinstance(draw, tuple) and not isinstance(draw[1], int | np.integer):
            return self._batch(np.full(len(draw[1]), draw[0]), np.asarray(draw[1]))
        asked = draw if isinstance(draw, list) else [draw]
        draws = [one if isinstance(one, tuple) else (self._epoch(), one) for one in asked]
        images, labels = self._batch(*np.array(draws, np.int64).T)
        return (images, labels) if isinstance(draw, list) else (images[0], labels[0])

    def _epoch(self) -> int:
        """Draw an epoch for an index that comes without one."""
        return 0 if self.augment is None else int(torch.randint(2**62, ()))

    def _batch(self, epochs: Indices, indices: Indices) -> Batch:
        images = self._images(indices, transforms.tile_keys(self.seed, epochs, indices))
        return images.permute(0, 3, 1, 2), torch.from_numpy(self.labels[indices])

    def _images(self, indices: Indices, keys: Keys) -> Tensor:
        """Return resized and augmented images of shape (batch, height, width, 3)."""
        images = self.tiles[self.rows[indices]]
        if self.resize is not None:
            images = np.stack([self.resize(image) for image in images])
        if self.augment is not None:
            images = self.augment(images, keys)
        return torch.from_numpy(images)


class DeviceDataset(TileDataset):
    """A dataset whose tiles and labels lie in a GPU's memory, where tiles are augmented.

    Its batches are those of `TileDataset` within rounding, on that device. One that is asked for
    by an epoch and a tensor of indices on the device takes nothing from the host. It is read by
    the process that made it, without workers.

    Parameters
    ----------
    device
        Any; others as for `TileDataset`.
    resize
        Keeps the size or enlarges, as `tensor_transforms.ENLARGEMENTS` can.
    augment
        The kit's own.
    """

    def __init__(
        self,
        tiles: Pixels,
        labels: Labels | None = None,
        *,
        device: torch.device,
        rows: Indices | None = None,
        resize: Resize | None = None,
        augment: TileAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(tiles, labels, rows=rows, resize=resize, augment=augment, seed=seed)
        # In parts, and the host's tiles are let go: they may be as large as its memory.
        self.tiles = np.empty((0, *tiles.shape[1:]), np.uint8)
        self.device_tiles = torch.empty(
            (len(self), *tiles.shape[1:]), dtype=torch.uint8, device=device
        )
        parts = np.array_split(np.arange(len(self)), 1 + len(self) // 4096)
        for part in parts:
            self.device_tiles[part[0] : part[-1] + 1] = torch.from_numpy(tiles[self.rows[part]])
        self.device_labels = torch.from_numpy(self.labels).to(device)
        self.device = device

    def __getitem__(self, draw: int | Draw | list[int] | list[Draw] | Draws) -> Batch:
        """Return what `TileDataset` does, on the device."""
        if isinstance(draw, tuple) and isinstance(draw[1], Tensor):
            return self.batch(draw[0], draw[1])
        return super().__getitem__(draw)

    def _batch(self, epochs: Indices, indices: Indices) -> Batch:
        both = torch.from_numpy(np.stack([epochs, indices])).to(self.device)
        return self.batch(*both)

    def batch(self, epoch: int | Tensor, indices: Tensor) -> Batch:
        """Return the batch of an epoch, or of one per tile, and of indices on the device."""
        images = self.device_tiles[indices]
        if self.resize is not None:
            images = tensor_transforms.enlarge(images, self.resize)
        if self.augment is not None:
            assert isinstance(self.augment, TileAugmentation)
            keys = tensor_transforms.tile_keys(self.seed, epoch, indices)
            images = tensor_transforms.augment(images, self.augment, keys)
        return images.permute(0, 3, 1, 2), self.device_labels[indices]


def recipe_dataset(
    tiles: Pixels,
    recipe: Recipe,
    *,
    labels: Labels | None = None,
    rows: Indices | None = None,
    train: bool = False,
    device: torch.device | None = None,
) -> TileDataset:
    """Return rows of the store as a recipe wants them, augmented where it is to train.

    Tiles that shrink are resized once, into a temporary file; others are read as they are needed.

    Parameters
    ----------
    device
        Hold the tiles in the memory of this GPU, see `fits_on_device`.
    """
    resize = Resize(recipe.crop, recipe.size, recipe.interpolation)
    shrinks = recipe.size < TILE_SIZE
    if shrinks:
        rows = np.arange(len(tiles)) if rows is None else rows
        labels = None if labels is None else labels[rows]
        tiles, rows = _resize_all(tiles, rows, resize), None
    kind: Any = TileDataset if device is None else partial(DeviceDataset, device=device)
    dataset: TileDataset = kind(
        tiles,
        labels,
        rows=rows,
        resize=None if shrinks else resize,
        augment=recipe_augmentation(recipe) if train else None,
        seed=recipe.seed,
    )
    return dataset


def fits_on_device(recipe: Recipe, tiles: int, device: torch.device) -> bool:
    """Return whether a GPU has room for a recipe's tiles, and can do what it asks of them."""
    if device.type != "cuda" or "augment" in recipe.custom:
        return False
    side = min(recipe.size, TILE_SIZE)
    enlarges = side == TILE_SIZE and recipe.size != recipe.crop
    if enlarges and recipe.interpolation not in tensor_transforms.ENLARGEMENTS:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return tiles * side**2 * CHANNELS <= DEVICE_SHARE * free


def _resize_all(tiles: Pixels, rows: Indices, resize: Resize) -> Pixels:
    """Resize rows of the store, side by side, to (rows, size, size, 3)."""
    shape = (len(rows), resize.size, resize.size, CHANNELS)
    where = temporary_folder()
    try:
        mapped = map_temporary(shape)
    except OSError as error:
        raise KitError(
            f"no room for {math.prod(shape):,} bytes of resized tiles in "
            f"{where}: set TMPDIR to a folder with room ({error.strerror})"
        ) from error
    # An item of a memory-mapped array takes longer to make than most tiles to resize.
    tiles, resized = np.asarray(tiles), np.asarray(mapped)

    def fill(positions: Indices) -> None:
        for position in positions:
            resize(tiles[rows[position]], out=resized[position])

    with ThreadPoolExecutor(torch.get_num_threads()) as executor:
        list(executor.map(fill, np.array_split(np.arange(len(rows)), 1 + len(rows) // 256)))
    return mapped
