"""What a pushed script does in Kaggle's container, with a small program in a command's place."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import Popen

import pytest
from kaggle_server import until

from kit import kaggle
from kit.base import KitError
from kit.kaggle import Job, on_kaggle, supervise
from kit.kaggle.mounts import find_weights
from kit.kaggle.on_kaggle import link_data
from kit.kaggle.sums import CHECKSUMS

NAME = "hcd-before"
RUN = f"runs/{NAME}"
WRITES = f"""
import pathlib, sys, time
place = pathlib.Path("{RUN}", "last.pt")
place.parent.mkdir(parents=True, exist_ok=True)
place.write_text("a checkpoint")
"""
# As a training does, which then says where it stands.
OBEYS = """
import signal, sys
def stop(*_):
    place.write_text("a checkpoint within the epoch")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
"""
WORKS = "time.sleep(60)"
RUN_JOB = """
import sys
from pathlib import Path
from kit import kaggle
from kit.kaggle import supervise
supervise._TICK = 0.05
home, root = Path("home").absolute(), Path("kaggle").absolute()
kaggle.run_job(kaggle.Job("train", (), sys.argv[1], False, 1.0), home, root)
"""


def job(**changes: object) -> Job:
    values = {"command": "train", "arguments": (), "name": NAME, "resume": False, "hours": 1.0}
    return Job(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the job writes, in the container where this test stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervise, "_TICK", 0.05)
    Path("kaggle/input/histopathologic-cancer-detection").mkdir(parents=True)
    Path("kaggle/working").mkdir()
    Path("home/kernels").mkdir(parents=True)
    return tmp_path / "kaggle" / "working"


def let_time_fly(monkeypatch: pytest.MonkeyPatch, hours: float, *, when: Path) -> None:
    """Have the clock jump ahead as soon as a file is there."""
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600 * hours * when.exists())


def put(command: str, program: str) -> None:
    Path("home/kernels", f"{command}.py").write_text(program)


def run(job: Job) -> None:
    kaggle.run_job(job, Path("home").absolute(), Path("kaggle").absolute())


def sums(working: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((working / CHECKSUMS).read_text())
    return found


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_command_that_fails_ends_the_job_and_what_it_left_is_summed(working: Path) -> None:
    put("train", f"{WRITES}sys.exit(3)")
    with pytest.raises(KitError, match="train ended with status 3"):
        run(job())
    assert sums(working) == {f"{RUN}/last.pt": digest("a checkpoint")}


def start() -> "Popen[str]":
    return Popen(
        [sys.executable, "-c", RUN_JOB, NAME],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_what_a_killed_kernel_leaves_is_summed_already(working: Path) -> None:
    put("train", WRITES + WORKS)
    written = {f"{RUN}/last.pt": digest("a checkpoint")}
    with start() as process:
        until(lambda: (working / CHECKSUMS).exists() and sums(working) == written)
        os.killpg(process.pid, signal.SIGKILL)
    assert sums(working) == written


def test_a_request_to_stop_reaches_the_command(working: Path) -> None:
    put("train", OBEYS + WRITES + WORKS)
    with start() as process:
        until(lambda: (working / CHECKSUMS).exists() and sums(working))
        os.kill(process.pid, signal.SIGTERM)
        said, _ = process.communicate()
    assert process.returncode == 0
    assert "stopped after 0.0 h: push it again with --resume" in said
    assert sums(working) == {f"{RUN}/last.pt": digest("a checkpoint within the epoch")}


def test_at_its_limit_a_command_is_asked_to_stop_and_its_checkpoint_is_used(
    working: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("train", OBEYS + WRITES + WORKS)
    let_time_fly(monkeypatch, 1.1, when=working / RUN / "last.pt")
    run(job())
    assert "stopped after 1.1 h: push it again with --resume" in capsys.readouterr().out
    assert sums(working) == {f"{RUN}/last.pt": digest("a checkpoint within the epoch")}


def test_a_command_that_does_not_stop_is_ended(
    working: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "GRACE", 0.2)
    put("train", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WRITES}{WORKS}")
    let_time_fly(monkeypatch, 1.1, when=working / RUN / "last.pt")
    run(job())
    assert sums(working) == {f"{RUN}/last.pt": digest("a checkpoint")}


def test_predicting_has_a_limit_too(
    working: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("train", WRITES)
    put("predict", f"import pathlib, time; pathlib.Path('begun').touch(); {WORKS}")
    let_time_fly(monkeypatch, 1.5, when=working / "begun")
    run(job())
    assert "the training is finished, and predicting was not in time" in capsys.readouterr().out
    assert sums(working) == {f"{RUN}/last.pt": digest("a checkpoint")}


def test_a_job_without_its_gpu_ends_before_all_else(
    working: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(KitError, match=r"no GPU that PyTorch can use has come.*--no-gpu"):
        run(job(gpu=True))
    assert not list(working.iterdir())


SHOWS = "import sys; print(*sys.argv[1:])"
MODEL = "timm/resnet/pyTorch/resnet50.a1_in1k/1/model.safetensors"


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize("mount", ["datasets/somebody/weights/resnet50.pth", f"models/{MODEL}"])
def test_weights_are_found_under_their_mount(capfd: pytest.CaptureFixture[str], mount: str) -> None:
    """And nothing else that is mounted is taken for them."""
    found = put_file(f"kaggle/input/{mount}")
    put_file("kaggle/input/datasets/somebody/weights/readme.md")
    put_file("kaggle/input/notebooks/nobody/other/runs/other/last.pt")
    put_file("kaggle/input/histopathologic-cancer-detection/train/model.safetensors")
    put("train", SHOWS)
    put("predict", SHOWS)
    run(job(weights="resnet50.a1_in1k"))
    said = capfd.readouterr().out
    assert f"the weights of resnet50.a1_in1k: {found}\n" in said
    assert f"--no-pretrained --weights {found} --data" in said


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["w/model.safetensors", "w/pytorch_model.bin"], "w/model.safetensors"),
        (["resnet18/model.pth", "ResNet-50/model.pth"], "ResNet-50/model.pth"),
        (["resnet50_a1_in1k.pth", "resnet50_a2_in1k.pth"], "resnet50_a1_in1k.pth"),
        (["a/model.pth", "b/model.pth"], None),
        (["a/notes.txt"], None),
    ],
)
def test_of_several_weights_those_of_the_model_are_taken(
    tmp_path: Path, files: list[str], chosen: str | None
) -> None:
    for name in files:
        put_file(tmp_path / "input/datasets/o" / name)
    if chosen is not None:
        found = find_weights(tmp_path, "resnet50.a1_in1k")
        assert found == tmp_path / "input/datasets/o" / chosen
        return
    with pytest.raises(KitError, match=r"choose one with --weights|no file of weights"):
        find_weights(tmp_path, "resnet50.a1_in1k")


@pytest.mark.usefixtures("working")
def test_packed_tiles_that_are_mounted_are_used() -> None:
    for name in ("manifest.json", "train.npy", "test.npy"):
        put_file(f"kaggle/input/datasets/nobody/tiles/{name}")
    Path("kaggle/temp").mkdir()
    data = link_data(Path("kaggle").absolute(), Path("kaggle/temp"))
    place = Path("kaggle/input/datasets/nobody/tiles/train.npy").resolve()
    assert (data / "store" / "train.npy").resolve() == place
    assert not (data / "store").is_symlink()


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"arguments": ("--folds", "5")}, True),
        ({"arguments": ("--folds=5", "--fold", "0")}, False),
        ({"arguments": ("--folds", "5", "--device", "cuda:1")}, False),
        ({"arguments": ("--folds", "5"), "gpu": False}, False),
        ({}, False),
        ({"command": "momentum"}, True),
    ],
)
def test_both_gpus_are_used_where_there_are_many_runs(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, object],
    devices: bool,
) -> None:
    monkeypatch.setattr(on_kaggle, "require_gpus", lambda: ["Tesla T4"] * 2)
    for command in ("train", "momentum", "predict"):
        put(command, SHOWS)
    run(job(**{"gpu": True, **changes}))
    said = capfd.readouterr().out.partition("$")[2].splitlines()[0]
    assert ("--devices auto" in said) is devices


def put_file(path: str | Path) -> Path:
    place = Path(path).absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"")
    return place
