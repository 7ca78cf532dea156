"""The one exception that a user is meant to read, and the way a command ends on it."""

import errno
import io
import os
import platform
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from kit.base.text import printable, shorten

# What a message and each of its lines may have at most, in characters.
_LONGEST_MESSAGE = 20_000
_LONGEST_LINE = 1_000
# What the system refuses a command that is right. Other errors of the system are the kit's own.
_REFUSALS = {
    getattr(errno, name, None)
    for name in """
        EACCES EDQUOT EFBIG EIO EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENOSPC ENOTDIR ENXIO EPERM
        EROFS ESTALE
    """.split()  # noqa: SIM905
}

# What the messages of PyTorch's allocators, of CUDA's libraries and of NumPy have in common.
_FULL_MEMORY = ("out of memory", "allocate memory", "unable to allocate", "alloc_failed")

CUSTOM_PREFIX = "custom_"
"""What the names of modules begin with that hold a person's own code: see `kit.base.custom`."""


class KitError(Exception):
    """Something a user can cause and mend.

    The message says what was wrong, where (file, row, value), and what to do next.
    """

    status = 1


class KeptError(KitError):
    """What ends a command that could go on, after all that was done has been kept.

    The command adds how: see `going_on`.
    """

    options: tuple[str, ...] = ()
    """What the command needs in addition, or would end on the same."""


class StoppedError(BaseException):
    """A request to stop (SIGTERM, or Ctrl-C), after all that was done has been kept.

    It may come at any line, so it is no `KitError`: code that gets over an error would get over
    it as well. Python keeps KeyboardInterrupt apart for the same reason.

    Parameters
    ----------
    by
        The signal, which decides the exit status.
    """

    options: tuple[str, ...] = ()

    def __init__(self, message: str, *, by: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.by = by
        self.status = 128 + by


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Run a command: errors that a user can mend become a message on stderr and an exit status.

    That is 1, or what a `KitError` says, and 130 after Ctrl-C. Where nobody reads the output any
    more, the command ends silently. Any other exception passes through: a traceback there is a bug
    to report.
    """
    _prepare_output()
    with _interrupted_once() as interrupt:
        try:
            require_linux()
            _require_text(sys.argv)
            with _flushed_output():
                yield
        except (KitError, StoppedError) as error:
            _end(f"error: {error}", error.status)
        except BrokenPipeError:
            _end("", 128 + signal.SIGPIPE)
        except BaseException as error:
            if interrupt.came or isinstance(error, KeyboardInterrupt):
                _end("\ninterrupted", 128 + signal.SIGINT)
            message = _refusal(error) or _failed_code(error)
            if message is None:
                raise
            _end(f"error: {message}", KitError.status)


def tells_of_full_memory(error: BaseException) -> bool:
    """Return whether an error is one of a full memory, this machine's or a device's."""
    if not isinstance(error, RuntimeError | OSError):
        return isinstance(error, MemoryError)
    return any(part in str(error).lower() for part in _FULL_MEMORY)


def require_linux() -> None:
    """Refuse other systems, where locks and reserved disk space are missing or differ.

    Raises
    ------
    KitError
        Naming the system, and what to use there.
    """
    if platform.system() != "Linux":
        name = {"Darwin": "macOS"}.get(platform.system(), platform.system())
        raise KitError(
            f"the kit runs on Linux, and this is {name}: use WSL 2 on Windows, a Linux container "
            "elsewhere"
        )


class _Interrupt:
    """Ctrl-C, once: raised as Python raises it, and remembered.

    A library may turn it into an error of its own, or lose it. A second one ends the process as it
    ends any program. Processes forked from this one end silently.
    """

    def __init__(self) -> None:
        self.came = False
        self.process = os.getpid()
        self.hook = sys.unraisablehook

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            os._exit(128 + signal.SIGINT)
        self.came = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.default_int_handler(number, frame)

    def lost(self, what: "sys.UnraisableHookArgs") -> None:
        """Come again where Python drops exceptions: in a destructor or a weak reference's callback.

        So does a request to stop, which the handler of another signal may have raised.
        """
        error = what.exc_value
        if not isinstance(error, KeyboardInterrupt | StoppedError):
            self.hook(what)
        elif os.getpid() == self.process:
            again = self if isinstance(error, KeyboardInterrupt) else _Raising(error)
            signal.signal(signal.SIGINT, again)
            main = threading.main_thread().ident
            assert main is not None
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()


class _Raising:
    """Handles the next Ctrl-C by raising an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise self.error


@contextmanager
def _interrupted_once() -> Iterator[_Interrupt]:
    """Have Ctrl-C interrupt a command, unless the process handles it in another way already."""
    interrupt = _Interrupt()
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _Interrupt):
        yield handler
    elif handler not in (signal.default_int_handler, signal.SIG_DFL):
        yield interrupt
    else:
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = interrupt.lost
        try:
            yield interrupt
        finally:
            # Until the next block of a command, or the interpreter's own end.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            sys.unraisablehook = interrupt.hook


