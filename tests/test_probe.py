"""A probe is a run: fitted by the formula, and every command works on its folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import kernel, run_kernel
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from kit import base, data, models, runs, training
from kit.base import KitError, Recipe
from kit.training.logistic import Regression
from kit.training.probes import STRENGTHS, choose_strength

RECIPE = Recipe(
    model="test_resnet",
    size=48,
    per_class=None,
    normalize="model",
    probe="linear",
    pool=("mean", "centre"),
    batch_size=2,
    epochs=1,
)


def problem(tiles: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of different scales and means, and labels that follow some of them."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.1, 3, features)
    values = (rng.normal(size=(tiles, features)) * scales + rng.normal(size=features)).astype("f2")
    weights = rng.normal(size=features) / features**0.5
    return values, (values @ weights + rng.logistic(size=tiles) > 0).astype(np.int64)


@pytest.mark.parametrize(("tiles", "features"), [(600, 20), (120, 200)])
@pytest.mark.parametrize("held", [0, 10**8])
def test_a_logistic_regression_is_scikit_learns(
    tiles: int, features: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.training.logistic._MOST_HELD", held)
    monkeypatch.setattr("kit.training.logistic._CHUNK", 70)
    values, labels = problem(tiles, features)
    strengths = np.array([0.03, 0.1, 1.0, 1.0])
    used = np.ones((tiles, 4), bool)
    used[: tiles // 3, 3] = False
    found = Regression(values).fit(labels, strengths, used).logits(values)
    scaled = StandardScaler().fit_transform(values.astype(float))
    for column, (strength, own) in enumerate(zip(strengths, used.T, strict=True)):
        reference = LogisticRegression(C=1 / (strength * own.sum()), tol=1e-8, max_iter=1000)
        reference.fit(scaled[own], labels[own])
        expected = reference.decision_function(scaled)
        assert np.abs(found[:, column] - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize(("tiles", "features"), [(600, 21), (120, 200)])
def test_where_a_fit_begins_changes_nothing(tiles: int, features: int) -> None:
    values, labels = problem(tiles, features)
    regression, used = Regression(values), np.ones((tiles, 1), bool)
    strong = regression.fit(labels, np.array([1.0]), used)
    plain = regression.fit(labels, np.array([0.1]), used).logits(values)
    near = regression.fit(labels, np.array([0.1]), used, start=strong).logits(values)
    assert np.abs(near - plain).max() < 1e-3 * np.abs(plain).max()
    again = regression.fit(labels, np.array([1.0]), used, start=strong)
    assert np.allclose(again.logits(values), strong.logits(values), atol=1e-4)


def test_a_constant_feature_does_no_harm() -> None:
    values, labels = problem(100, 5)
    values[:, 2] = 7
    fit = Regression(values).fit(labels, np.array([0.1]), np.ones((100, 1), bool))
    assert np.isfinite(fit.logits(values)).all()


def test_the_strength_follows_from_the_tiles_that_are_held_out_by_slide() -> None:
    rng = np.random.default_rng(0)
    slides = np.repeat([f"slide{number}" for number in range(10)], 30)
    labels = rng.integers(0, 2, 300)
    # What tells the classes of a slide apart is the slide's own, apart from one weak feature.
    own = (slides[:, None] == np.unique(slides)) * (2 * labels[:, None] - 1)
    weak = labels[:, None] + rng.normal(scale=2, size=(300, 1))
    values = np.concatenate([own, weak, rng.normal(size=(300, 30))], 1).astype("f2")
    by_slide = choose_strength(Regression(values), labels, slides, 0)[0]
    by_tile = choose_strength(Regression(values), labels, None, 0)[0]
    assert by_slide in STRENGTHS
    assert by_slide > by_tile


def test_few_tiles_get_a_strength_in_the_middle() -> None:
    values, _ = problem(3, 5)
    assert choose_strength(Regression(values), np.array([0, 1, 1]), None, 0)[0] == np.median(
        STRENGTHS
    )


def test_a_small_network_learns_what_no_line_separates() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(800, 2)).astype("f2")
    labels = (values[:, 0] * values[:, 1] > 0).astype(np.int64)
    recipe = replace(RECIPE, probe="mlp")
    head = training.fit_probe(recipe, values, labels).head
    with torch.no_grad():
        answers = head(torch.from_numpy(values).float()).squeeze(1).numpy() > 0
    assert (answers == labels).mean() > 0.85


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> data.Store:
    folder = tmp_path_factory.mktemp("probe") / "data"
    data.write_standin(folder, train=120, test=20, seed=0)
    return data.open_store(folder)


def fit(recipe: Recipe, store: data.Store, folder: Path) -> runs.Run:
    run = runs.begin_run(recipe, store, folder, device="cpu")
    assert len(list(run.train(progress=False))) == 1
    return run


@pytest.mark.parametrize("probe", ["linear", "mlp"])
@pytest.mark.parametrize("views", [1, 8])
def test_its_folder_alone_predicts_what_its_features_did(
    store: data.Store, tmp_path: Path, probe: base.Probe, views: base.Views
) -> None:
    recipe = replace(RECIPE, probe=probe, views=views, precision="fp32")
    run = fit(recipe, store, tmp_path / "run")
    valid = runs.read_valid(run.folder)
    shutil.copytree(run.folder, tmp_path / "moved")
    moved = runs.load(tmp_path / "moved", device="cpu")
    rows = run.holdout.valid
    held_out = data.TileSet(store.train.tiles[rows], store.train.ids[rows])
    logits = moved.predict_logits(held_out, progress=False)
    # Features were kept in half precision.
    np.testing.assert_allclose(logits, valid["logit"], rtol=0.02, atol=0.02)
    by_features = moved.predict_logits(store.train, progress=False)
    np.testing.assert_allclose(by_features[rows], valid["logit"], rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_files(store: data.Store, tmp_path: Path) -> None:
    for probe in ("linear", "mlp"):
        recipe = replace(RECIPE, probe=probe)  # type: ignore[arg-type]
        folders = [fit(recipe, store, tmp_path / f"{probe}-{name}").folder for name in "ab"]
        for file in ("model.safetensors", "encoder.safetensors", "valid.csv", "split.csv"):
            one, two = ((folder / file).read_bytes() for folder in folders)
            assert one == two, file


def test_the_encoder_of_several_runs_lies_on_the_disk_once(
    store: data.Store, tmp_path: Path
) -> None:
    one, two = (fit(RECIPE, store, tmp_path / name).folder for name in "ab")
    assert (one / "encoder.safetensors").samefile(two / "encoder.safetensors")


def test_other_weights_beside_a_head_are_refused(store: data.Store, tmp_path: Path) -> None:
    run = fit(RECIPE, store, tmp_path / "run")
    other = fit(replace(RECIPE, seed=1), store, tmp_path / "other")
    (run.folder / "encoder.safetensors").unlink()
    shutil.copy(other.folder / "encoder.safetensors", run.folder)
    with pytest.raises(KitError, match=r"encoder\.safetensors is damaged, or another run's"):
        runs.load(run.folder, device="cpu")


def test_a_probe_that_was_stopped_goes_on(store: data.Store, tmp_path: Path) -> None:
    whole = fit(RECIPE, store, tmp_path / "whole").folder
    runs.begin_run(RECIPE, store, tmp_path / "stopped", device="cpu")._lock.release()
    resumed = runs.begin_run(RECIPE, store, tmp_path / "stopped", device="cpu", resume=True)
    list(resumed.train(progress=False))
    for file in ("model.safetensors", "valid.csv"):
        assert (tmp_path / "stopped" / file).read_bytes() == (whole / file).read_bytes()


def test_a_broken_record_of_features_names_the_remedy(store: data.Store, tmp_path: Path) -> None:
    own = data.open_store(Path(shutil.copytree(store.data, tmp_path / "data")))
    shutil.rmtree(tmp_path / "data" / "features", ignore_errors=True)
    fit(RECIPE, own, tmp_path / "run")
    (about,) = (tmp_path / "data" / "features").glob("*/about.json")
    about.write_text("{")
    words = ("--run", tmp_path / "run", "--data", own.data, "--out", tmp_path / "a.csv")
    done = kernel("predict", *words)
    assert f"Delete {about.parent}: its features are made again\n" in done.stderr
    shutil.rmtree(about.parent)
    assert "it is valid" in run_kernel("predict", *words)


def test_a_model_of_a_folder_is_built_again_when_the_folder_is_gone(
    store: data.Store, tmp_path: Path
) -> None:
    source = models.find_source("test_resnet")
    base.write_json(tmp_path / "model" / "config.json", base.plain_values(source.describe()))
    recipe = replace(RECIPE, model=f"local-dir:{tmp_path / 'model'}")
    run = fit(recipe, store, tmp_path / "run")
    shutil.rmtree(tmp_path / "model")
    assert runs.load(run.folder, device="cpu").predict(store.test, progress=False).shape == (20,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "small"}, "a probe needs a timm model"),
        ({"model": "test_vit", "pool": ("stages",), "size": 20}, "test_vit does not take images"),
    ],
)
def test_what_cannot_be_a_probe_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(KitError, match=message):
        models.create_model(replace(RECIPE, **options))  # type: ignore[arg-type]


def test_every_command_takes_a_probe(store: data.Store, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(models.create_model(Recipe(model="test_resnet", size=96)).state_dict(), weights)
    probe = ("--recipe", "probe", "--model", "test_resnet", "--weights", weights)
    # One's own weights take the place of those that the recipe asks for.
    probe = (*probe, "--size", 48, "--data", store.data)
    folds, cnn, other = (tmp_path / name for name in ("folds", "cnn", "other"))
    said = run_kernel("train", *probe, "--folds", 2, "--out", folds)
    assert "out-of-fold AUC" in said
    assert (folds / "fold-1" / "report.html").stat().st_size > 10_000
    one = ("--run", folds, "--data", store.data, "--out", tmp_path / "one.csv")
    assert "it is valid" in run_kernel("predict", *one, "--calibrate", "--views", 8)
    small = Recipe(per_class=None, epochs=1, size=32, batch_size=16, folds=2)
    for part, fold in runs.check_folds(small, store, cnn, device="cpu").items():
        fit(fold, store, part)
    runs.pool_folds(cnn)
    run_kernel("ensemble", folds, cnn, "--out", other)
    words = ("--ensemble", other / "ensemble.json", "--data", store.data)
    assert "it is valid" in run_kernel("predict", *words, "--out", other / "submission.csv")
    run = folds / "fold-0"
    onnx = run_kernel("export", "--run", run, "--data", store.data, "--out", tmp_path / "a.onnx")
    assert "a.onnx" in onnx
    refused = kernel("train", *probe, "--lr", 0.1, "--out", tmp_path / "no")
    assert refused.stderr == "error: --lr has no meaning for --probe linear: leave it out\n"
    again = kernel("train", *probe, "--resume", "--out", run)
    assert "exclude each other" not in again.stderr + again.stdout
    both = kernel("train", *probe, "--pretrained", "--out", tmp_path / "no")
    assert "pretrained and weights exclude each other" in both.stderr + both.stdout
