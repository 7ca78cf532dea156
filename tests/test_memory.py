"""Commands whose memory runs full: one message, and what helps."""

import ctypes
import os
import resource
import runpy
import sys
from multiprocessing import Queue
from pathlib import Path

import pytest
import torch
from conftest import FORKSERVER, ROOT, Forked, competition_files, run_kernel, write_zip

from kit.data import open_store
from kit.training.device import reuse_memory

# Of glibc's malloc.h.
M_ARENA_MAX = -8
PAGE = os.sysconf("SC_PAGE_SIZE")
# A network of one wide convolution: its first map alone takes 254 * 254 * 64 * 4 bytes a tile.
OPTIONS = ["--size", "256", "--widths", "64", "2", "--batch-size", "2", "--epochs", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_zip(folder, competition_files(train=40, test=12))
    # Here, as the threads that pack take addresses, too.
    open_store(folder)
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    run_kernel("train", "--data", data, "--out", data / "run", "--device", "cpu", *OPTIONS)
    return data / "run"


def starved(room: int, name: str, *options: object, log: Path) -> tuple[int | None, str]:
    """Run a command that may allocate little more than its libraries have."""
    argv = [str(ROOT / "kernels" / f"{name}.py"), *map(str, options)]
    process = Forked(target=_run_starved, args=(room, argv, log))
    process.start()
    process.join()
    return process.exitcode, log.read_text()


def _run_starved(room: int, argv: list[str], log: Path) -> None:
    with log.open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    # One arena: each further one that a thread begins takes 64 MB of addresses, now or never.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def test_training_without_memory_names_the_batch_size(data: Path, tmp_path: Path) -> None:
    # Room for what comes before, which looks at one tile, and not for the maps of sixteen.
    options = [*OPTIONS, "--batch-size", "16", "--data", data, "--out", tmp_path / "run"]
    status, said = starved(200 * 2**20, "train", *options, log=tmp_path / "log")
    assert status == 1
    assert "error: the memory of cpu is full while training: choose a smaller --batch-size" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "doing"), [([], "predicting"), (["--adapt-bn"], "recalibrating")]
)
def test_predicting_without_memory_is_a_message(
    run: Path, data: Path, tmp_path: Path, options: list[str], doing: str
) -> None:
    options += ["--run", str(run), "--data", str(data), "--out", str(tmp_path / "s.csv")]
    status, said = starved(100 * 2**20, "predict", *options, log=tmp_path / "log")
    assert status == 1
    assert f"error: the memory of cpu is full while {doing}: end other programs" in said
    assert "Traceback" not in said


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_the_memory_of_a_large_map_is_used_again() -> None:
    pages = FORKSERVER.Queue()
    process = Forked(target=_count_faults, args=(pages,))
    process.start()
    faults = pages.get(timeout=60)
    process.join()
    # Each of the ten takes 16,384 pages of 4 kB where the system maps it.
    assert faults * PAGE < 2 * 64 * 2**20


def _count_faults(pages: "Queue[int]") -> None:
    reuse_memory()
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    pages.put(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
