"""Runs that processes on several devices share out: the same bits, and nothing lost by a kill."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import (
    FORKSERVER,
    ROOT,
    Forked,
    Type,
    competition_files,
    run_in_session,
    run_kernel,
    write_zip,
)

from kit.base import FolderLock, KitError, read_json
from kit.data import Store, pack_tiles
from kit.training import Devices, choose_devices, devices
from kit.training.bar import Progress, TrainingBar

SMALL = "--batch-size 8 --widths 4 6 8"
FOLDS = f"--epochs 6 --folds 2 {SMALL}"
LONG = f"--epochs 2000 --folds 2 {SMALL}"
FIGURES = ("model.safetensors", "valid.csv", "metrics.json")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("data")
    write_zip(data, competition_files(train=60, test=9))
    return pack_tiles(data)


@pytest.fixture
def place(tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data; what is started there shares one import of the libraries."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(tiles.data)
    monkeypatch.setattr(devices, "PROCESSES", FORKSERVER)
    return tmp_path


def good(said: tuple[int, str]) -> str:
    status, text = said
    assert status == 0, text
    return text


def figures(folder: Path) -> dict[str, bytes]:
    """The content of all files that say what a training came to."""
    files = (path for name in FIGURES for path in folder.rglob(name))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.mark.usefixtures("gpus")
def test_devices_are_named_as_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Devices("cuda", ("cuda:0", "cuda:1"))
    assert choose_devices("auto", ["auto"]) == both == choose_devices("auto", ["cuda:0", "cuda:1"])
    assert choose_devices("auto", ["cuda:1"]) == Devices("cuda:1")
    assert choose_devices("auto", ["cpu:2"]) == Devices("cpu", ("cpu", "cpu"))
    assert choose_devices("auto", ["cpu:1"]) == choose_devices("cpu") == Devices("cpu")
    assert devices._visible("cuda:1") == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-5")
    assert devices._visible("cuda:1") == "MIG-5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cpu:0", "cpu:0 is none of auto (all GPUs), a GPU's name as cuda:0, and a number"),
        ("gpu", "gpu is none of auto"),
        ("auto cpu:2", "auto is none of"),
        ("cpu:999", "999 processes on "),
        ("cuda:9", "there is no cuda:9: this machine has "),
        ("cuda:99999999999", "is none of auto"),
        ("cpu:2 --device cpu", "--devices cpu:2 and --device cpu contradict each other"),
        ("cpu:2", "shares out the runs of --folds, and there is one run: choose a --device, or"),
    ],
)
def test_what_is_no_device_is_one_message(
    place: Path, type_in: Type, words: str, message: str
) -> None:
    status, said = type_in(f"train --out runs/x --devices {words}")
    assert status == 1
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (place / "runs").exists()


@pytest.mark.usefixtures("gpus")
def test_gpus_that_are_not_there_and_mixed_kinds_are_refused() -> None:
    with pytest.raises(KitError, match="no cuda:2: this machine has 2 GPUs, from cuda:0 on"):
        choose_devices("auto", ["cuda:0", "cuda:2"])
    with pytest.raises(KitError, match="computed on one kind of device"):
        choose_devices("auto", ["cuda:0", "cpu:1"])


def test_without_a_gpu_auto_is_the_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_devices("auto", ["auto"]) == Devices("auto") == choose_devices("auto")


@pytest.fixture(scope="module")
def alone(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation whose folds are trained one after the other."""
    out = tmp_path_factory.mktemp("alone") / "cv"
    run_kernel("train", *FOLDS.split(), "--data", tiles.data, "--out", out)
    assert len(figures(out)) == 3 * 2 + 2
    return out


def test_folds_on_two_devices_are_those_of_one_bit_for_bit(
    place: Path, type_in: Type, alone: Path
) -> None:
    said = good(type_in(f"train {FOLDS} --out runs/two --devices cpu:2"))
    assert figures(place / "runs/two") == figures(alone)
    # A refit is one run, which nobody has asked to share out.
    good(type_in("train --refit runs/two"))
    for fold in range(2):
        assert said.count(f"runs/two/fold-{fold}: AUC ") == 1
        assert (place / f"runs/two/fold-{fold}/report.html").exists()
    assert said.count("out-of-fold AUC") == 1


def test_models_on_two_devices_predict_as_on_one(place: Path, type_in: Type, alone: Path) -> None:
    shutil.copytree(alone / "fold-0", "single")
    runs = f"--run {alone} --run single"
    good(type_in(f"predict {runs} --out one.csv"))
    said = good(type_in(f"predict {runs} --out two.csv --devices cpu:2"))
    assert f"two.csv: predicted by the mean of {alone} (0.50), single (0.50) (3 models)" in said
    assert (place / "one.csv").read_bytes() == (place / "two.csv").read_bytes()


@pytest.mark.parametrize("command", ["compare --seeds 1", "momentum --seeds 1 --values 0.9 0.5"])
def test_studies_on_two_devices_print_the_tables_of_one(
    place: Path, type_in: Type, command: str
) -> None:
    line = f"{command} --epochs 1 {SMALL} --out"
    one = good(type_in(f"{line} one"))
    two = good(type_in(f"{line} two --devices cpu:2"))

    def tables(said: str) -> list[str]:
        return [row for row in said.split("\n") if row.startswith((" ", "0", "s"))]

    assert tables(one)
    assert tables(one) == tables(two)
    assert figures(place / "one") == figures(place / "two")


