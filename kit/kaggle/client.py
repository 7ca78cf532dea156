"""Kaggle's own command line, run as a child process.

Importing the client authenticates, prints and may call the network, so it is never imported.
Its exit status proves nothing: 0 also follows Ctrl-C and an upload that failed. What counts is
what lies on disk, and what Kaggle itself lists.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from kit.base import KitError
from kit.kaggle.credentials import credential, masked, without_secrets
from kit.kaggle.faults import SILENCE, explain

PATIENCE = 300.0
"""Seconds without a word or a byte after which the client is stopped: it would wait forever."""


class SilenceError(KitError):
    """Nothing came for `PATIENCE` seconds."""


def run_client(*arguments: str, group: str = "competitions") -> str:
    """Run one of a group of the client's commands and return what it prints.

    Raises
    ------
    KitError
        If it fails, with the reason and the next step.
    """
    credential()
    try:
        done = subprocess.run(
            client_command(*arguments, group=group),
            env=client_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise SilenceError(explain(SILENCE.format(PATIENCE))) from error
    if done.returncode:
        raise KitError(explain(f"{done.stderr}\n{done.stdout}"))
    return masked(done.stdout)


def client_command(*arguments: str, group: str = "competitions") -> list[str]:
    # -P keeps a folder named kaggle, wherever the user stands, from passing for the client;
    # -W silences the news of later versions.
    return [sys.executable, "-P", "-m", "kaggle", "-W", group, *arguments]


def client_environment() -> dict[str, str]:
    """Return the client's environment.

    Made verbose by one of two common variables, it prints its authorization header.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("VERBOSE", "VERBOSE_OUTPUT")}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def parse_json(said: str) -> Any:
    """Parse the JSON in what the client prints; warnings may come before it.

    Raises
    ------
    KitError
        If there is none.
    """
    for start in re.finditer(r"^[\[{]", said, re.M):
        with suppress(ValueError, RecursionError):
            return json.JSONDecoder().raw_decode(said, start.start())[0]
    raise KitError(f"the Kaggle client gave no list, but: {without_secrets(said.strip())}")


def parse_rows(said: str) -> list[dict[str, Any]]:
    """Parse a list of objects in what the client prints, as `parse_json`; others are left out."""
    rows = parse_json(said)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def count(value: object) -> int | None:
    """Return a number as Kaggle may write it, as a number or as text; None if it is none."""
    return int(str(value)) if re.fullmatch(r"[0-9]{1,18}", str(value)) else None


def attempts(timeout: float) -> Iterator[None]:
    """Yield immediately, then after pauses of 1, 2, 4 to 30 seconds until `timeout` has passed."""
    deadline = time.monotonic() + timeout
    pause = 1.0
    yield
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        pause = min(2 * pause, 30)
        yield
