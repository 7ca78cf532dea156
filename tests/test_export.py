"""What leaves the kit gives the kit's own logits, by other people's code."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from conftest import Type, competition_files, write_zip
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from kit import runs
from kit.base import KitError, Recipe
from kit.data import Store, open_store, recipe_dataset
from kit.runs import export
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
    return folder


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
    assert export.write_onnx(path, small, tiles.test.tiles) <= export.TOLERANCE
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
    network = export.TileNetwork(
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
    export.write_onnx(path, backbone, tiles.test.tiles)
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
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    (tmp_path / "model.onnx").write_text("an older one")
    with pytest.raises(KitError, match="is not written: ONNX Runtime's logits differ"):
        export.write_onnx(tmp_path / "model.onnx", small, tiles.test.tiles)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "an older one"


def test_timm_loads_the_folder_and_knows_its_preprocessing(
    backbone: Path, tiles: Store, tmp_path: Path
) -> None:
    export.write_timm(tmp_path / "card", backbone)
    model = timm.create_model(f"local-dir:{tmp_path / 'card'}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(model)
    assert settings["crop_pct"] == 64 / 96
    assert settings["interpolation"] == "bicubic"
    assert list(settings["input_size"]) == [3, 96, 96]
    images = inputs(backbone, tiles) / 255
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        found = model((images - mean) / std).numpy()
    np.testing.assert_allclose(found, logits(backbone, tiles), rtol=0, atol=1e-4)

    with pytest.raises(KitError, match="card exists: name another folder"):
        export.write_timm(tmp_path / "card", backbone)


def test_the_small_cnn_is_none_of_timms(small: Path, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="holds the small CNN, which is none of timm's"):
        export.write_timm(tmp_path / "card", small)
    assert not (tmp_path / "card").exists()


def test_tensorboard_shows_the_history(small: Path, tmp_path: Path) -> None:
    export.write_tensorboard(tmp_path, small)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    history = runs.read_history(small)
    for tag, name in {"valid/auc": "valid_auc", "train/loss": "train_loss"}.items():
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in shown] == [1, 2]
        expected = [getattr(result, name) for result in history]
        np.testing.assert_allclose([value for _, value in shown], expected, rtol=1e-6)
    with pytest.raises(KitError, match="exists: name another folder with --tensorboard"):
        export.write_tensorboard(tmp_path, small)


def test_what_is_no_run_is_refused(tiles: Store, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="nowhere holds no run"):
        export.write_onnx(tmp_path / "model.onnx", tmp_path / "nowhere", tiles.test.tiles)
    with pytest.raises(KitError, match="nowhere holds no run"):
        export.write_tensorboard(tmp_path / "events", tmp_path / "nowhere")
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
