"""A training whose threads wait for cores that others use says so."""

import os
import time
from pathlib import Path

import pytest
import torch
from conftest import Forked

from kit.training import TrainingBar, cores


def test_the_waits_are_those_that_the_system_counts() -> None:
    own = Path(f"/proc/self/task/{os.getpid()}/schedstat")
    before = int(own.read_text().split()[1]) / 1e9
    told = cores.thread_waits()[os.getpid()]
    assert before <= told <= int(own.read_text().split()[1]) / 1e9


def train_on_one_core(threads: int, printed: Path) -> None:
    """Move a bar while threads multiply, all on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(threads)
    cores.WINDOW = 0.2
    matrix = torch.ones(256, 256)
    said: list[str] = []
    with TrainingBar() as bar:
        bar.say = said.append
        end = time.monotonic() + (60 if threads > 1 else 0.5)
        while not said and time.monotonic() < end:
            matrix @ matrix
            bar.advance(0, "")
        for _ in range(2):
            time.sleep(0.25)
            bar.advance(0, "")
    printed.write_text("\n".join(said))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_that_wait_for_each_other_on_a_busy_core_are_told_once(
    threads: int, tmp_path: Path
) -> None:
    printed = tmp_path / "printed"
    process = Forked(target=train_on_one_core, args=(threads, printed))
    process.start()
    process.join()
    said = printed.read_text()
    assert said.count("OMP_NUM_THREADS=1") == threads - 1
    assert len(said.splitlines()) == threads - 1
