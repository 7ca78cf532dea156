"""A bar over one training or several, with the time that is left."""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType

from tqdm import tqdm

from kit.training.cores import CoreWatch


@dataclass(frozen=True)
class Progress:
    """What a bar shows.

    Attributes
    ----------
    done
        Trainings, the shares of those under way among them.
    skipped
        Those of them that were done before the bar began.
    text
        What is being done.
    """

    done: float
    skipped: float
    text: str


_told: Callable[[Progress | str], None] | None = None


def tell_instead(tell: Callable[[Progress | str], None]) -> None:
    """Have the bars of this process draw and print nothing, and tell what they would show."""
    global _told
    _told = tell


class TrainingBar:
    """A bar on stderr over all steps of one or several trainings.

    On a terminal it moves all the time, in a file twice a minute. In a process that works for
    another one (see `share_out`) it is that one's bar that moves.

    Parameters
    ----------
    trainings
        Such as the folds of a cross-validation. Each counts as one, whatever its steps.
    shown
        Whether to draw it at all.

    Attributes
    ----------
    label
        Of the training that is under way; stands in front of its epoch.
    """

    def __init__(self, trainings: int = 1, *, shown: bool = True) -> None:
        self.label = ""
        self._trainings = trainings
        self._done = 0.0
        self._skipped = 0.0
        self._start = time.monotonic()
        self._cores = CoreWatch() if shown else None
        self._tell = _told if shown else None
        self._bar = tqdm(
            total=trainings,
            bar_format="{desc} {percentage:3.0f}%|{bar}|",
            leave=False,
            mininterval=0.1 if sys.stderr.isatty() else 30,
            miniters=0,
            disable=not shown or _told is not None,
        )

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def skip(self, share: float) -> None:
        """Count what was trained before this bar began: trainings, or a share of one."""
        self._skipped += share
        self.advance(share, "")

    def reach(self, count: float) -> None:
        """Say how many trainings are finished, whoever trained them."""
        self.advance(count - self._done, "")

    def show(self, progress: Progress) -> None:
        """Show what others have done, in place of what was counted here."""
        self.label, self._skipped = progress.text, progress.skipped
        self.reach(progress.done)

    def advance(self, share: float, place: str) -> None:
        """Count a share of a training as done; `place` says where it stands."""
        self._done += share
        if self._cores is not None and (note := self._cores.note()):
            self.say(note)
        if self._tell is not None:
            text = ", ".join(part for part in (self.label, place) if part)
            self._tell(Progress(self._done, self._skipped, text))
            return
        text = ", ".join(part for part in (self.label, place, self.time_left()) if part)
        self._bar.set_description_str(text, refresh=False)
        # Shares of steps add up to a whole within rounding.
        self._bar.update(min(self._done, self._trainings) - self._bar.n)

    def time_left(self) -> str:
        """Return the time that the rest takes at the mean pace so far, as "1:23 left"."""
        own, left = self._done - self._skipped, self._trainings - self._done
        if own <= 0 or left < 1e-6:
            return ""
        seconds = (time.monotonic() - self._start) * left / own
        return f"{tqdm.format_interval(seconds)} left"

    def say(self, text: str) -> None:
        """Print a line on stdout at once, without tearing the bar."""
        if self._tell is not None:
            self._tell(text)
            return
        with tqdm.external_write_mode() if sys.stderr.isatty() else nullcontext():
            print(text, flush=True)
