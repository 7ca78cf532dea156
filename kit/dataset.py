"""Tiles as tensors: the dataset over the store, and the loaders over the dataset."""

import math
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kit import competition, distributed, transforms
from kit.config import Recipe
from kit.errors import KitError
from kit.transforms import PerTile, Pipeline, Resize, TileAugmentation

Tiles = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Draw = tuple[int, int]
Batch = tuple[Tensor, Tensor]

EVAL_BATCH_SIZE = 256


class TileDataset(Dataset[Batch]):
    """A PyTorch dataset over packed tiles with albumentations transforms.

    An item is asked for by its index, or by `(epoch, index)`: the augmentation follows from
    the seed, the epoch and the index alone, whichever worker loads it. A list of either gives
    a batch.

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
        Random transforms: the kit's own, or any pipeline of albumentations.
    seed
        Of the augmentation.

    Examples
    --------
    >>> tiles = np.zeros((2, 96, 96, 3), np.uint8)
    >>> image, label = TileDataset(tiles, np.array([0, 1]))[1]
    >>> image.shape, label.item()
    (torch.Size([3, 96, 96]), 1.0)
    """

    def __init__(
        self,
        tiles: Tiles,
        labels: npt.NDArray[np.int64] | None = None,
        *,
        rows: Indices | None = None,
        resize: Resize | None = None,
        augment: Pipeline | TileAugmentation | PerTile | None = None,
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

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: int | Draw | list[int] | list[Draw]) -> Batch:
        """Return an image of shape (3, height, width), uint8, and its label.

        For a list, return images of shape (batch, 3, height, width), channels last in memory,
        and labels of shape (batch,).
        """
        if isinstance(draw, list):
            return self._batch([one if isinstance(one, tuple) else (0, one) for one in draw])
        images, labels = self._batch([draw if isinstance(draw, tuple) else (0, draw)])
        return images[0], labels[0]

    def _batch(self, draws: Sequence[Draw]) -> Batch:
        epochs, indices = np.array(draws, np.int64).T
        images = self.tiles[self.rows[indices]]
        if self.resize is not None:
            images = np.stack([self.resize(image) for image in images])
        if self.augment is not None:
            images = self.augment(images, transforms.tile_keys(self.seed, epochs, indices))
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(self.labels[indices])


