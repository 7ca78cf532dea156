"""A small competition made by other means than the kit's (Pillow), runs of it, and commands."""

# First, as it sets what OpenMP reads when PyTorch is imported.
import kit  # noqa: F401  # isort: skip

import hashlib
import io
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from http.server import HTTPServer
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# The process that only hands tests to others imports this as well: PyTorch is loaded on first use.
from kit import data as tile_data
from kit import runs
from kit.base import Recipe

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Tests share two cores with whatever else runs; threads that wait for each other would stall,
# here and in the commands that tests start. OpenMP reads it when PyTorch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Whatever tests, and what they start, put into the temporary folder goes with them: see the hook.
# Workers and other children, which import this as well, share the folder of the first.
FIRST = "KIT_TESTS_FOLDER" not in os.environ
if FIRST:
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="kit-tests-")
    os.environ["KIT_TESTS_FOLDER"] = os.environ["TMPDIR"]
    # A database that root starts runs as another user, who passes through to its own folder.
    Path(tempfile.tempdir).chmod(0o711)

# No test judges by the clock: a machine may be busy.
settings.register_profile("kit", deadline=None)
settings.load_profile("kit")

ROOT = Path(__file__).parents[1]
# One server for all tests: what it has imported is the last list that anyone sets.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["kit.report.studies", "kit.study.search.worker", "timm", "torch._dynamo", "pytest"]
)
STREAMS = ("stdout", "stderr")
RECIPE = Recipe(epochs=2, batch_size=8, size=32)
Files = dict[str, bytes]
Server = TypeVar("Server", bound=HTTPServer)


class Forked(ForkServerProcess):
    """A process forked from one that has imported the libraries.

    It starts others as a command does, not from a server of its own, which would import them again.
    """

    def run(self) -> None:
        multiprocessing.set_start_method(None, force=True)
        super().run()


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Let a server answer in a thread until the block ends.

    One that still serves when its socket is closed asks for the next request for ever, and takes
    a core from all tests that follow.
    """
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    with server:
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", **options)
    return buffer.getvalue()


def random_tile(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)


def competition_files(train: int = 24, test: int = 7) -> Files:
    """Random tiles, labelled 0, 1, 0, 1, ... in the order of the table."""
    rng = np.random.default_rng(7)
    files: Files = {}
    ids: dict[str, list[str]] = {"train": [], "test": []}
    for split, count in (("train", train), ("test", test)):
        for _ in range(count):
            pixels = random_tile(rng)
            ids[split].append(hashlib.sha1(pixels.tobytes()).hexdigest())
            files[f"{split}/{ids[split][-1]}.tif"] = tiff(pixels)
    rows = [f"{tile},{row % 2}\n" for row, tile in enumerate(ids["train"])]
    files["train_labels.csv"] = ("id,label\n" + "".join(rows)).encode()
    rows = [f"{tile},0\n" for tile in ids["test"]]
    files["sample_submission.csv"] = ("id,label\n" + "".join(rows)).encode()
    return files


def write_zip(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "histopathologic-cancer-detection.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(name, content)
    return path


def write_folder(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def start_kernel(name: str, *options: object, log: Path, cwd: Path | None = None) -> BaseProcess:
    """Start a command of kernels/ in a process forked from one that has imported the libraries.

    Importing them takes seconds, which is most of what a command on a few tiles takes. What the
    command says is kept in `log`.
    """
    argv = [str(ROOT / "kernels" / f"{name}.py"), *map(str, options)]
    process = Forked(target=run_script, args=(argv, cwd or Path.cwd(), log))
    process.start()
    return process


def kernel(
    name: str, *options: object, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command of kernels/ in this process, which has loaded the libraries.

    What is promised of processes, such as signals, `start_kernel` is for.
    """
    argv, path, handler = sys.argv, sys.path[:], signal.getsignal(signal.SIGINT)
    status = 0
    with (
        chdir(cwd or Path.cwd()),
        redirect_stdout(io.StringIO()) as said,
        redirect_stderr(io.StringIO()) as errors,
    ):
        sys.argv = [str(ROOT / "kernels" / f"{name}.py"), *map(str, options)]
        sys.path.insert(0, str(ROOT / "kernels"))
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            sys.argv, sys.path[:] = argv, path
            signal.signal(signal.SIGINT, handler)
    return subprocess.CompletedProcess([name, *options], status, said.getvalue(), errors.getvalue())


