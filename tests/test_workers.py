"""Processes that load batches: a lost one ends the training in one line; none copies the tiles."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Forked, competition_files, start_kernel, write_zip
from torch.utils.data import DataLoader

from kit.base import Recipe
from kit.data import (
    LostWorkerError,
    TileDataset,
    pack_tiles,
    recipe_dataset,
    train_loader,
    watched_workers,
)

TILES = np.random.default_rng(0).integers(0, 256, (64, 96, 96, 3), dtype=np.uint8)
_NEW_MOUNTS = 0x0002_0000  # CLONE_NEWNS of sched.h


def loader_of(workers: int, tiles: np.ndarray = TILES) -> DataLoader[tuple[torch.Tensor, ...]]:
    return train_loader(TileDataset(tiles), batch_size=4, workers=workers)


def worker_ids(loader: DataLoader[tuple[torch.Tensor, ...]]) -> list[int]:
    return [worker.pid for worker in loader._iterator._workers]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "was killed, as the kernel does when memory is short: choose fewer"),
        (signal.SIGUSR1, "ended by SIGUSR1: --workers 0 loads in this process"),
    ],
)
def test_a_lost_worker_is_told_in_one_line_and_the_others_end(
    number: signal.Signals, message: str
) -> None:
    loader = loader_of(workers=2)
    start = time.monotonic()
    with pytest.raises(LostWorkerError, match=message), watched_workers(loader):
        batches = iter(loader)
        next(batches)
        ids = worker_ids(loader)
        os.kill(ids[0], number)
        for _ in batches:
            time.sleep(0.1)
    assert time.monotonic() - start < 10
    assert not [pid for pid in ids if Path(f"/proc/{pid}").exists()]


def test_an_error_of_the_training_is_its_own_and_the_workers_end() -> None:
    loader = loader_of(workers=2)
    with pytest.raises(RuntimeError, match=r"^mine$"), watched_workers(loader):
        next(iter(loader))
        ids = worker_ids(loader)
        raise RuntimeError("mine")
    assert not [pid for pid in ids if Path(f"/proc/{pid}").exists()]


def test_signals_to_all_processes_are_left_to_the_parent() -> None:
    loader = loader_of(workers=1)
    with watched_workers(loader):
        batches = iter(loader)
        next(batches)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker_ids(loader)[0], number)
        assert len(list(batches)) == 15


HELD = """
import numpy as np
from kit.data import TileDataset, train_loader, watched_workers

def batches(loader):
    with watched_workers(loader):
        yield from loader

dataset = TileDataset(np.zeros((64, 8, 8, 3), np.uint8))
held = batches(train_loader(dataset, batch_size=4, workers=2))
next(held)
raise ValueError("uncaught")
"""


def test_a_process_ends_by_an_error_that_nobody_catches() -> None:
    """Python asks workers by SIGTERM, which they ignore; it once waited for ever."""
    command = [sys.executable, "-c", HELD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: uncaught\n")


def load_with_little_shared_memory(size: str, log: Path) -> None:
    """Be a process whose /dev/shm has so much room, alone."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]
    libc = ctypes.CDLL(None)
    # Where mounts are shared with other namespaces, they must not be from here on.
    alone = ["mount", "--make-rprivate", "/"]
    if libc.unshare(_NEW_MOUNTS) or any(
        subprocess.run(command, capture_output=True).returncode for command in (alone, mount)
    ):
        log.write_text("not allowed")
        return
    loader = loader_of(workers=2)
    try:
        with watched_workers(loader):
            for _ in loader:
                pass
    except LostWorkerError as error:
        log.write_text(str(error))


@pytest.mark.parametrize("size", ["64k", "192k"])
def test_full_shared_memory_is_told_with_two_remedies(tmp_path: Path, size: str) -> None:
    """No room for a worker at all, or none for its batches; a batch was once lost in silence."""
    arguments = (size, tmp_path / "log")
    process = Forked(target=load_with_little_shared_memory, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    said = (tmp_path / "log").read_text()
    if said == "not allowed":
        pytest.skip("mounting a small /dev/shm needs to be root")
    assert "/dev/shm (0 MB) is too small for the batches of 2 workers. Choose --workers 0" in said
    assert "--shm-size" in said


@pytest.mark.parametrize(
    ("kernel", "run", "step"),
    [
        ("train", "out", "go on with: python kernels/train.py --resume --out {} --workers 0"),
        ("compare", "out/runs/before-0", "the same command goes on with --workers 0"),
    ],
)
def test_a_command_whose_worker_is_killed_says_how_to_go_on(
    tmp_path: Path, kernel: str, run: str, step: str
) -> None:
    write_zip(tmp_path, competition_files(train=80))
    pack_tiles(tmp_path)
    options = ("--data", tmp_path, "--out", tmp_path / "out", "--workers", 1, "--epochs", 1000)
    (tmp_path / "log").mkdir()
    process = start_kernel(kernel, *options, "--batch-size", 8, log=tmp_path / "log")
    while not (tmp_path / run / "last.pt").exists():
        assert process.is_alive()
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.join(60)
    assert process.exitcode == 1
    said = (tmp_path / "log" / "stderr").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: a loader worker (process ")
    assert said.endswith(f": {step.format(tmp_path / 'out')}\n")


def pixels_in(dataset: TileDataset, method: str) -> list[bytes]:
    """Load all tiles in one worker that is started by a method."""
    loader = DataLoader(dataset, batch_size=16, num_workers=1, multiprocessing_context=method)
    return [images.numpy().tobytes() for images, _ in loader]


@pytest.mark.parametrize("size", [32, 96])
def test_a_worker_that_is_not_forked_maps_the_tiles_again(data: Path, size: int) -> None:
    """The store's file, and the temporary one of resized tiles, which has no name."""
    store = pack_tiles(data)
    dataset = recipe_dataset(store.train.tiles, Recipe(size=size), labels=store.labels)
    here = [images.numpy().tobytes() for images, _ in DataLoader(dataset, batch_size=16)]
    assert pixels_in(dataset, "forkserver") == here
    assert len(ForkingPickler.dumps(dataset)) < 20_000


def test_parts_of_mapped_tiles_are_plain_arrays_that_travel_as_such(data: Path) -> None:
    tiles = pack_tiles(data).train.tiles
    assert type(tiles[3:5]) is np.ndarray
    assert type(tiles[[1, 0]]) is np.ndarray
    for part in (tiles[3:5], tiles.reshape(-1)):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)), part)
