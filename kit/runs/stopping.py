"""Asking a training to stop."""

import os
import signal

from kit.training import distributed


class StopRequest:
    """SIGTERM or Ctrl-C, which ask for an end after the next step."""

    number = 0
    """Of the signal; 0 where none has come."""

    def __call__(self, number: int) -> None:
        if number == signal.SIGINT and distributed.world_size() == 1:
            if self.number == number:
                raise KeyboardInterrupt
            # Not by print, which the signal may have interrupted.
            os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")
        self.number = number