def test_a_search_on_two_devices_ends_with_its_trials(place: Path, type_in: Type) -> None:
    line = f"search --trials 3 --epochs 1 {SMALL} --out found --devices cpu:2"
    assert "best of 3 finished trials" in good(type_in(line))
    assert len(pd.read_csv(place / "found" / "trials.csv")) == 3


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act as soon as a condition holds, beside what goes on."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.002)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def begun(folder: Path) -> int:
    return len(list(folder.glob("fold-*/last.pt")))


def test_the_run_of_a_killed_process_is_handed_on(place: Path, type_in: Type, alone: Path) -> None:
    folder = place / "runs/two"
    thread = when(lambda: begun(folder) == 2, lambda: multiprocessing.active_children()[0].kill())
    said = good(type_in(f"train {FOLDS} --out runs/two --devices cpu:2"))
    thread.join()
    assert said.count("note: the process on cpu was killed, as the kernel does when memory") == 1
    assert figures(folder) == figures(alone)


def test_when_all_are_killed_the_command_says_how_to_go_on(
    place: Path, type_in: Type, alone: Path
) -> None:
    folder = place / "runs/two"

    def kill_all() -> None:
        for process in multiprocessing.active_children():
            process.kill()

    thread = when(lambda: begun(folder) == 2, kill_all)
    status, said = type_in(f"train {FOLDS} --out runs/two --devices cpu:2")
    thread.join()
    assert status == 1
    end = "What is finished is kept: go on with: python kernels/train.py --resume --out runs/two"
    assert said.rstrip().endswith(end)
    # On the devices that it was begun on; a fold by itself is one run.
    config = read_json(folder / "fold-0/config.json", dict, what="")
    assert config["options"]["devices"] == ["cpu:2"]
    good(type_in("train --resume --out runs/two/fold-1"))
    good(type_in("train --resume --out runs/two"))
    assert figures(folder) == figures(alone)


@pytest.mark.usefixtures("place")
def test_a_run_that_fails_is_told_once_and_ends_the_others(type_in: Type) -> None:
    line = f"train --epochs 3 --folds 2 {SMALL} --lr 1e30 --out runs/x --devices cpu:2"
    status, said = type_in(line)
    assert status == 1
    assert said.count("error: ") == said.count("try a smaller --lr") == 1
    assert not multiprocessing.active_children()


def test_a_request_to_stop_keeps_a_checkpoint_of_each_run(place: Path, type_in: Type) -> None:
    folder = place / "runs/two"
    thread = when(lambda: begun(folder) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status, said = type_in(f"train {LONG} --out runs/two --devices cpu:2")
    thread.join()
    assert status == 128 + signal.SIGTERM
    step = "error: stopped: go on with: python kernels/train.py --resume --out runs/two"
    assert said.rstrip().endswith(step)
    assert not any(locked(part) for part in folder.glob("fold-*"))


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)]
)
def test_a_command_that_ends_ends_its_processes(
    tiles: Store, tmp_path: Path, number: signal.Signals
) -> None:
    """As from a terminal, Ctrl-C comes to all of them; a kill to the command alone.

    They are started as everywhere outside of tests.
    """
    folder = tmp_path / "cv"
    words = [ROOT / "kernels" / "train.py", *LONG.split()]
    words += ["--data", tiles.data, "--out", folder, "--devices", "cpu:2"]
    command = Forked(target=run_in_session, args=([*map(str, words)], tmp_path, tmp_path))
    command.start()
    while begun(folder) < 2:
        assert command.is_alive()
        time.sleep(0.05)
    assert command.pid is not None
    if number == signal.SIGINT:
        os.killpg(command.pid, number)
    else:
        command.kill()
    command.join()
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    if number == signal.SIGINT:
        assert command.exitcode == 128 + number
        step = f"stopped: go on with: python kernels/train.py --resume --out {folder}"
        assert said.rstrip().endswith(step)
    end = time.monotonic() + 30
    while any(map(locked, folder.glob("fold-*"))):
        assert time.monotonic() < end
        time.sleep(0.05)


def locked(folder: Path) -> bool:
    try:
        FolderLock(folder).release()
    except KitError:
        return True
    return False


def test_several_bars_are_one() -> None:
    """Two runs are finished, and each process is within one more; the first had begun with one."""
    told = [Progress(2.5, 1, "a"), Progress(2.25, 0.0, "b"), None]
    assert devices._joint(told) == Progress(2.75, 1, "a; b")
    # The sum of a run's steps falls short of one by rounding.
    assert devices._joint([Progress(3 - 1e-9, 0, ""), Progress(2.5, 0, "")]).done == 3.5


def test_a_bar_follows_what_others_have_done_up_and_down() -> None:
    """A run whose process is killed is not done any more; rounding does not pass the whole."""
    with TrainingBar(2) as bar:
        for done in (1.5, 2 + 1e-9, 1.0, 2.0):
            bar.show(Progress(done, 0, "runs"))
            assert bar._bar.n == min(done, 2)
