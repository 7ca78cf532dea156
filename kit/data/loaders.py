"""Loaders: batches of a dataset's tiles, in an order that follows from seed and epoch."""

import signal
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from kit.base import Indices, KitError
from kit.data.datasets import Batch, Draw, TileDataset
from kit.data.split import check_batch

EVAL_BATCH_SIZE = 256


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


def train_loader(
    dataset: TileDataset, *, batch_size: int, workers: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[Batch]:
    """Return a loader of shuffled whole batches; set its `sampler.epoch` before each pass.

    Of several processes each gets its share of every batch.

    Raises
    ------
    KitError
        If the tiles do not fill a batch, or the processes cannot share it equally.
    """
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
