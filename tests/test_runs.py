import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import competition_files, write_zip

from kit import metrics, runs, store
from kit.config import Recipe
from kit.errors import KitError
from kit.runs import Run
from kit.store import Store

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(epochs=2, batch_size=8, size=32)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("data")
    write_zip(data, competition_files(train=80, test=10))
    return store.pack(data)


def train(recipe: Recipe, tiles: Store, folder: Path, *, resume: bool = False) -> Run:
    run = Run(recipe, tiles, folder, device="cpu", resume=resume)
    for _ in run.train(progress=False):
        pass
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a run's result consists of, clocks apart."""
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for epoch in history:
        del epoch["seconds"], epoch["tiles_per_second"]
    names = ("split.csv", "model.safetensors", "valid.csv", "metrics.json")
    return {name: (folder / name).read_bytes() for name in names} | {
        "history": json.dumps(history).encode()
    }


def test_folder_holds_the_run(tiles: Store, tmp_path: Path) -> None:
    run = train(RECIPE, tiles, tmp_path / "run")
    assert {path.name for path in run.folder.iterdir()} == {
        "config.json",
        "split.csv",
        "history.jsonl",
        "last.pt",
        "model.safetensors",
        "valid.csv",
        "metrics.json",
    }
    split = pd.read_csv(run.folder / "split.csv")
    assert split["fold"].value_counts().to_dict() == {"train": 56, "valid": 24}
    valid = runs.read_valid(run.folder)
    assert valid["id"].tolist() == split["id"][split["fold"] == "valid"].tolist()
    final = runs.read_metrics(run.folder)
    expected = metrics.auc(valid["label"].to_numpy(), valid["probability"].to_numpy())
    assert final["auc"]["estimate"] == pytest.approx(expected, abs=1e-12)
    assert final["auc"]["low"] < final["auc"]["estimate"] < final["auc"]["high"]
    last = runs.read_history(run.folder)[-1]
    assert last.valid_auc == pytest.approx(expected, abs=1e-12)
    assert last.epoch == 2


def test_folder_alone_rebuilds_the_model(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(
        RECIPE, bn="after", size=40, crop=80, normalize="competition", widths=(4, 8, 8)
    )
    run = train(recipe, tiles, tmp_path / "run")
    valid = runs.read_valid(run.folder)
    rows = [tiles.train.ids.tolist().index(tile) for tile in valid["id"]]
    held_out = store.TileSet(tiles.train.tiles[rows], tiles.train.ids[rows])
    probabilities = runs.load(run.folder, device="cpu").predict(held_out, progress=False)
    np.testing.assert_array_equal(probabilities, valid["probability"])


def test_the_same_seed_gives_the_same_folder(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(RECIPE, augment="stain")
    first, second = (train(recipe, tiles, tmp_path / name) for name in ("one", "two"))
    assert contents(first.folder) == contents(second.folder)
    other = train(replace(recipe, seed=1), tiles, tmp_path / "three")
    assert contents(first.folder)["split.csv"] != contents(other.folder)["split.csv"]


def test_existing_folder_is_never_overwritten(tiles: Store, tmp_path: Path) -> None:
    run = train(RECIPE, tiles, tmp_path / "run")
    before = contents(run.folder)
    with pytest.raises(KitError, match="exists: choose another --out"):
        Run(RECIPE, tiles, run.folder)
    assert contents(run.folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.1}, r"recipe\.lr was 0\.001 and is 0\.1"),
        ({"seed": 3}, r"recipe\.seed was 0 and is 3"),
    ],
)
def test_resuming_with_other_options_is_refused(
    tiles: Store, tmp_path: Path, change: dict[str, float], message: str
) -> None:
    train(RECIPE, tiles, tmp_path / "run")
    with pytest.raises(KitError, match=message):
        Run(replace(RECIPE, **change), tiles, tmp_path / "run", resume=True)  # type: ignore[arg-type]


