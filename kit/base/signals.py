"""Requests to stop: SIGTERM and Ctrl-C, and how to go on afterwards."""

import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kit.base.errors import KeptError, KitError, StoppedError


@contextmanager
def handle_signals(handler: Callable[[int], None], *numbers: int) -> Iterator[None]:
    """Have signals call `handler` while the block lasts.

    A signal that is ignored stays so. Processes that are forked meanwhile leave Ctrl-C to this
    one and end on any other signal. Outside of the main thread, which alone may handle signals,
    nothing changes. Blocks may end in any order, as those of generators do: the latest one that
    lasts is called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    own = {number: _Handler(handler, signal.getsignal(number)) for number in handled}
    for number, one in own.items():
        signal.signal(number, one)
    try:
        yield
    finally:
        for number, one in own.items():
            one.remove(number)


class _Handler:
    """Handles a signal in the process that it was made in, in place of the handler before it."""

    def __init__(self, handler: Callable[[int], None], before: Any) -> None:
        self.handler = handler
        self.before = before
        self.process = os.getpid()

    def __call__(self, number: int, _: object) -> None:
        if os.getpid() == self.process:
            self.handler(number)
        elif number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def remove(self, number: int) -> None:
        """Put the one before in its place, also where later ones have come."""
        later = signal.getsignal(number)
        while isinstance(later, _Handler) and self not in (later, later.before):
            later = later.before
        if isinstance(later, _Handler) and later is not self:
            later.before = self.before
        else:
            signal.signal(number, self.before)


class LateError(KitError):
    """What has lasted longer than it may."""


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Stop the block as SIGTERM would, where it lasts so long.

    Raises
    ------
    LateError
        In place of the `StoppedError` that the block then raises, or that this one raises within
        it. A request to stop that comes from elsewhere stays what it is.
    """
    late = False

    def ring(*_: object) -> None:
        nonlocal late
        late = True
        signal.raise_signal(signal.SIGTERM)

    def stop(number: int) -> None:
        raise StoppedError("stopped", by=number)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with handle_signals(stop, signal.SIGTERM):
            # 0 would mean never.
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
            yield
    except StoppedError as error:
        if not late:
            raise
        raise LateError(str(error)) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def going_on(how: Callable[..., str]) -> Iterator[None]:
    """Say how to go on with what the block does, where it ends before its time.

    Parameters
    ----------
    how
        Returns something like "go on with: COMMAND", given the options that it needs in addition.

    Raises
    ------
    StoppedError
        In place of a KeyboardInterrupt, and on SIGTERM.
    KeptError
        Each that the block raises.
    """

    def stop(number: int) -> None:
        # The next one ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        raise StoppedError("stopped")

    try:
        with handle_signals(stop, signal.SIGTERM):
            yield
    except KeyboardInterrupt as error:
        raise StoppedError(f"stopped: {how()}", by=signal.SIGINT) from error
    except (KeptError, StoppedError) as error:
        # Still of its own kind and status.
        error.args = (f"{error}: {how(*error.options)}",)
        raise


def same_command(*options: str) -> str:
    """Say of a command that it goes on when it is typed again, with further options."""
    return f"the same command goes on{' with ' if options else ''}{shlex.join(options)}"
