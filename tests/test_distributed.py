"""Two real processes that torchrun starts, beside one."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finished_epochs
from torch import nn

from kit import models, runs
from kit.base import KitError, Recipe
from kit.data import EpochSampler, Store, TileDataset, eval_loader, train_loader
from kit.runs import Run

ROOT = Path(__file__).parents[1]
# It has no BatchNorm, whose statistics would be each process's own.
RECIPE = Recipe(model="test_vit", size=32, epochs=2, batch_size=8, lr=1e-4, precision="fp32")
OPTIONS = ["--model", "test_vit", "--size", "32", "--batch-size", "8", "--lr", "1e-4"]
CLOCKS = {"seconds": 0.0, "tiles_per_second": 0.0}


@pytest.fixture(scope="module")
def alone(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process."""
    run = Run(RECIPE, tiles, tmp_path_factory.mktemp("runs") / "alone", device="cpu")
    list(run.train(progress=False))
    return run.folder


def torchrun(tiles: Store, out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "kernels" / "train.py"), "--data", str(tiles.folder.parent)]
    command += ["--out", str(out), "--device", "cpu", "--precision", "fp32", *OPTIONS, *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def assert_same_within_rounding(folder: Path, reference: Path) -> None:
    """float32 sums of another order, some dozen steps of Adam on: 1e-4 of the figure."""
    for one, other in zip(runs.read_history(folder), runs.read_history(reference), strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.valid_loss == pytest.approx(other.valid_loss, rel=1e-4)
    pair = [runs.read_valid(place) for place in (folder, reference)]
    assert pair[0][["id", "label"]].equals(pair[1][["id", "label"]])
    np.testing.assert_allclose(pair[0]["probability"], pair[1]["probability"], atol=1e-4)


def test_two_processes_train_what_one_does(tiles: Store, alone: Path, tmp_path: Path) -> None:
    process = torchrun(tiles, tmp_path / "run", "--epochs", "2")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("epoch 1/2") == output.count("epoch 2/2") == 1
    assert_same_within_rounding(tmp_path / "run", alone)
    assert runs.read_config(tmp_path / "run")["processes"] == 2
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {path.name for path in alone.iterdir()} | {
        "layers.txt",
        "curves.png",
        "report.html",
    }
    assert len(runs.read_valid(tmp_path / "run")) == 24


def test_two_processes_learn_from_a_teacher_as_one_does(
    tiles: Store, alone: Path, tmp_path: Path
) -> None:
    process = torchrun(tiles, tmp_path / "run", "--epochs", "1", "--teacher", str(alone))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    taught = replace(RECIPE, epochs=1, teacher=(alone,))
    one = Run(taught, tiles, tmp_path / "one", device="cpu")
    list(one.train(progress=False))
    assert_same_within_rounding(tmp_path / "run", tmp_path / "one")


def test_a_killed_process_ends_both_and_one_alone_goes_on(tiles: Store, tmp_path: Path) -> None:
    folder, many = tmp_path / "run", 60
    process = torchrun(tiles, folder, "--epochs", str(many), "--checkpoint-steps", "1")
    while process.poll() is None and finished_epochs(folder) < 1:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    second = next(child for child in children if b"\0RANK=1\0" in environment(child))
    os.kill(int(second), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("error: ") == 1
    assert "error: another process of this training has ended" in errors
    assert "type the command again with --resume" in errors
    progress = torch.load(folder / "last.pt", weights_only=True)["progress"]
    assert 0 < progress["epoch"] < many

    more = replace(RECIPE, epochs=progress["epoch"] + 1)
    run = Run(more, tiles, folder, device="cpu", resume=True, force=True)
    resumed = [replace(result, **CLOCKS) for result in run.train(progress=False)]
    assert [result.epoch for result in resumed] == [more.epochs]
    assert runs.read_config(folder)["processes"] == 1
    assert runs.read_config(folder)["resumed_from"]["processes"] == 2
    whole = Run(more, tiles, tmp_path / "whole", device="cpu")
    list(whole.train(progress=False))
    assert_same_within_rounding(folder, tmp_path / "whole")


def environment(process: str) -> bytes:
    return b"\0" + Path(f"/proc/{process}/environ").read_bytes()


def test_shares_make_up_the_batches() -> None:
    whole = EpochSampler(50, batch_size=8, seed=3)
    shares = [EpochSampler(50, batch_size=8, seed=3, rank=rank, world_size=4) for rank in range(4)]
    for (epoch, batch), *parts in zip(whole, *shares, strict=True):
        assert [(own, len(part)) for own, part in parts] == [(epoch, 2)] * 4
        assert sorted(index for _, part in parts for index in part) == sorted(batch)
    assert shares[1].batch(2) == whole.batch(2)


@pytest.mark.parametrize("count", [4, 7, 1500])
def test_each_held_out_tile_is_evaluated_by_one_process(count: int) -> None:
    data = TileDataset(np.zeros((count, 2, 2, 3), np.uint8), np.arange(count))
    loaders = [eval_loader(data, rank=rank, world_size=4) for rank in range(4)]
    seen = torch.cat([labels for loader in loaders for _, labels in loader])
    assert seen.tolist() == list(range(count))
    with pytest.raises(KitError, match=f"{count} held-out tiles are too few for {count + 1}"):
        eval_loader(data, world_size=count + 1)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    data = TileDataset(np.zeros((16, 2, 2, 3), np.uint8), np.zeros(16))
    with pytest.raises(KitError, match=r"--batch-size 8 cannot be shared by 3 processes: .* of 3"):
        train_loader(data, batch_size=8, workers=0, world_size=3)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(model="test_resnet")])
def test_synchronized_norms_change_nothing_else(recipe: Recipe) -> None:
    """In evaluation they are what they were, and checkpoints fit both."""
    model = models.create_model(recipe).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
        state = model.state_dict()
        synchronized = models.synchronize_batch_norms(model).eval()
        assert torch.equal(synchronized(images), expected)
    assert synchronized.state_dict().keys() == state.keys()
    norms = models.batch_norms(synchronized).values()
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