def test_resuming_on_other_data_is_refused(tiles: Store, tmp_path: Path) -> None:
    train(RECIPE, tiles, tmp_path / "run")
    other = replace(tiles, fingerprint="0" * 64)
    with pytest.raises(KitError, match=r"data\.fingerprint was"):
        Run(RECIPE, other, tmp_path / "run", resume=True)


def test_resuming_nothing_is_refused(tiles: Store, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="holds no run"):
        Run(RECIPE, tiles, tmp_path / "run", resume=True)


def test_resuming_a_finished_run_changes_nothing(tiles: Store, tmp_path: Path) -> None:
    run = train(RECIPE, tiles, tmp_path / "run")
    before = contents(run.folder)
    assert contents(train(RECIPE, tiles, run.folder, resume=True).folder) == before


def test_batch_larger_than_the_training_side_is_refused(tiles: Store, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="56 training tiles do not fill a batch of 64"):
        train(replace(RECIPE, batch_size=64), tiles, tmp_path / "run")


def edit_config(folder: Path, *keys: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("preprocessing", "mean"), [0.5, 0.5, 0.5], "mean is not what this kit would"),
        (("preprocessing", "size"), 48, "size is not what this kit would"),
        (("class_names",), ["positive", "negative"], "class_names is not"),
        (("recipe", "widths"), [16, 64, 128], "does not fit"),
        (("recipe", "colour"), 1, "unknown key colour"),
    ],
)
def test_predicting_with_another_preprocessing_is_refused(
    tiles: Store, tmp_path: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    run = train(replace(RECIPE, epochs=1), tiles, tmp_path / "run")
    edit_config(run.folder, *keys, value=value)
    with pytest.raises(KitError, match=message):
        runs.load(run.folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "is not a run's configuration"),
        ("config.json", b"[]", "is not a run's configuration"),
        ("model.safetensors", b"\x80\x04N.", "does not fit"),
    ],
)
def test_damaged_folder_is_refused(
    tiles: Store, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    run = train(replace(RECIPE, epochs=1), tiles, tmp_path / "run")
    (run.folder / name).write_bytes(content)
    with pytest.raises(KitError, match=message):
        runs.load(run.folder)


def test_damaged_checkpoint_is_refused(tiles: Store, tmp_path: Path) -> None:
    run = train(replace(RECIPE, epochs=1), tiles, tmp_path / "run")
    (run.folder / "last.pt").write_bytes(b"garbage")
    with pytest.raises(KitError, match=r"last\.pt is damaged"):
        Run(replace(RECIPE, epochs=1), tiles, run.folder, resume=True)


def test_unfinished_run_does_not_predict(tiles: Store, tmp_path: Path) -> None:
    Run(RECIPE, tiles, tmp_path / "run")
    with pytest.raises(KitError, match=r"is not a finished run: go on with train\.py --resume"):
        runs.load(tmp_path / "run")


def test_killed_at_any_instant_and_resumed_is_uninterrupted(tiles: Store, tmp_path: Path) -> None:
    data = tiles.folder.parent
    options = ["--data", str(data), "--device", "cpu", "--epochs", "12", "--batch-size", "8"]
    command = [sys.executable, str(ROOT / "kernels" / "train.py"), *options]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": one_thread}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, **quiet)
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(killed)], **quiet)
    for epochs in (2, 7):
        while process.poll() is None and lines(killed) < epochs:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "metrics.json").exists()
        process = subprocess.Popen([*command, "--out", str(killed), "--resume"], **quiet)
    assert process.wait() == 0
    assert contents(killed) == contents(tmp_path / "whole")


def lines(folder: Path) -> int:
    history = folder / "history.jsonl"
    return len(history.read_text().splitlines()) if history.exists() else 0


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_values(
    tiles: Store, tmp_path: Path
) -> None:
    run = train(RECIPE, tiles, tmp_path / "run")
    state = torch.load(run.folder / "last.pt", weights_only=True)
    assert state["epoch"] == 2
    assert len(state["history"]) == 2
