"""Plain values, as JSON holds them: read with their types, or refused with file, key and value."""

import json
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from kit.base.errors import KitError
from kit.base.files import write_text
from kit.base.text import shorten

Values = TypeVar("Values")


def read_json(path: Path, kind: type[Values], *, what: str) -> Values:
    """Read a JSON file whose values have the types of a dataclass, `dict[str, int]`, ...

    Parameters
    ----------
    what
        What the file should be, as in "a run's configuration".

    Raises
    ------
    KitError
        If the file cannot be read, is not JSON, or holds a value of another type: all such values
        are named.
    """
    try:
        adapter: TypeAdapter[Values] = _adapter(cast(Hashable, kind))
        return adapter.validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise KitError(f"{path} is not {what}: {describe_errors(error)}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what checks a type; making it takes longer than reading a small file."""
    return TypeAdapter(kind)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values, recipes and paths among them, as JSON holds them."""
    plain: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(dict(values), mode="json")
    return plain


def describe_errors(error: ValidationError) -> str:
    """Say in one line what is wrong with each value."""
    return "; ".join(_describe(dict(problem)) for problem in error.errors())


def _describe(problem: dict[str, Any]) -> str:
    # A recipe's options are known by their own names.
    parts = [part for part in problem["loc"] if part != "recipe"] or problem["loc"]
    place = shorten(".".join(map(str, parts)))
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {place}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if "recursion limit exceeded" in message:
        return "its values are nested too deeply"
    return f"{place} = {shorten(repr(problem['input']))}: {message}" if place else message
