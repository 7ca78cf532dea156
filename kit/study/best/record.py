"""What a search for the best submission remembers: the time that it has used, and its parts.

OUT/clock         touched each second: when it was begun, and, by its own time, when it ended
OUT/journal.json  what was measured, planned, trained and found
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from kit.base import KitError, Precision, read_json, write_json, write_text
from kit.runs import Speed
from kit.stats import Interval

State = Literal["begun", "finished", "late", "failed"]
JOURNAL, CLOCK = "journal.json", "clock"
_TICK = 1.0


class Clock:
    """The time that a command has used, over all its starts, and its limit.

    What a process used that was killed is known to a second; what lay between two starts is free.

    Parameters
    ----------
    limit
        In seconds.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.path = folder / CLOCK
        self.limit = limit
        self._before = self._used_before()
        self._offset = time.monotonic() - process_age()
        self._started = time.time() - process_age()

    @property
    def used(self) -> float:
        """Seconds used until now."""
        return self._before + time.monotonic() - self._offset

    @property
    def left(self) -> float:
        """Seconds left; below 0 when it is late."""
        return self.limit - self.used

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Keep the record of the time while the block lasts."""
        write_text(self.path, f"{self._before} {self._started}\n")
        stop = threading.Event()
        thread = threading.Thread(target=self._tick, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(_TICK):
            self._touch()
        self._touch()

    def _touch(self) -> None:
        now = self._started + self.used - self._before
        os.utime(self.path, (now, now))

    def _used_before(self) -> float:
        try:
            before, started = map(float, self.path.read_text("utf-8").split())
            return before + max(0.0, self.path.stat().st_mtime - started)
        except FileNotFoundError:
            return 0.0
        except ValueError as error:
            raise KitError(f"{self.path} is damaged: choose another --out") from error


@dataclass
class Entry:
    """What is known of a part.

    Attributes
    ----------
    epochs
        That it was begun with, and by its end those that it had.
    planned
        The seconds that it was to take, predicting included.
    began
        When, by the clock.
    seconds
        That it took, its predicting of the test tiles apart.
    auc, together
        On the holdout, of itself and of the mean with all parts before it, chosen and judged on
        different tiles.
    reason
        Why it is no part of the mean.
    """

    state: State
    epochs: int
    planned: float
    began: float
    seconds: float = 0.0
    auc: Interval | None = None
    together: Interval | None = None
    reason: str = ""


@dataclass
class Journal:
    """What a search remembers from one start to the next.

    Attributes
    ----------
    folds
        Of the cross-validations that all parts are; 0 for one holdout, None while not decided.
    precisions, speeds
        By the part's name: what was measured.
    pace
        How much longer parts take than by these speeds, as the last ones have shown.
    parts
        By name, in the order in which they were begun.
    """

    folds: int | None = None
    precisions: dict[str, Precision] = field(default_factory=dict)
    speeds: dict[str, Speed] = field(default_factory=dict)
    pace: float = 1.0
    parts: dict[str, Entry] = field(default_factory=dict)

    def finished(self) -> list[str]:
        """Return the names of the parts that are finished."""
        return [name for name, entry in self.parts.items() if entry.state == "finished"]


def process_age() -> float:
    """Return the seconds since this process began, its libraries' loading included."""
    fields = Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def read_journal(folder: Path) -> Journal:
    """Read a journal, or begin one; parts that were late have another chance.

    Raises
    ------
    KitError
        If it is damaged.
    """
    path = folder / JOURNAL
    if not path.exists():
        return Journal()
    journal = read_json(path, Journal, what="the journal of kernels/best.py")
    for entry in journal.parts.values():
        if entry.state == "late":
            entry.state = "begun"
    return journal


def write_journal(folder: Path, journal: Journal) -> None:
    """Write a journal, whole or not at all."""
    write_json(folder / JOURNAL, asdict(journal))
