"""How a command ends: on errors, on Ctrl-C, on output that finds no room."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Forked, run_in_session
from kaggle_server import until

SCRIPT = """
import os, signal, sys
from kit.base import KitError, StoppedError, exit_on_error
with exit_on_error():
    pass  # As a command that imports its libraries in a block of their own.
with exit_on_error():
    exec(sys.argv[1])
"""
ROOT = Path(__file__).parents[1]
FULL = Path("/dev/full")


def command(body: str, *words: object, **environment: str) -> subprocess.Popen[str]:
    """Start a command that consists of `body`."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, body, *map(str, words)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ending(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return a command's exit status and what it says on stderr."""
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.parametrize(
    ("body", "status", "stderr"),
    [
        ("raise KitError('no such thing: do this')", 1, "error: no such thing: do this\n"),
        ("raise StoppedError('kept')", 143, "error: kept\n"),
        ("raise StoppedError('kept', by=signal.SIGINT)", 130, "error: kept\n"),
        ("raise KitError('a\\x1b[2J\\u202eb')", 1, "error: a\\x1b[2J\\u202eb\n"),
        ("os.mkdir('long' * 100)", 1, "File name too long\n"),
        ("raise MemoryError", 1, "this machine's memory is full: end other programs, "),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate 20.00 MiB.')", 1,
         "a memory is full (CUDA out of memory. Tried to allocate 20.00 MiB.): end other programs"),
        ("raise ImportError('_C.so: failed to map segment from shared object')", 1,
         "this machine's memory is full: end other programs, "),
        ("import tempfile; tempfile.mkdtemp()", 1, "no usable temporary folder: set TMPDIR to"),
        ("import platform; platform.system = lambda: 'Darwin'; exit_on_error().__enter__()", 1,
         "error: the kit runs on Linux, and this is macOS: use"),
        ("[][0]", 1, "IndexError: list index out of range\n"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_a_message(body: str, status: int, stderr: str) -> None:
    broken = {"TMPDIR": "/none"}
    if "tempfile" in body:
        body = f"import tempfile; tempfile._candidate_tempdir_list = lambda: ['/none']; {body}"
    found, said = ending(command(body, **broken))
    assert found == status
    assert stderr in said
    assert ("Traceback" in said) == ("[][0]" in body)


def test_a_message_is_short_whatever_the_value() -> None:
    _, said = ending(command("raise KitError(f'{\"x\" * 10_000_000} is wrong: do this')"))
    assert len(said) < 2_000
    assert said.endswith("xxx is wrong: do this\n")


def test_a_name_that_is_no_text_is_a_message() -> None:
    status, said = ending(command("print(sys.argv)", "caf\udce9.csv"))
    assert status == 1
    assert said.startswith("error: 'caf\\udce9.csv' is not text in UTF-8: rename the file")


def test_what_the_output_cannot_show_is_written_out() -> None:
    process = command("print('Gewebe/größe')", PYTHONIOENCODING="ascii")
    assert process.communicate(timeout=60) == ("Gewebe/gr\\xf6\\xdfe\n", "")


@pytest.mark.parametrize("body", ["print(1)", "print(1); sys.exit(0)", "print('1' * 10**6)"])
def test_output_that_finds_no_room_is_a_message(body: str) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, body], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot read or write: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_output_is_no_error(tmp_path: Path, closed: str) -> None:
    """Nor is it printed into the next file that is opened."""
    opened = f"file = open({str(tmp_path / 'a')!r}, 'w')"
    body = f"{opened}; print(1); print(2, file=sys.stderr); os.write(2, b'3')"
    line = f'exec "$0" -c "$1" "$2" {closed}'
    done = subprocess.run(["bash", "-c", line, sys.executable, SCRIPT, body])
    assert done.returncode == 0
    assert (tmp_path / "a").read_text() == ""


def test_a_message_that_finds_no_room_is_no_other_error() -> None:
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", SCRIPT, "raise KitError('x')"], stderr=full)
    assert done.returncode == 1


INTERRUPTED = [
    # Where Python drops exceptions.
    "class Slow:\n"
    "    def __del__(self): time.sleep(10)\n"
    "ready(); Slow()\n"
    "time.sleep(60)",
    # A library's error in its place.
    "try: ready(); time.sleep(60)\n"
    "except KeyboardInterrupt: raise RuntimeError('the module failed to load')",
    # Within imports.
    "import importlib, json.decoder, email.message, asyncio\n"
    "ready()\n"
    "while True:\n"
    "    for name in ('json.decoder', 'email.message', 'asyncio'):\n"
    "        importlib.reload(sys.modules[name])",
    # While a process that was forked is at work.
    "import multiprocessing\n"
    "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
    "child.daemon = True\n"
    "child.start()\n"
    "ready(); time.sleep(60)",
]  # fmt: skip


@pytest.mark.parametrize("body", INTERRUPTED)
def test_ctrl_c_is_never_a_traceback(body: str) -> None:
    for pause in (0, 0.011, 0.05):
        begin = "import time\ndef ready(): print('ready', flush=True)\n"
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, begin + body],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        assert ending(process) == (130, "\ninterrupted\n")