class EpochSampler(Sampler[list[Draw]]):
    """Batches of `(epoch, index)`, in an order that follows from the seed and the epoch.

    The last tiles of an epoch that fill no batch are left out, other ones each epoch. Several
    processes take their shares of the same batches.

    Parameters
    ----------
    count
        Tiles in the dataset.
    batch_size
        Of all processes together.

    Attributes
    ----------
    epoch
        Set it before each pass; it counts from 1.
    first
        The step to begin at, for an epoch that was cut short.
    steps
        Batches in a whole epoch.
    """

    def __init__(
        self, count: int, *, batch_size: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.steps = count // batch_size
        self.epoch = 1
        self.first = 0
        self._count = count
        self._share = slice(rank, None, processes)

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self._order()
        for step in range(self.first, self.steps):
            yield [(self.epoch, index) for index in self._slice(order, step)[self._share]]

    def batch(self, step: int) -> list[int]:
        """Return the tiles of one step of the epoch, those of all processes."""
        return self._slice(self._order(), step)

    def _order(self) -> Indices:
        return np.random.default_rng([self.seed, self.epoch]).permutation(self._count)

    def _slice(self, order: Indices, step: int) -> list[int]:
        batch: list[int] = order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
        return batch


def recipe_dataset(
    tiles: Tiles,
    recipe: Recipe,
    *,
    labels: npt.NDArray[np.int64] | None = None,
    rows: Indices | None = None,
    train: bool = False,
) -> TileDataset:
    """Return rows of the store as a recipe wants them, augmented where it is to train.

    Tiles that shrink are resized once, into a temporary file; others are read as they are needed.
    """
    resize = Resize(recipe.crop, recipe.size, recipe.interpolation)
    shrinks = recipe.size < competition.TILE_SIZE
    if shrinks:
        rows = np.arange(len(tiles)) if rows is None else rows
        labels = None if labels is None else labels[rows]
        tiles, rows = _resize_all(tiles, rows, resize), None
    return TileDataset(
        tiles,
        labels,
        rows=rows,
        resize=None if shrinks else resize,
        augment=transforms.augmentation(recipe.augment, recipe.stain_strength) if train else None,
        seed=recipe.seed,
    )


def train_loader(dataset: TileDataset, *, batch_size: int, workers: int) -> DataLoader[Batch]:
    """Return a loader of shuffled whole batches; set its `sampler.epoch` before each pass.

    Of several processes each gets its share of every batch.

    Raises
    ------
    KitError
        If the tiles do not fill a batch, or the processes cannot share it equally.
    """
    rank, processes = distributed.rank(), distributed.size()
    if batch_size % processes:
        raise KitError(
            f"--batch-size {batch_size} cannot be shared by {processes} processes: choose a "
            f"multiple of {processes}"
        )
    check_batch(len(dataset), batch_size)
    sampler = EpochSampler(
        len(dataset), batch_size=batch_size, seed=dataset.seed, rank=rank, processes=processes
    )
    return _loader(dataset, sampler, workers)


def check_batch(tiles: int, batch_size: int) -> None:
    """Refuse training tiles that do not fill a batch."""
    if tiles < batch_size:
        raise KitError(
            f"{tiles} training tiles do not fill a batch of {batch_size}: choose a smaller "
            "--batch-size"
        )


def eval_loader(
    dataset: TileDataset, *, workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[Batch]:
    """Return a loader of the tiles in their order, each once, in batches of about one size.

    Of several processes the first gets the first tiles, and so on.

    Raises
    ------
    KitError
        If there are fewer tiles than processes.
    """
    if len(dataset) < processes:
        raise KitError(f"{len(dataset)} held-out tiles are too few for {processes} processes")
    own = np.array_split(np.arange(len(dataset)), processes)[rank]
    batches = np.array_split(own, max(1, -(-len(own) // EVAL_BATCH_SIZE)))
    return _loader(dataset, [batch.tolist() for batch in batches], workers)


def _loader(
    dataset: TileDataset, batches: Iterable[list[Draw]] | Iterable[list[int]], workers: int
) -> DataLoader[Batch]:
    """Return a loader whose items are batches already, so that nothing is collated again."""
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_init_worker,
        # Its own: a loader would else draw from the generator that dropout draws from.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
    )


def _init_worker(_: int) -> None:
    """Keep OpenCV to one thread, and leave it to the parent to stop on SIGTERM."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _resize_all(tiles: Tiles, rows: Indices, resize: Resize) -> Tiles:
    """Resize rows of the store, side by side, to (rows, size, size, 3)."""
    resized = _scratch((len(rows), resize.size, resize.size, competition.CHANNELS))
    # An item of a memory-mapped array takes longer to make than most tiles to resize.
    tiles = np.asarray(tiles)

    def fill(positions: Indices) -> None:
        for position in positions:
            resize(tiles[rows[position]], out=resized[position])

    with ThreadPoolExecutor(torch.get_num_threads()) as executor:
        list(executor.map(fill, np.array_split(np.arange(len(rows)), 1 + len(rows) // 256)))
    return resized


def _scratch(shape: tuple[int, ...]) -> Tiles:
    """Return an array in an unnamed temporary file, whose pages may leave the memory again."""
    with tempfile.TemporaryFile() as file:
        try:
            # A disk that fills up later would kill the process.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            raise KitError(
                f"no room for {math.prod(shape):,} bytes of resized tiles in "
                f"{tempfile.gettempdir()}: set TMPDIR to a folder with room ({error.strerror})"
            ) from error
        return np.asarray(np.memmap(file, np.uint8, shape=shape))
