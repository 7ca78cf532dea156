"""What leaves the kit gives the kit's own logits, by other people's code."""

import json
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import Type, competition_files, write_zip
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import expit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from kit import runs
from kit.base import Interpolation, KitError, Recipe, recipe_values
from kit.data import Store, open_store, recipe_dataset
from kit.runs import export_onnx, export_timm
from kit.training import Normalize

ROOT = Path(__file__).parents[1]
SMALL = Recipe(epochs=2, batch_size=8)
TIMM = Recipe(
    epochs=1,
    batch_size=8,
    model="test_resnet",
    crop=64,
    size=96,
    interpolation="bicubic",
    normalize="imagenet",
)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("place") / "data"
    write_zip(data, competition_files(train=24, test=9))
    return open_store(data)


def finished(recipe: Recipe, tiles: Store, folder: Path) -> Path:
    """Train a run, and move its weights and statistics from where a few steps leave them."""
    run = runs.Run(recipe, tiles, folder)
    list(run.train(progress=False))
    generator = torch.Generator().manual_seed(0)
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor * (0.5 + torch.rand(tensor.shape, generator=generator))
    save_file(state, path)
    # Figures of other weights: those of version 0.4.0 did not say of which.
    figures = json.loads((folder / "metrics.json").read_text())
    del figures["sha256"]
    (folder / "metrics.json").write_text(json.dumps(figures))
    return folder


def rewritten(run: Path, copy: Path, recipe: Recipe) -> Path:
    """Copy a run, as if it had been trained by another recipe with the same network."""
    shutil.copytree(run, copy)
    values = runs.read_config(run)
    values["recipe"] = recipe_values(recipe)
    values["preprocessing"] |= {
        name: getattr(recipe, name) for name in ("crop", "size", "interpolation")
    }
    (copy / "config.json").write_text(json.dumps(values))
    return copy