def test_a_request_to_stop_that_python_drops_comes_again() -> None:
    process = command(
        "import signal, time\n"
        "from kit.base import StoppedError, handle_signals\n"
        "def stop(number): raise StoppedError('stopped after epoch 1', by=number)\n"
        "class Slow:\n"
        "    def __del__(self): print('ready', flush=True); time.sleep(60)\n"
        "with handle_signals(stop, signal.SIGINT):\n"
        "    Slow()\n"
        "    time.sleep(60)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert ending(process) == (130, "error: stopped after epoch 1\n")


@pytest.mark.parametrize("error", ["KitError", "Exception"])
def test_code_that_gets_over_an_error_does_not_get_over_a_request_to_stop(error: str) -> None:
    """It may come at any line, such as where a broken file is passed over."""
    process = command(
        "import time\n"
        "from kit.base import going_on\n"
        "with going_on(lambda: 'the same command goes on'):\n"
        f"    try:\n        print('ready', flush=True); time.sleep(60)\n    except {error}: pass\n"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert ending(process) == (143, "error: stopped: the same command goes on\n")


# The long form interrupts more trainings, and at instants between the loading and the end.
KILLS = int(os.environ.get("KIT_KILLS", "1"))
TRAINING = ["--batch-size=4", "--workers=2", "--per-class=None"]


def check_interrupted(status: int | None, said: str) -> None:
    # At the interpreter's own end the signal itself ends it, as it ends any program.
    assert (status in (0, 130, -signal.SIGINT), "Traceback" in said) == (True, False), said


def test_ctrl_c_at_any_instant_of_a_training_is_never_a_traceback(
    data: Path, tmp_path: Path
) -> None:
    """While libraries load, in the short form: after Python's own start."""
    rng = random.Random(0)
    for number in range(KILLS):
        out = tmp_path / f"run-{number}"
        options = [*TRAINING, "--epochs=3", f"--data={data}", f"--out={out}"]
        process = subprocess.Popen(
            [sys.executable, ROOT / "kernels" / "train.py", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # The first library that a command loads.
        until(lambda pid=process.pid: "pydantic_core" in Path(f"/proc/{pid}/maps").read_text())
        time.sleep(rng.uniform(0, 1 if KILLS == 1 else 6))
        os.killpg(process.pid, signal.SIGINT)
        check_interrupted(*ending(process))


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


@pytest.mark.parametrize(
    ("epochs", "begun"),
    [
        (2000, lambda process, _: children(process)),
        (2000, lambda _, run: (run / "last.pt.partial").exists()),
        (1, lambda _, run: (run / "metrics.json").exists()),
    ],
    ids=["workers start", "a checkpoint is written", "the page is drawn"],
)
def test_ctrl_c_within_a_training_is_never_a_traceback(
    data: Path, tmp_path: Path, epochs: int, begun: Callable[[int, Path], object]
) -> None:
    """In a process forked from one that has loaded the libraries, and so at known instants."""
    run, log = tmp_path / "run", tmp_path / "log"
    log.mkdir()
    options = [*TRAINING, f"--epochs={epochs}", f"--data={data}", f"--out={run}"]
    argv = [str(ROOT / "kernels" / "train.py"), *options, "--checkpoint-steps=1"]
    process = Forked(target=run_in_session, args=(argv, tmp_path, log))
    process.start()
    assert process.pid is not None
    until(lambda: begun(process.pid, run), seconds=120)
    # It may have come to its end by itself meanwhile.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    process.join()
    check_interrupted(process.exitcode, (log / "stderr").read_text())


def test_a_second_ctrl_c_ends_a_command_that_is_at_its_end() -> None:
    process = command(
        "import time\n"
        "try: print('ready', flush=True); time.sleep(60)\n"
        "finally: print('end', flush=True); time.sleep(60)"
    )
    assert process.stdout is not None
    for line in ("ready\n", "end\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    assert ending(process) == (-signal.SIGINT, "")
