"""Loaders: batches of a dataset's tiles, in an order that follows from seed and epoch."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from kit.base import Indices, KitError
from kit.data.datasets import Batch, Draws, TileDataset
from kit.data.split import check_batch
from kit.data.workers import init_worker, share

EVAL_BATCH_SIZE = 256
# What keeps a GPU busy.
DEVICE_EVAL_BATCH_SIZE = 1024


class EpochSampler(Sampler[Draws]):
    """Batches of `(epoch, indices)`, in an order that follows from the seed and the epoch.

    Each epoch leaves out the last tiles, which fill no batch: other ones each time. Several
    processes take their shares of the same batches.

    Parameters
    ----------
    count
        Tiles in the dataset.
    batch_size
        Of all processes together.
    device
        Of the indices, which are copied there once per epoch; None leaves them NumPy's.

    Attributes
    ----------
    epoch
        Of the next pass; it counts from 1, and a pass that it is not set for takes the next one.
    first
        The step to begin at, in an epoch that was interrupted.
    steps
        Batches in a whole epoch.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.steps = count // batch_size
        self.epoch = 1
        self.first = 0
        self._count = count
        self._device = device
        self._share = slice(rank, None, world_size)

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[Draws]:
        """Yield this process's share of each batch."""
        self._begin_pass()
        order = self._order()
        indices = order if self._device is None else torch.from_numpy(order).to(self._device)
        for step in range(self.first, self.steps):
            yield self.epoch, indices[self._slice(step)][self._share]

    @property
    def epoch(self) -> int:
        """The epoch of the pass that is under way, or of the next one."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch, self._is_passed = epoch, False

    def _begin_pass(self) -> None:
        if self._is_passed:
            self.epoch, self.first = self.epoch + 1, 0
        self._is_passed = True

    def batch(self, step: int) -> list[int]:
        """Return the tiles of one step of the epoch, those of all processes."""
        batch: list[int] = self._order()[self._slice(step)].tolist()
        return batch

    def _order(self) -> Indices:
        return np.random.default_rng([self.seed, self.epoch]).permutation(self._count)

    def _slice(self, step: int) -> slice:
        return slice(step * self.batch_size, (step + 1) * self.batch_size)


def train_loader(
    dataset: TileDataset,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader of shuffled whole batches, in another order each epoch.

    Of several processes each gets its share of every batch.

    Parameters
    ----------
    pin_memory
        Whether batches lie where a GPU can copy them from while the host goes on.

    Raises
    ------
    KitError
        If the tiles do not fill a batch, or the processes cannot share it equally.
    """
    if batch_size % world_size:
        raise KitError(
            f"--batch-size {batch_size} cannot be shared by {world_size} processes: choose a "
            f"multiple of {world_size}"
        )
    check_batch(len(dataset), batch_size)
    sampler = EpochSampler(
        len(dataset),
        batch_size=batch_size,
        seed=dataset.seed,
        rank=rank,
        world_size=world_size,
        device=dataset.device,
    )
    return _loader(dataset, sampler, workers, pin_memory=pin_memory and dataset.device is None)


def eval_loader(
    dataset: TileDataset, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Return a loader of the tiles in their order, each once, in batches of about one size.

    Of several processes the first gets the first tiles, and so on.

    Parameters
    ----------
    pin_memory
        See `train_loader`.

    Raises
    ------
    KitError
        If there are fewer tiles than processes.
    """
    if len(dataset) < world_size:
        raise KitError(f"{len(dataset)} held-out tiles are too few for {world_size} processes")
    own = np.array_split(np.arange(len(dataset)), world_size)[rank]
    size = EVAL_BATCH_SIZE if dataset.device is None else DEVICE_EVAL_BATCH_SIZE
    count = max(1, -(-len(own) // size))
    if dataset.device is None:
        batches: Sequence[Indices | Tensor] = np.array_split(own, count)
    else:
        batches = torch.tensor_split(torch.from_numpy(own).to(dataset.device), count)
    pin_memory = pin_memory and dataset.device is None
    return _loader(dataset, [(0, batch) for batch in batches], pin_memory=pin_memory)


def _loader(
    dataset: TileDataset, batches: Iterable[Draws], workers: int = 0, *, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Return a loader whose items are batches already, which are not collated again."""
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        collate_fn=share,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=init_worker,
        # Its own: a loader would else draw from the generator that dropout draws from.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
    )
