"""Code that a person brings: a network or an augmentation from a file or module of their own."""

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kit.base.errors import CUSTOM_PREFIX, KitError
from kit.base.text import shorten

# A file or an importable module, and a name in it.
_REFERENCE = re.compile(r"(.+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class CustomCode:
    """A file of code, and what it is asked for.

    Attributes
    ----------
    name
        Of a class, a function or an object in it.
    """

    path: Path
    name: str
    text: bytes

    @property
    def sha256(self) -> str:
        """The text's fingerprint."""
        return hashlib.sha256(self.text).hexdigest()

    @property
    def module(self) -> str:
        """Name by which Python knows the module: the same text is the same module."""
        return f"{CUSTOM_PREFIX}{self.sha256[:16]}"


def is_custom(reference: str) -> bool:
    """Whether an option's value names code, as my_net.py:MyNet or my_package.nets:MyNet do."""
    return _REFERENCE.fullmatch(reference) is not None


def custom_name(reference: str) -> str:
    """Return the name in the code that a reference asks for."""
    return reference.rpartition(":")[2]


@cache
def read_custom(reference: str) -> CustomCode:
    """Read the code that a reference names, without running it.

    Like a module that is imported it is read once per process: runs of one study have one text.

    Raises
    ------
    KitError
        If there is no such file or module, or it cannot be read.
    """
    place, _, name = reference.rpartition(":")
    path = Path(place) if place.endswith(".py") else _find_module(place)
    try:
        return CustomCode(path, name, path.read_bytes())
    except OSError as error:
        raise KitError(
            f"cannot read {path} for {reference}: {error.strerror}. A relative path starts at the "
            "folder that the command is typed in"
        ) from error


def load_custom(reference: str) -> Any:
    """Run the code that a reference names, once per process, and return what it is asked for.

    Raises
    ------
    KitError
        If the code cannot be read or run, or lacks the name.
    """
    return load_code(read_custom(reference))


def load_code(code: CustomCode) -> Any:
    """Run code, once per process, and return what it is asked for; see `load_custom`."""
    module = sys.modules.get(code.module) or _run(code)
    try:
        return getattr(module, code.name)
    except AttributeError:
        # What it imports is not its own.
        own = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == code.module
        ]
        there = f": it defines {shorten(', '.join(own))}" if own else ""
        raise KitError(f"{code.path} has no {code.name}{there}") from None


@contextmanager
def explain_custom(reference: str, doing: str) -> Iterator[None]:
    """Tell in one line what fails in a person's code, and at which line of it.

    Parameters
    ----------
    doing
        What is done with it, as in "when it is built".
    """
    try:
        yield
    except KitError:
        raise
    # A person's code may raise anything; exit() would end the command without a word.
    except (Exception, SystemExit) as error:
        code = read_custom(reference)
        message = shorten(" ".join(str(error).split()), 300)
        raise KitError(
            f"{code.path}{_line(error, code)} fails {doing}: {type(error).__name__}"
            f"{f': {message}' if message else ''}"
        ) from error


_trusted = False


def trust_code(trust: bool) -> None:
    """Choose whether this process may run code that comes with a run folder; by default not."""
    global _trusted
    _trusted = trust


def trusts_code() -> bool:
    """Return what `trust_code` has chosen."""
    return _trusted


def require_trust(code: CustomCode) -> None:
    """Refuse code that came with a run folder, unless it is trusted.

    The same text is trusted that this process has run already, since a person named it.

    Raises
    ------
    KitError
        Naming the file.
    """
    if not _trusted and code.module not in sys.modules:
        raise KitError(
            f"{code.path} is code that came with the run and would be executed: read it, and add "
            "--trust if you trust it (in Python: kit.base.trust_code(True))"
        )


def _find_module(name: str) -> Path:
    """Return the file of an importable module."""
    try:
        spec = importlib.util.find_spec(name)
    # To find a module its packages are imported, which may raise anything.
    except (Exception, SystemExit) as error:
        raise KitError(f"cannot import the package of {name}: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise KitError(
            f"there is no module {name} that Python could import from a file: give a file, as "
            f"{name.rpartition('.')[2]}.py:NAME, or install the module"
        )
    return Path(spec.origin)


def _run(code: CustomCode) -> ModuleType:
    """Run a module's text and keep it under its own name, as dataclasses and pickles need it."""
    module = ModuleType(code.module)
    module.__file__ = str(code.path)
    # It stands by itself, as it will in the run folder.
    module.__package__ = ""
    sys.modules[code.module] = module
    try:
        with explain_custom(f"{code.path}:{code.name}", "when it is imported"):
            exec(compile(code.text, str(code.path), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[code.module]
        raise
    return module


def _line(error: BaseException, code: CustomCode) -> str:
    """Return the last line of a person's code that an error came through."""
    # The same text may have been run as another file.
    files = str(code.path), getattr(sys.modules.get(code.module), "__file__", None)
    if isinstance(error, SyntaxError) and error.filename in files:
        return f", line {error.lineno},"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in files]
    return f", line {lines[-1]}," if lines else ""
