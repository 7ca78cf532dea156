"""Two real processes, as torchrun starts them, beside one."""

import os
import signal
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, STREAMS, Forked, finished_epochs, run_script
from torch import nn
from torch.distributed import run as torchrun_script

from kit import models, runs
from kit.base import KitError, Recipe
from kit.data import EpochSampler, Store, TileDataset, eval_loader, train_loader
from kit.runs import Run

# It has no BatchNorm, whose statistics would be each process's own.
RECIPE = Recipe(norm="none", epochs=2, batch_size=8, lr=1e-4, precision="fp32")
OPTIONS = ["--norm", "none", "--batch-size", "8", "--lr", "1e-4", "--precision", "fp32"]
CLOCKS = {"seconds": 0.0, "tiles_per_second": 0.0}


@pytest.fixture(scope="module")
def alone(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process."""
    run = Run(RECIPE, tiles, tmp_path_factory.mktemp("runs") / "alone", device="cpu")
    list(run.train(progress=False))
    return run.folder


def training(tiles: Store, out: Path, *options: str) -> list[str]:
    """Return the words of the command that trains the run."""
    command = [str(ROOT / "kernels" / "train.py"), "--data", str(tiles.data), "--out", str(out)]
    return [*command, "--device", "cpu", *OPTIONS, *options]


def start(variables: dict[str, str], argv: list[str], log: Path) -> BaseProcess:
    """Start a script with variables of its own, in a process that has loaded the libraries."""
    log.mkdir()
    process = Forked(target=run_with, args=(variables, argv, log))
    process.start()
    return process


def run_with(variables: dict[str, str], argv: list[str], log: Path) -> None:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", **variables}
    run_script(argv, Path.cwd(), log)


def torchrun(tiles: Store, out: Path, *options: str) -> str:
    """Train a run in two processes, forked from torchrun's own; return what they print."""
    log = out.with_name("log")
    words = ["--standalone", "--nproc-per-node=2", "--run-path", "--start-method=fork"]
    process = start(
        {}, [str(torchrun_script.__file__), *words, *training(tiles, out, *options)], log
    )
    process.join()
    output, errors = ((log / stream).read_text() for stream in STREAMS)
    assert process.exitcode == 0, errors
    return output


def assert_same_within_rounding(folder: Path, reference: Path) -> None:
    """float32 sums of another order, some dozen steps of Adam on: 1e-4 of the figure."""
    for one, other in zip(runs.read_history(folder), runs.read_history(reference), strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.valid_loss == pytest.approx(other.valid_loss, rel=1e-4)
    pair = [runs.read_valid(place) for place in (folder, reference)]
    assert pair[0][["id", "label"]].equals(pair[1][["id", "label"]])
    np.testing.assert_allclose(pair[0]["probability"], pair[1]["probability"], atol=1e-4)


def test_two_processes_that_torchrun_starts_train_what_one_does(
    tiles: Store, alone: Path, tmp_path: Path
) -> None:
    output = torchrun(tiles, tmp_path / "run", "--epochs", "2")
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
    torchrun(tiles, tmp_path / "run", "--epochs", "1", "--teacher", str(alone))
    taught = replace(RECIPE, epochs=1, teacher=(alone,))
    one = Run(taught, tiles, tmp_path / "one", device="cpu")
    list(one.train(progress=False))
    assert_same_within_rounding(tmp_path / "run", tmp_path / "one")


def test_a_killed_process_ends_both_and_one_alone_goes_on(tiles: Store, tmp_path: Path) -> None:
    """This process stands for torchrun, which would end the second one by itself."""
    folder, many = tmp_path / "run", 60
    words = training(tiles, folder, "--epochs", str(many), "--checkpoint-steps", "1")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": store.host,
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    first, second = (
        start(common | {"RANK": rank, "LOCAL_RANK": rank}, words, tmp_path / rank) for rank in "01"
    )
    while second.is_alive() and finished_epochs(folder) < 1:
        time.sleep(0.02)
    second.kill()
    first.join()
    assert (first.exitcode, second.exitcode) == (1, -signal.SIGKILL)
    errors = (tmp_path / "0/stderr").read_text()
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