@pytest.fixture(scope="module")
def small(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(SMALL, tiles, tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="module")
def backbone(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(TIMM, tiles, tmp_path_factory.mktemp("timm") / "run")


def inputs(folder: Path, tiles: Store) -> Tensor:
    """Return the test tiles as the run's recipe crops and resizes them."""
    own = recipe_dataset(tiles.test.tiles, runs.load(folder, device="cpu").recipe)
    return own[list(range(len(own)))][0]


def logits(folder: Path, tiles: Store) -> np.ndarray:
    """Return PyTorch's logits of the test tiles, in float32."""
    trained = runs.load(folder, device="cpu")
    images = Normalize(*trained.recipe.channel_statistics)(inputs(folder, tiles))
    with torch.inference_mode():
        return trained.model.eval()(images).numpy()


def infer(path: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(["logits"], {"tiles": images})[0]


def test_onnx_takes_whole_tiles_in_any_number(small: Path, tiles: Store, tmp_path: Path) -> None:
    """The crop and the nearest pixels are in the graph."""
    path = tmp_path / "model.onnx"
    assert runs.write_onnx(path, small, tiles.test.tiles) <= export_onnx.TOLERANCE
    raw = np.ascontiguousarray(tiles.test.tiles.transpose(0, 3, 1, 2))
    expected = logits(small, tiles)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(infer(path, raw), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(infer(path, raw[4:5]), expected[4:5], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("crop", "size"), [(96, 32), (96, 40), (71, 48), (64, 64), (48, 64)])
def test_graph_takes_the_pixels_that_the_kit_takes(
    small: Path, tiles: Store, crop: int, size: int
) -> None:
    trained = runs.load(small, device="cpu")
    recipe = Recipe(crop=crop, size=size, widths=(4, 8))
    network = export_onnx.TileNetwork(
        runs.TrainedModel("", recipe, torch.nn.Identity(), trained.device, trained.dtype)
    )
    raw = torch.from_numpy(np.array(tiles.test.tiles)).permute(0, 3, 1, 2)
    own = recipe_dataset(tiles.test.tiles, recipe)
    expected = Normalize(*recipe.channel_statistics)(own[list(range(len(own)))][0])
    torch.testing.assert_close(network(raw), expected, rtol=0, atol=0)


def test_onnx_of_another_resize_takes_resized_tiles_and_says_so(
    backbone: Path, tiles: Store, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    runs.write_onnx(path, backbone, tiles.test.tiles)
    found = infer(path, inputs(backbone, tiles).numpy())
    np.testing.assert_allclose(found, logits(backbone, tiles), rtol=0, atol=1e-4)
    told = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert told["input"] == "uint8 RGB, (batch, 3, 96, 96)"
    assert json.loads(told["preprocessing"]) == {
        "crop": 64,
        "size": 96,
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "in_graph": ["normalize"],
    }
    assert str(ROOT).encode() not in path.read_bytes()


def test_onnx_that_differs_is_not_left(
    small: Path, tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    (tmp_path / "model.onnx").write_text("an older one")
    with pytest.raises(KitError, match="is not written: ONNX Runtime's logits differ"):
        runs.write_onnx(tmp_path / "model.onnx", small, tiles.test.tiles)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "an older one"


def code_of(readme: Path) -> list[str]:
    """Return the indented blocks of a model card, where it says how to load the model."""
    text = readme.read_text("utf-8").partition("## Load it")[2].partition("## Data")[0]
    blocks = "\n".join(line if line.startswith("    ") else "" for line in text.splitlines())
    return [textwrap.dedent(block) for block in blocks.split("\n\n") if block.strip()]


def test_timm_loads_the_folder_and_the_readme_tells_the_rest(
    backbone: Path, tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm resizes bicubically in another way; OpenCV's is in the README."""
    monkeypatch.setattr(export_timm, "EXACT", 1e-5)
    card = tmp_path / "card"
    difference = runs.write_timm(card, backbone, tiles.test.tiles)
    by_timm, by_the_run = code_of(card / "README.md")
    names: dict[str, Any] = {}
    exec(by_timm.replace("FOLDER", str(card)), names)
    assert names["options"]["crop_pct"] == 64 / 96
    model, transform = names["model"], names["transform"]
    own, found = logits(backbone, tiles), []
    with torch.inference_mode():
        for tile in np.array(tiles.test.tiles):
            names["tile"] = tile
            exec(by_the_run, names)
            exact = model(torch.from_numpy(names["inputs"])[None]).numpy()
            np.testing.assert_allclose(exact, own[len(found) : len(found) + 1], rtol=0, atol=1e-4)
            found.append(model(transform(Image.fromarray(tile))[None]).item())
    assert np.abs(expit(found) - expit(own[:, 0])).max() == pytest.approx(difference, abs=1e-6)
    told = f"lie within {difference:.1g} of those of\nthe run. Where that matters, resize"
    assert told in (card / "README.md").read_text("utf-8")
    with pytest.raises(KitError, match="card exists: name another folder"):
        runs.write_timm(card, backbone, tiles.test.tiles)


@pytest.mark.parametrize("resize", [("nearest", 96, 160), ("area", 96, 32), ("bicubic", 64, 64)])
def test_timm_is_told_the_resize_that_gives_the_runs_pixels(
    backbone: Path, tiles: Store, tmp_path: Path, resize: tuple[Interpolation, int, int]
) -> None:
    interpolation, crop, size = resize
    trained = runs.load(backbone, device="cpu")
    recipe = replace(trained.recipe, interpolation=interpolation, crop=crop, size=size)
    run = rewritten(backbone, tmp_path / "run", recipe)
    assert runs.write_timm(tmp_path / "card", run, tiles.test.tiles) <= runs.EXACT


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_the_cards_own_code_gives_the_runs_inputs(
    backbone: Path, tiles: Store, tmp_path: Path, interpolation: Interpolation
) -> None:
    recipe = replace(
        runs.load(backbone, device="cpu").recipe, interpolation=interpolation, crop=90, size=64
    )
    run = rewritten(backbone, tmp_path / "run", recipe)
    card = tmp_path / "card"
    runs.write_timm(card, run, tiles.test.tiles)
    _, by_the_run = code_of(card / "README.md")
    shown, _ = recipe_dataset(tiles.test.tiles, recipe)[list(range(len(tiles.test.tiles)))]
    expected = Normalize(*recipe.channel_statistics)(shown)
    for tile, inputs in zip(np.array(tiles.test.tiles), expected.numpy(), strict=True):
        names = {"tile": tile}
        exec(by_the_run, names)
        np.testing.assert_allclose(names["inputs"], inputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [pytest.param("deit_tiny_distilled_patch16_224", marks=pytest.mark.soak), "efficientvit_m0"],
)
def test_models_of_every_kind_are_exported(tiles: Store, tmp_path: Path, model: str) -> None:
    """Two classifiers, and a size that the model was told; one that it was not built for."""
    recipe = replace(TIMM, model=model, crop=96, interpolation="nearest")
    run = runs.Run(recipe, tiles, tmp_path / "run")
    list(run.train(progress=False))
    assert runs.write_timm(tmp_path / "card", run.folder, tiles.test.tiles) <= runs.EXACT
    if model.startswith("deit"):
        difference = runs.write_onnx(tmp_path / "model.onnx", run.folder, tiles.test.tiles)
        assert difference <= export_onnx.TOLERANCE


def test_the_kits_own_networks_are_none_of_timms(small: Path, tiles: Store, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="holds small, which is not a model of timm's"):
        runs.write_timm(tmp_path / "card", small, tiles.test.tiles)
    assert not (tmp_path / "card").exists()


def test_tensorboard_shows_the_history(small: Path, tmp_path: Path) -> None:
    runs.write_tensorboard(tmp_path, small)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    history = runs.read_history(small)
    for tag, name in {"valid/auc": "valid_auc", "train/loss": "train_loss"}.items():
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in shown] == [1, 2]
        expected = [getattr(result, name) for result in history]
        np.testing.assert_allclose([value for _, value in shown], expected, rtol=1e-6)
    with pytest.raises(KitError, match="exists: name another folder with --tensorboard"):
        runs.write_tensorboard(tmp_path, small)


def test_what_is_no_run_is_refused(tiles: Store, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="nowhere holds no run"):
        runs.write_onnx(tmp_path / "model.onnx", tmp_path / "nowhere", tiles.test.tiles)
    with pytest.raises(KitError, match="nowhere holds no run"):
        runs.write_tensorboard(tmp_path / "events", tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_command_exports_and_tells_the_difference(
    small: Path, tiles: Store, tmp_path: Path, type_in: Type
) -> None:
    file, data = tmp_path / "model.onnx", tiles.folder.parent
    status, said = type_in(f"export --run '{small}' --out '{file}' --data '{data}' --tiles 4")
    assert (status, "of PyTorch's (float32) on 4 tiles" in said) == (0, True), said
    assert file.stat().st_size > 200_000
    status, said = type_in(f"export --run '{small}'")
    assert (status, "say what to write: --out model.onnx" in said) == (1, True)
