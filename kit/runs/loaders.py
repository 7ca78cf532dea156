"""The tiles of a run that is being trained, as its processes load them."""

import copy
from functools import cached_property

import torch
from torch.utils.data import DataLoader

from kit.base import Indices, Recipe
from kit.data import (
    Batch,
    Holdout,
    Store,
    TileDataset,
    eval_loader,
    fits_on_device,
    recipe_augmentation,
    recipe_dataset,
    train_loader,
)
from kit.training import distributed


class RunLoaders:
    """Loaders of the tiles to train on and of those that are held out.

    Parameters
    ----------
    workers
        Processes that load the training tiles; 0 loads them in this one, or holds them in a
        GPU's memory where they fit.

    Attributes
    ----------
    holds_tiles
        Whether they are held in the device's memory.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        holdout: Holdout,
        *,
        device: torch.device,
        workers: int,
    ) -> None:
        self.recipe = recipe
        self.store = store
        self.holdout = holdout
        self.device = device
        self.workers = workers
        # What is wrong with a person's own pipeline is told before anything is written.
        recipe_augmentation(recipe)
        self.holds_tiles = not workers and fits_on_device(recipe, len(store.train), device)

    @cached_property
    def valid(self) -> DataLoader[Batch]:
        """The held-out tiles, in the order of split.csv."""
        return eval_loader(self._dataset(self.holdout.valid), pin_memory=self._pins)

    @cached_property
    def plain_train(self) -> DataLoader[Batch]:
        """The training tiles, each once, without augmentation."""
        plain = copy.copy(self._train_dataset)
        plain.augment = None
        return eval_loader(plain, pin_memory=self._pins)

    def train_share(self) -> DataLoader[Batch]:
        """Return the training tiles that this process trains on."""
        return train_loader(
            self._train_dataset,
            batch_size=self.recipe.batch_size,
            workers=self.workers,
            pin_memory=self._pins,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def valid_share(self) -> DataLoader[Batch]:
        """Return the held-out tiles that this process evaluates."""
        valid = self.valid.dataset
        assert isinstance(valid, TileDataset)
        return eval_loader(
            valid,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            pin_memory=self._pins,
        )

    @property
    def _pins(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def _train_dataset(self) -> TileDataset:
        return self._dataset(self.holdout.train, train=True)

    def _dataset(self, rows: Indices, *, train: bool = False) -> TileDataset:
        return recipe_dataset(
            self.store.train.tiles,
            self.recipe,
            labels=self.store.labels,
            rows=rows,
            train=train,
            device=self.device if self.holds_tiles else None,
        )
