"""A refit trains on all tiles, and claims no figure that it has not found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RECIPE, contents, kernel, run_kernel, train
from safetensors.numpy import load_file

from kit import runs
from kit.base import KitError, StoppedError
from kit.data import Store, recipe_dataset, recipe_holdout, train_loader
from kit.models import create_model
from kit.training import TrainingState, choose_precision, fit


@pytest.fixture(scope="module")
def chosen(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which may be refitted."""
    folder = tmp_path_factory.mktemp("runs") / "chosen"
    train(RECIPE, tiles, folder)
    return folder


@pytest.fixture(scope="module")
def refit(chosen: Path, tiles: Store) -> Path:
    run_kernel("train", "--refit", chosen, "--data", tiles.folder.parent)
    return chosen.with_name("chosen-refit")


def test_all_tiles_are_trained_on_by_the_same_recipe(chosen: Path, refit: Path) -> None:
    sides, all_tiles = (pd.read_csv(folder / "split.csv") for folder in (chosen, refit))
    assert set(sides["fold"]) == {"train", "valid"}
    assert all_tiles["id"].tolist() == sides["id"].tolist()
    assert set(all_tiles["fold"]) == {"train"}
    configs = [runs.read_config(folder) for folder in (chosen, refit)]
    assert configs[0]["recipe"] == configs[1]["recipe"]
    assert configs[1]["data"]["train_tiles"] == len(sides)
    assert configs[1]["refit_of"]["run"] == str(chosen)


def test_no_figure_of_a_refit_is_of_tiles_that_it_was_trained_on(chosen: Path, refit: Path) -> None:
    """Its own predictions of the holdout, which it was trained on, stand nowhere."""
    assert (refit / "valid.csv").read_bytes() == (chosen / "valid.csv").read_bytes()
    figures, own = runs.read_metrics(chosen), runs.read_metrics(refit)
    assert own.pop("refit_of") == str(chosen)
    assert own.pop("sha256") != figures.pop("sha256")
    assert own == figures
    for epoch in runs.read_history(refit):
        assert (epoch.valid_loss, epoch.valid_accuracy, epoch.valid_auc) == (None, None, None)


def test_a_refit_is_the_training_that_has_these_tiles_alone(refit: Path, tiles: Store) -> None:
    """The same training by the loop's own means, without a run."""
    rows = np.union1d(*recipe_holdout(tiles, RECIPE))
    dataset = recipe_dataset(tiles.train.tiles, RECIPE, labels=tiles.labels, rows=rows, train=True)
    steps = len(rows) // RECIPE.batch_size
    dtype = choose_precision(RECIPE.precision, torch.device("cpu"))
    state = TrainingState(create_model(RECIPE), RECIPE, steps_per_epoch=steps, dtype=dtype)
    loader = train_loader(dataset, batch_size=RECIPE.batch_size)
    nothing = {"valid_loss": 0, "valid_accuracy": 0, "valid_auc": 0, "min_running_var": None}
    for _ in fit(state, loader, loader, evaluate=lambda *_: nothing, progress=False):
        pass
    kept = load_file(refit / "model.safetensors")
    for name, tensor in state.model.state_dict().items():
        assert np.array_equal(kept[name], tensor.numpy()), name


def test_what_is_said_of_a_refit_names_the_run_that_chose_it(chosen: Path, refit: Path) -> None:
    page = (refit / "report.html").read_text()
    assert f"A refit of {chosen} on its training and held-out tiles together, which has no" in page
    assert "Most wrong" not in page
    assert "python kernels/train.py --refit" in page


