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
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from kit.base import KitError
from kit.kaggle.credentials import credential, masked, without_secrets
from kit.kaggle.faults import SILENCE, explain

PATIENCE = 300.0
"""Seconds without a word or a byte after which the client is stopped: it would wait forever."""
_TICK = 0.5


class SilenceError(KitError):
    """Nothing came for `PATIENCE` seconds."""


def run_client(
    *arguments: str,
    group: str = "competitions",
    watch: Callable[[], object] = lambda: None,
    lock: int | None = None,
) -> str:
    """Run one of a group of the client's commands and return what it prints.

    It may take as long as it likes while anything comes or goes.

    Parameters
    ----------
    watch
        Called now and then while the client runs, to show how far it is.
    lock
        Of a folder that the client writes into; it inherits it, and may outlive this process.

    Raises
    ------
    KitError
        If it fails, with the reason and the next step.
    """
    credential()
    with subprocess.Popen(
        client_command(*arguments, group=group),
        env=client_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        pass_fds=() if lock is None else (lock,),
    ) as process:
        try:
            output, errors = _communicate(process, watch)
        except SilenceError as error:
            process.kill()
            raise SilenceError(explain(str(error))) from error
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise KitError(explain(f"{errors}\n{output}"))
    return masked(output)


def _communicate(process: "subprocess.Popen[str]", watch: Callable[[], object]) -> tuple[str, str]:
    """Return what a process says on stdout and stderr.

    Raises
    ------
    SilenceError
        When it has slept for `PATIENCE` seconds.
    """
    woken, since = None, time.monotonic()
    while True:
        try:
            return process.communicate(timeout=_TICK)
        except subprocess.TimeoutExpired:
            watch()
        now = _wakings(process.pid)
        if now != woken:
            woken, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise SilenceError(SILENCE.format(PATIENCE))


def _wakings(process: int) -> str:
    """Return how often a process has woken from waiting, as it does for each packet that comes.

    kaggle 2.2.4 fetches a file of any size without a word, and writes it when it is there.
    """
    # Linux, Documentation/filesystems/proc.rst. Nothing where the process has just ended.
    with suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text("utf-8")
        return "".join(re.findall(r"^(?:non)?voluntary_ctxt_switches:.*", status, re.M))
    return ""


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