def run_kernel(name: str, *options: object) -> str:
    """Run a command of kernels/ to its good end; return what it printed."""
    finished = kernel(name, *options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def fresh_kernel(name: str, *options: object) -> "subprocess.CompletedProcess[str]":
    """Run a command of kernels/ to its end in a process of its own, see `start_kernel`."""
    with tempfile.TemporaryDirectory() as folder:
        process = start_kernel(name, *options, log=Path(folder))
        process.join()
        said = [(Path(folder) / stream).read_text("utf-8") for stream in STREAMS]
    assert process.exitcode is not None
    return subprocess.CompletedProcess([name, *options], process.exitcode, *said)


def run_script(argv: list[str], cwd: Path, log: Path) -> None:
    """Be the process that runs a script; keep what it says in `log`."""
    for number, stream in enumerate(STREAMS, start=1):
        with (log / stream).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def run_in_session(argv: list[str], cwd: Path, log: Path) -> None:
    """Be a process as a terminal starts it: a signal may be sent to it and all that it starts."""
    os.setsid()
    run_script(argv, cwd, log)


def train(
    recipe: Recipe, tiles: "tile_data.Store", folder: Path, *, resume: bool = False
) -> "runs.Run":
    run = runs.begin_run(recipe, tiles, folder, device="cpu", resume=resume)
    for _ in run.train(progress=False):
        pass
    return run


def train_folds(recipe: Recipe, tiles: "tile_data.Store", folder: Path) -> Path:
    """Cross-validate a recipe, as `train.py --folds` does but for the pages."""
    for part, fold in runs.check_folds(recipe, tiles, folder, device="cpu").items():
        train(fold, tiles, part)
    runs.pool_folds(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a run's result consists of, clocks apart."""
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for epoch in history:
        del epoch["seconds"], epoch["tiles_per_second"]
    names = ("split.csv", "model.safetensors", "valid.csv", "metrics.json")
    return {name: (folder / name).read_bytes() for name in names} | {
        "history": json.dumps(history).encode()
    }


def edit_config(folder: Path, *keys: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def finished_epochs(folder: Path) -> int:
    history = folder / "history.jsonl"
    return len(history.read_text().splitlines()) if history.exists() else 0


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(exitstatus: int) -> Iterator[None]:
    """Leave nothing behind, unless there is a failure to look into."""
    yield
    if exitstatus == 0 and FIRST:
        # After those of multiprocessing (-100), which remove its own folders in there.
        Finalize(None, shutil.rmtree, (tempfile.gettempdir(), True), exitpriority=-200)


@pytest.fixture
def two_threads() -> Iterator[None]:
    import torch

    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> "tile_data.Store":
    """A small packed competition, to read, in a folder with a name that a shell must quote."""
    folder = tmp_path_factory.mktemp("my data")
    write_zip(folder, competition_files(train=80, test=10))
    return tile_data.pack_tiles(folder)


@pytest.fixture(scope="session")
def trained(tiles: "tile_data.Store", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `RECIPE`, to read."""
    return train(RECIPE, tiles, tmp_path_factory.mktemp("runs") / "run").folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to spoil or to go on with."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """One browser for the tests of a module: to start it takes longer than to open a page.

    And no longer than that, since asyncio takes its loop to run in this thread while it is there.
    """
    from browser import start_chromium

    with start_chromium() as browser:
        yield browser


Type = Callable[[str], tuple[int, str]]


@pytest.fixture
def type_in() -> Type:
    """Run a command in this process; return its status and all that it says."""

    def run(line: str) -> tuple[int, str]:
        done = kernel(*shlex.split(line))
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def files() -> Files:
    return competition_files()


@pytest.fixture
def data(tmp_path: Path, files: Files) -> Path:
    write_zip(tmp_path / "data", files)
    return tmp_path / "data"
