"""Whether the cores that a training computes on are busy with something else."""

import time
from contextlib import suppress
from pathlib import Path

import torch

# Seconds between looks, and the share of them from which waiting is worth a word: two threads of
# which one waits half of the time are about as fast as one.
WINDOW = 20.0
SHARE = 0.4


def thread_waits() -> dict[int, float]:
    """Return how long each thread of this process was ready and waited for a core, in seconds.

    Empty where the system does not count it: Linux does (proc(5), schedstat).
    """
    waits = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        # A thread may end between the listing and the reading.
        with suppress(OSError):
            waits[int(path.parent.name)] = int(path.read_text().split()[1]) / 1e9
    return waits


class CoreWatch:
    """Notices once that threads which work together wait for a core.

    Each step waits for its slowest thread. So a single busy program on one of two cores can make
    a small network's training a hundred times slower than one thread is (benchmarks/README.md).
    """

    def __init__(self) -> None:
        self._told = False
        self._start_window()

    def _start_window(self) -> None:
        self._start, self._waits = time.monotonic(), thread_waits()

    def note(self) -> str:
        """Return what to say about the last seconds, if anything."""
        seconds = time.monotonic() - self._start
        if self._told or seconds < WINDOW:
            return ""
        waits = (wait - self._waits.get(one, 0.0) for one, wait in thread_waits().items())
        waited = max(waits, default=0.0)
        self._start_window()
        if torch.get_num_threads() == 1 or waited < SHARE * seconds:
            return ""
        self._told = True
        return (
            f"note: a thread of this training waited {waited:.0f} of {seconds:.0f} s for a core "
            "that other processes use, and the rest waited for it: with OMP_NUM_THREADS=1 before "
            "the command it may be faster"
        )
