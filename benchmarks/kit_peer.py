"""The kit's own training, epoch by epoch, and the ceilings that it is held against.

kit       fit over the packed tiles, as a run does it
ceiling   the same network, optimiser and precision on one batch held in memory
eager     the ceiling of float32 as first written
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import plain
import torch
from serve import Options, Task, require, serve
from torch import Tensor, nn

from kit import models
from kit.base import Recipe, read_recipe
from kit.data import eval_loader, fits_on_device, open_store, recipe_dataset, train_loader
from kit.training import (
    GraphedCall,
    TrainingState,
    choose_device,
    choose_precision,
    compute_gradients,
    fit,
    prepare_process,
)

# Of training tiles to one that is evaluated, which then costs next to nothing.
TRAIN_TO_VALID = 48


def create_recipe(options: Options) -> Recipe:
    """Return the recipe named `recipe`, else that of model, size and augment, and of `batch`."""
    # As many epochs as there are rounds.
    common = {"batch_size": options["batch"], "epochs": 10**6}
    if name := options.get("recipe"):
        return replace(read_recipe(name), **common, pretrained=False, frozen_epochs=0)
    names = ("model", "size", "augment")
    return Recipe(**common, **{name: options[name] for name in names})


def create_state(recipe: Recipe, options: Options) -> TrainingState:
    """Return what a run of the recipe starts from."""
    chosen = choose_device(options["device"])
    return TrainingState(
        models.create_model(recipe),
        recipe,
        steps_per_epoch=options["tiles"] // recipe.batch_size,
        device=chosen,
        dtype=choose_precision(recipe.precision, chosen),
    )


def one_batch(options: Options) -> tuple[Tensor, Tensor]:
    """Return the store's first tiles as float images in [0, 1], and their labels."""
    tiles = open_store(Path(options["data"]))
    rows = np.arange(options["batch"])
    recipe = create_recipe(options)
    train = recipe_dataset(tiles.train.tiles, recipe, labels=tiles.labels, rows=rows)
    images, labels = train[rows.tolist()]
    return images.float().contiguous() / 255, labels


def prepare(options: Options) -> Task:
    """Make one of KINDS from options kind, data, device, model, size, batch, augment, tiles."""
    require(options["device"])
    prepare_process()
    return KINDS[options["kind"]](options)


def prepare_kit(options: Options) -> Task:
    """Train on the first tiles of the store; on a GPU repeated to as many as are asked for."""
    recipe = create_recipe(options)
    tiles = open_store(Path(options["data"]))
    state = create_state(recipe, options)
    held = fits_on_device(recipe, options["tiles"], state.device)
    train, valid = (
        recipe_dataset(
            tiles.train.tiles,
            recipe,
            labels=tiles.labels,
            rows=rows,
            train=is_train,
            device=state.device if held else None,
        )
        for rows, is_train in (
            (np.resize(np.arange(len(tiles.train)), options["tiles"]), True),
            (_last_of_each_class(tiles.labels, options["tiles"] // TRAIN_TO_VALID), False),
        )
    )
    count = options["tiles"] // recipe.batch_size * recipe.batch_size
    epochs = fit(
        state,
        train_loader(train, batch_size=recipe.batch_size, workers=0),
        eval_loader(valid),
        progress=False,
    )

    def run() -> int:
        next(epochs)
        return int(count)

    return Task(run, _settings(state), ("torch", "timm"))


def prepare_ceiling(options: Options) -> Task:
    """Train on one batch with the kit's own network, optimiser, precision and layout."""
    recipe = create_recipe(options)
    state = create_state(recipe, options)
    images, labels = one_batch(options)
    images = images.to(state.device).contiguous(memory_format=torch.channels_last)
    labels = labels.to(state.device)
    # What the network is given is ready; all else of a step is the kit's.
    state.normalize = nn.Identity()
    state.model.train()
    compute: Callable[[], Tensor] = partial(compute_gradients, state, state.model, images, labels)
    if state.device.type == "cuda":
        compute = partial(GraphedCall(compute, state.device))

    def run() -> int:
        steps = options["tiles"] // recipe.batch_size
        for _ in range(steps):
            figures = compute()
            state.update_weights()
        figures.tolist()
        return int(steps * recipe.batch_size)

    return Task(run, _settings(state), ("torch",))


def prepare_eager(options: Options) -> Task:
    """Train on one batch in float32, NCHW, with Adam as it comes."""
    trainer = plain.Trainer(options["model"], options["device"])
    images, labels = one_batch(options)
    batch = images.to(trainer.device), labels.to(trainer.device)
    steps = options["tiles"] // options["batch"]
    settings = f"fp32, NCHW, {torch.get_num_threads()} threads"
    return Task(lambda: trainer.train(repeat(batch, steps)), settings, ("torch",))


def _last_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    # One at least, of which an epoch's figures are made.
    each = max(1, count // 2)
    return np.concatenate([np.flatnonzero(labels == one)[-each:] for one in (0, 1)])


KINDS = {"kit": prepare_kit, "ceiling": prepare_ceiling, "eager": prepare_eager}


def _settings(state: TrainingState) -> str:
    dtype = str(state.dtype).removeprefix("torch.")
    return f"{dtype}, channels last, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    serve(prepare)
