"""The one exception that a user is meant to read, and the way a command ends on it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class KitError(Exception):
    """Something a user can cause and mend.

    The message says what was wrong, where (file, row, value), and what to do next.
    """

    status = 1


class StoppedError(KitError):
    """A request to stop (SIGTERM), after all that was done has been kept."""

    status = 128 + signal.SIGTERM


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn a `KitError` into its message on stderr and its exit status, Ctrl-C into 130.

    Where nobody reads the output any more, the command ends silently.

    Any other exception passes through: a traceback there is a bug to report.
    """
    try:
        yield
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does; the rest of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
