"""What lies in a run folder is checked when it is read, and says what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RECIPE, edit_config, kernel
from scipy.special import expit

from kit import runs, training
from kit.base import KitError
from kit.data import Store, TileSet
from kit.runs import Run


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("recipe",), [], r"config\.json is not a run's configuration: recipe = \[\]"),
        (("recipe", "lr"), "fast", r"config\.json: lr = 'fast'"),
        (("preprocessing",), None, "preprocessing = None"),
        (("data",), "here", r"data = 'here'"),
        (("data", "fingerprint"), 3, r"data\.fingerprint = 3"),
        (("data", "is_standin"), "no", r"data\.is_standin = 'no'"),
        (("data", "train_tiles"), 1.5, r"data\.train_tiles = 1\.5"),
        (("class_names",), 2, "class_names = 2"),
        (("workers",), "two", "workers = 'two'"),
        (("options",), {"data": 1}, r"options\.data = 1"),
        (("options",), {"deterministic": "no"}, r"options\.deterministic = 'no'"),
        (("options",), {"cuda_graphs": 2}, r"options\.cuda_graphs = 2"),
    ],
)
def test_a_configuration_of_other_types_names_the_entry(
    run: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    edit_config(run, *keys, value=value)
    with pytest.raises(KitError, match=message):
        runs.read_config(run)
    done = kernel("train", "--resume", "--out", run)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auc": 0.9}, "auc = 0.9"),
        ({"auc": {"estimate": 2, "low": None, "high": None}}, r"auc\.estimate = 2"),
        ({"auc": {"estimate": 1, "low": 1, "high": 1, "error": 0}}, r"unknown key auc\.error"),
        ({"tiles": "many"}, "tiles = 'many'"),
        ({"log_loss": float("nan")}, "log_loss = nan"),
        ({"temperature": 0}, "temperature = 0"),
    ],
)
def test_figures_of_other_types_name_the_entry(
    run: Path, change: dict[str, Any], message: str
) -> None:
    path = run / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(
        KitError, match=rf"metrics\.json is not the figures of a finished run: {message}"
    ):
        runs.read_metrics(run)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"holds no finished epoch: .*history\.jsonl is empty"),
        (["[]"], r"history\.jsonl line 1 is damaged"),
        (["{"], r"history\.jsonl line 1 is damaged"),
        (['{"epoch": 1}'], r"history\.jsonl line 1 is damaged: train_loss"),
    ],
)
def test_a_history_without_epochs_is_a_message(run: Path, lines: list[str], message: str) -> None:
    (run / "history.jsonl").write_text("\n".join(lines))
    with pytest.raises(KitError, match=message):
        runs.read_history(run)


def test_a_history_that_lacks_an_epoch_is_damaged(run: Path) -> None:
    path = run / "history.jsonl"
    path.write_text(path.read_text().partition("\n")[2])
    with pytest.raises(KitError, match=r"history\.jsonl line 1 is damaged: it is epoch 2"):
        runs.read_history(run)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("id", "tile", r"line 2: id 'tile' is not 40 hex digits"),
        ("label", "2", r"line 2: label '2' is not 0 or 1"),
        ("probability", "1.5", r"line 2: probability '1.5' is not a number from 0 to 1"),
        ("probability", "", r"line 2: probability '' is not a number from 0 to 1"),
        ("logit", "nan", r"line 2: logit 'nan' is not a number"),
        ("logit", "inf", r"line 2: logit 'inf' is not a number"),
    ],
)
def test_predictions_of_other_values_name_the_line(
    run: Path, column: str, value: str, message: str
) -> None:
    path = run / "valid.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[0, column] = value
    path.write_text(table.to_csv(index=False))
    with pytest.raises(KitError, match=message):
        runs.read_valid(run)


def test_predictions_of_version_0_4_0_have_the_logits_of_their_probabilities(run: Path) -> None:
    path = run / "valid.csv"
    table = pd.read_csv(path, dtype=str).drop(columns="logit")
    table.loc[:1, "probability"] = ["1.0", "0.0"]
    path.write_text(table.to_csv(index=False))
    valid = runs.read_valid(run)
    assert np.isfinite(valid["logit"]).all()
    assert valid["logit"][0] == valid["logit"].max() == pytest.approx(36.7, abs=0.1)
    np.testing.assert_allclose(expit(valid["logit"][2:]), valid["probability"][2:], rtol=1e-12)


def test_a_probability_of_one_costs_no_training_its_figures(tiles: Store, tmp_path: Path) -> None:
    """In float64 the sigmoid of a logit of 37 is 1; no logit follows from it any more."""

    def evaluate(state: training.TrainingState, *data: Any) -> dict[str, Any]:
        figures = training.evaluate(state, *data)
        with torch.no_grad():
            state.model.head.weight.mul_(1e6)
        return figures

    run = Run(RECIPE, tiles, tmp_path / "run", device="cpu")
    list(run.train(evaluate=evaluate, progress=False))
    valid = runs.read_valid(run.folder)
    assert set(valid["probability"]) <= {0.0, 1.0}
    assert valid["logit"].abs().min() > 37
    assert valid["logit"].nunique() > 20
    assert runs.read_metrics(run.folder)["temperature"] > 0
    held_out = TileSet(tiles.train.tiles[run.holdout.valid], tiles.train.ids[run.holdout.valid])
    trained = runs.load(run.folder, device="cpu")
    np.testing.assert_array_equal(trained.predict_logits(held_out, progress=False), valid["logit"])
    assert np.isfinite(trained.predict(held_out, calibrate=True, progress=False)).all()


def test_weights_that_are_not_those_of_the_figures_are_refused(run: Path) -> None:
    path = run / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(KitError, match=r"is damaged, or another run's: make it again with: python"):
        runs.load(run)


def test_a_file_is_no_run_and_no_folder_to_train_into(tiles: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(KitError, match="file is no folder, and so no run"):
        runs.load(file)
    for out in (file, file / "run"):
        with pytest.raises(KitError, match=r"cannot train into .*: Not a directory"):
            Run(RECIPE, tiles, out)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 300, "File name too long"), ("\udcff", r"\\udcff is not a name in UTF-8")],
)
def test_a_name_that_no_folder_can_have_is_a_message(
    tiles: Store, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(KitError, match=message):
        Run(RECIPE, tiles, tmp_path / name)
    with pytest.raises(KitError):
        runs.load(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "split.csv", "history.jsonl", "model.safetensors"])
def test_what_is_no_file_is_not_read(run: Path, tiles: Store, name: str) -> None:
    """A folder, and a link to itself."""
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(KitError):
        runs.read_history(run)
        runs.load(run)
        Run(RECIPE, tiles, run, resume=True)
