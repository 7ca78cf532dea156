"""Runs of many epochs: what they hold of the machine does not grow."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import competition_files, write_zip

from kit import models
from kit.base import EpochResult, Recipe
from kit.data import TileDataset, eval_loader, pack_tiles, train_loader
from kit.runs import Run
from kit.training import TrainingState, fit

RECIPE = Recipe(size=8, widths=(4, 8), batch_size=8)
WARM_UP = 20
EPOCHS = [60, pytest.param(2000, marks=pytest.mark.soak)]
PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """What this process and its children hold."""

    resident: int
    files: int
    threads: int
    processes: int


def usage() -> Usage:
    own = Path("/proc/self")
    children = [Path("/proc") / pid for pid in _children(own)]
    processes = [own, *children]
    return Usage(
        sum(int((process / "statm").read_text().split()[1]) * PAGE for process in processes),
        sum(len(list((process / "fd").iterdir())) for process in processes),
        sum(len(list((process / "task").iterdir())) for process in processes),
        len(processes),
    )


def _children(process: Path) -> list[str]:
    return [
        pid
        for task in (process / "task").iterdir()
        for pid in (task / "children").read_text().split()
    ]


def fitting(epochs: int) -> Iterator[EpochResult]:
    """Train the smallest network on sixteen tiles of 8x8 pixels."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    train = TileDataset(tiles, np.arange(16) % 2)
    return fit(
        TrainingState(models.create_model(RECIPE), replace(RECIPE, epochs=epochs)),
        train_loader(train, batch_size=8, workers=0),
        eval_loader(train),
        progress=False,
    )


def assert_steady(epochs: Iterator[EpochResult], kibibytes_an_epoch: float) -> None:
    """After the first epochs no file, thread or process is added, and memory hardly."""
    usages = [usage() for _ in epochs][WARM_UP:]
    slope = np.polyfit(range(len(usages)), [one.resident for one in usages], 1)[0] / 1024
    first, last = usages[0], usages[-1]
    print(f"{WARM_UP + len(usages)} epochs, {slope:.2f} KiB an epoch: from {first} to {last}")
    for one in usages:
        assert one[1:] == first[1:]
    assert slope < kibibytes_an_epoch


@pytest.mark.parametrize("epochs", EPOCHS)
def test_a_long_fit_holds_no_more_than_a_short_one(epochs: int) -> None:
    assert_steady(fitting(epochs), 2 if epochs > 1000 else 50)


@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_long_run_holds_no_more_than_a_short_one(
    tmp_path: Path, epochs: int, workers: int
) -> None:
    """With all that a run keeps each epoch: its checkpoint, its history, its averages."""
    write_zip(tmp_path / "data", competition_files(train=24, test=2))
    recipe = Recipe(size=8, widths=(4, 8), batch_size=8, epochs=epochs, ema=0.9, augment="stain")
    run = Run(
        recipe, pack_tiles(tmp_path / "data"), tmp_path / "run", device="cpu", workers=workers
    )
    assert_steady(run.train(progress=False), 4 if epochs > 1000 else 100)
    assert len(run.history) == epochs
