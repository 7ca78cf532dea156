"""Asking a training to stop."""

import os
import signal
from collections.abc import Callable

from kit.base import StoppedError
from kit.training import distributed


class StopRequest:
    """SIGTERM or Ctrl-C, which ask for an end after the next step.

    Parameters
    ----------
    stopped
        Says where the training stands that a signal has stopped.

    Attributes
    ----------
    number
        Of the signal; 0 where none has come.
    """

    def __init__(self, stopped: Callable[[int], StoppedError]) -> None:
        self.stopped = stopped
        self.number = 0

    def __call__(self, number: int) -> None:
        if number == signal.SIGINT and distributed.world_size() == 1:
            if self.number == number:
                raise KeyboardInterrupt
            # Not by print, which the signal may have interrupted.
            os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")
        self.number = number

    def at_once(self, number: int) -> None:
        """Stop between two epochs; several processes wait for the next step, to stop together."""
        if distributed.world_size() > 1:
            self(number)
            return
        # The next one ends the process.
        signal.signal(number, signal.SIG_DFL)
        raise self.stopped(number)