def test_predictions_and_ensembles_take_a_refit(
    chosen: Path, refit: Path, tiles: Store, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    train(replace(RECIPE, lr=3e-3), tiles, other)
    run_kernel("ensemble", refit, other, "--out", tmp_path / "both")
    weights = runs.read_ensemble(tmp_path / "both/ensemble.json").weights
    run_kernel("ensemble", chosen, other, "--out", tmp_path / "first")
    before = runs.read_ensemble(tmp_path / "first/ensemble.json").weights
    assert weights == {str(refit if run == str(chosen) else run): w for run, w in before.items()}
    out = tmp_path / "submission.csv"
    run_kernel("predict", "--run", refit, "--data", tiles.data, "--out", out)
    assert runs.read_submission(out) is not None
    with pytest.raises(KitError, match=r"chosen-refit refits .*chosen, and is judged by its pred"):
        runs.read_predictions([chosen, refit])


def test_a_stopped_refit_goes_on_as_if_it_never_was(
    chosen: Path, refit: Path, tiles: Store, tmp_path: Path
) -> None:
    folder, recipe = tmp_path / "stopped", runs.refit_recipe(chosen)
    for _ in runs.begin_run(recipe, tiles, folder, refit_of=chosen).train(progress=False):
        break
    done = kernel("train", "--resume", "--out", folder, "--data", tiles.data)
    assert done.returncode == 0, done.stderr
    expected = contents(refit)
    assert contents(folder) == expected


def test_a_fold_and_all_folds_are_refitted_alike(tiles: Store, tmp_path: Path) -> None:
    options = ("--epochs", "1", "--batch-size", "8", "--data", tiles.data)
    run_kernel("train", *options, "--folds", "2", "--out", tmp_path / "cv")
    run_kernel("train", "--refit", tmp_path / "cv", "--data", tiles.data)
    folder = tmp_path / "cv-refit"
    assert len(pd.read_csv(folder / "split.csv")) == len(tiles.train)
    assert (folder / "valid.csv").read_bytes() == (tmp_path / "cv/valid.csv").read_bytes()
    assert runs.members(folder) == [folder]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--epochs", "3"), "--epochs has no meaning with --refit"),
        (("--recipe", "compact"), "--recipe has no meaning with --refit"),
        (("--resume",), "--refit was None and is"),
    ],
)
def test_another_recipe_is_refused(
    chosen: Path, tiles: Store, words: tuple[str, ...], message: str
) -> None:
    out = chosen if "--resume" in words else chosen.with_name("none")
    done = kernel("train", "--refit", chosen, *words, "--data", tiles.data, "--out", out)
    assert done.returncode == 1
    assert message in done.stderr
    assert not chosen.with_name("none").exists()


def test_what_cannot_be_refitted_is_named(chosen: Path, refit: Path) -> None:
    with pytest.raises(KitError, match="chosen-refit is a refit itself"):
        runs.refit_recipe(refit)
    with pytest.raises(KitError, match="holds no run"):
        runs.refit_recipe(chosen.with_name("missing"))


def test_a_run_that_its_holdout_has_chosen_cannot_be_refitted(tiles: Store, tmp_path: Path) -> None:
    train(replace(RECIPE, keep="best", epochs=1), tiles, tmp_path / "best")
    with pytest.raises(KitError, match="train it with --keep last"):
        runs.refit_recipe(tmp_path / "best")


def test_another_run_in_its_place_is_noticed(chosen: Path, tiles: Store, tmp_path: Path) -> None:
    origin = shutil.copytree(chosen, tmp_path / "origin")
    recipe = runs.refit_recipe(origin)
    run = runs.begin_run(recipe, tiles, tmp_path / "refit", refit_of=origin)
    valid = (origin / "valid.csv").read_text().splitlines()
    (origin / "valid.csv").write_text("\n".join(valid[:-1]) + "\n")
    with pytest.raises(KitError, match=r"origin is not the run any more that .*refit was begun"):
        list(run.train(progress=False))
    assert not (tmp_path / "refit/metrics.json").exists()


def test_a_stop_is_told_as_of_any_run(chosen: Path, tiles: Store, tmp_path: Path) -> None:
    run = runs.begin_run(runs.refit_recipe(chosen), tiles, tmp_path / "refit", refit_of=chosen)
    with pytest.raises(StoppedError):
        raise run._stopped(15)
    assert json.loads((tmp_path / "refit/config.json").read_text())["refit_of"]
