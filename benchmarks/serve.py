"""What every measured process does: prepare, warm up, then one timed round for each line it reads.

It answers on its own standard output with one JSON object a line; what libraries print goes to
standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TextIO

Options = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Something prepared to be timed.

    Attributes
    ----------
    run
        Does one round and returns how many tiles it took.
    settings
        What the table should say about how it works.
    libraries
        Those whose versions matter, by their distribution names.
    warm_up
        Whether one round comes before the timed ones.
    """

    run: Callable[[], int]
    settings: str = ""
    libraries: tuple[str, ...] = field(default=())
    warm_up: bool = True


class UnavailableError(Exception):
    """What a task needs and this machine does not have."""


def require(device: str) -> None:
    """Refuse a device that the machine lacks."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("no GPU")


def serve(prepare: Callable[[Options], Task]) -> None:
    """Prepare a task from the JSON on the command line and time it as often as asked."""
    replies = _claim_stdout()
    try:
        task = prepare(json.loads(sys.argv[1]))
    except (ModuleNotFoundError, UnavailableError) as error:
        name = getattr(error, "name", None)
        _reply(replies, unavailable=f"{name} is not installed" if name else str(error))
        return
    if task.warm_up:
        task.run()
    versions = {library: version(library) for library in task.libraries}
    _reply(replies, settings=task.settings, versions=versions)
    for _ in sys.stdin:
        start = time.perf_counter()
        tiles = task.run()
        _reply(replies, tiles=tiles, seconds=time.perf_counter() - start)


def _claim_stdout() -> TextIO:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, **values: Any) -> None:
    print(json.dumps(values), file=replies, flush=True)