@contextmanager
def _flushed_output() -> Iterator[None]:
    """Write all that was printed before the end, where it can still be said that it failed."""
    try:
        yield
    except SystemExit:
        # A parser of options has printed its help.
        print(end="", flush=True)
        raise
    print(end="", flush=True)


def _prepare_output() -> None:
    """Have stdout write out the characters that its encoding lacks, as stderr does.

    Where one of them is closed, what is printed goes nowhere: the next file that is opened would
    get its number, and be printed into.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _require_text(words: Sequence[str]) -> None:
    """Refuse names that no library could open and no page could show."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            step = "rename the file or the folder, or, where that is UTF-8, set PYTHONUTF8=1"
            raise KitError(f"{shorten(ascii(word))} is not text in UTF-8: {step}") from error


def _refusal(error: BaseException) -> str | None:
    """Say what the system refuses to a command that is right; None for all other errors."""
    if isinstance(error, MemoryError) or _lacks_memory_to_load(error):
        return "this machine's memory is full: end other programs, or choose smaller values"
    if tells_of_full_memory(error):
        reason = shorten(str(error).partition("\n")[0])
        return f"a memory is full ({reason}): end other programs, or choose smaller values"
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "there is no usable temporary folder: set TMPDIR to a folder with room"
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        place = f" {shorten(str(error.filename))}" if error.filename is not None else ""
        return f"cannot read or write{place}: {error.strerror}"
    return None


def _lacks_memory_to_load(error: BaseException) -> bool:
    """Whether a library's file did not find room in memory."""
    reasons = "failed to map segment|cannot allocate memory"
    return isinstance(error, ImportError) and bool(re.search(reasons, str(error), re.I))


def _failed_code(error: BaseException) -> str | None:
    """Say at which line a person's own code has failed; None if the error came through none of it.

    A worker's error comes as the text of its traceback.
    """
    own = (module for name, module in sys.modules.items() if name.startswith(CUSTOM_PREFIX))
    text = "".join(traceback.format_exception(error)).strip()
    for file in (str(module.__file__) for module in own):
        if lines := re.findall(rf'File "{re.escape(file)}", line (\d+)', text):
            return f"{file}, line {lines[-1]}, fails: {text.splitlines()[-1]}"
    return None


def _end(message: str, status: int) -> NoReturn:
    """Say a last word, if there is anyone to hear it, and exit."""
    lines = [shorten(line, _LONGEST_LINE) for line in message.split("\n")]
    _write_or_drop(sys.stdout, "")
    if message:
        _write_or_drop(sys.stderr, printable(shorten("\n".join(lines), _LONGEST_MESSAGE)) + "\n")
    sys.exit(status)


def _write_or_drop(stream: TextIO, text: str) -> None:
    """Write a text; where that fails, have it go nowhere: it would fail again at the very end."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
