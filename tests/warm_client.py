"""Kaggle's client, unmodified, in processes forked from one that has imported its libraries.

To start it takes half a second, nearly all of it imports, and the tests start it some 300 times.
Each client still is a process of its own, with the command line, environment, folder and streams
that the kit gives it. How Python starts it, how often it wakes and how it is killed is for tests
that call `start_for_real`.
"""

import atexit
import gc
import json
import os
import runpy
import shlex
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from select import select
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# What the kit starts in Python's place: it asks for a client, and ends as that does.
ASK = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
    asking.connect(sys.argv[1])
    asked = {"argv": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(asking, [json.dumps(asked).encode()], [0, 1, 2])
    sys.exit(asking.recv(1)[0])
"""
LONGEST = 2**17


def start_warm(monkeypatch: "pytest.MonkeyPatch") -> None:
    """Let the kit find the warm client where it looks for Python."""
    monkeypatch.setattr("kit.kaggle.client.sys", SimpleNamespace(executable=str(python())))


def start_for_real(monkeypatch: "pytest.MonkeyPatch") -> None:
    """Let the kit start the client as it does for a user."""
    monkeypatch.setattr("kit.kaggle.client.sys", sys)


@cache
def python() -> Path:
    """Start the process that is forked; return the command that asks it for a client."""
    folder = Path(tempfile.mkdtemp())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        forked = subprocess.Popen(
            [sys.executable, "-P", __file__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # To import the client is to log in, which a key does without asking Kaggle.
            env={
                "HOME": str(folder),
                "KAGGLE_USERNAME": "nobody",
                "KAGGLE_KEY": "none",
                "PYTHONUNBUFFERED": "1",
                "PYTHONUTF8": "1",
                # Where another version of the client lies, see docs/kaggle.md.
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            },
            pass_fds=[listener.fileno()],
        )
    # It ends with its input.
    atexit.register(forked.communicate)
    (folder / "ask.py").write_text(ASK)
    words = [sys.executable, "-I", "-S", str(folder / "ask.py"), str(folder / "socket")]
    (folder / "python").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    (folder / "python").chmod(0o700)
    return folder / "python"


def be_asked(listener: socket.socket) -> list[str]:
    """Fork a client for each that asks; return in the client, with its command line."""
    while listener in select([listener, sys.stdin], [], [])[0]:
        asking, _ = listener.accept()
        content, streams, *_ = socket.recv_fds(asking, LONGEST, 3)
        if os.fork() == 0:
            client = os.fork()
            if client == 0:
                return become(json.loads(content), streams)
            status = os.waitstatus_to_exitcode(os.waitpid(client, 0)[1])
            asking.send(bytes([status % 256]))
            os._exit(0)
        for opened in (asking.detach(), *streams):
            os.close(opened)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    sys.exit()


def become(asked: dict[str, object], streams: list[int]) -> list[str]:
    """Take the place of the process that asked; return its command line."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    return asked["argv"]


if __name__ == "__main__":
    import kaggle  # noqa: F401

    # What it has imported stays; itself it is imported again, with the credential of each.
    for name in [name for name in sys.modules if name.partition(".")[0] == "kaggle"]:
        del sys.modules[name]
    # A client that ends would look through all of it once more.
    gc.collect()
    gc.freeze()
    safe_path, *sys.argv = be_asked(socket.socket(fileno=int(sys.argv[1])))
    as_module, client, *_ = sys.argv
    assert (safe_path, as_module, client) == ("-P", "-m", "kaggle")
    # As `python -m` does.
    del sys.argv[1]
    runpy.run_module(client, run_name="__main__", alter_sys=True)
