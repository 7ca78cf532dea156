"""Features: encoded once, whole or absent, resumed, never those of other weights."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import kernel, run_kernel
from simulated_gpu import CUDA, simulated_gpu

from kit import models, training
from kit.base import FileLock, KitError, Recipe
from kit.data import FeatureFile, Features, TileSet

RECIPE = Recipe(
    model="test_resnet", size=96, normalize="half", probe="linear", pool=("mean", "centre")
)
CPU = torch.device("cpu")


def tile_set(folder: Path | None, count: int = 5) -> TileSet:
    tiles = np.random.default_rng(0).integers(0, 256, (count, 96, 96, 3), np.uint8)
    ids = np.array([f"{row:040x}" for row in range(count)])
    return TileSet(tiles, ids, features=folder)


def encoder_of(recipe: Recipe = RECIPE, device: torch.device = CPU) -> training.TileEncoder:
    return training.TileEncoder(models.create_encoder(recipe), recipe, device)


def rows(start: int, stop: int) -> Features:
    return np.arange(3 * start, 3 * stop, dtype=np.float16).reshape(-1, 3)


def test_a_file_is_whole_or_absent_and_goes_on_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.data.features.BLOCK", 4)
    file = FeatureFile(tmp_path / "there" / "train-0.npy", (23, 3))
    asked = []

    def encode(start: int, stop: int = 23) -> Iterator[Features]:
        asked.append(start)
        for row in range(start, stop, 3):
            yield rows(row, min(row + 3, stop))
        if stop < 23:
            raise KeyboardInterrupt

    for stop in (2, 11, 11, 22):
        with pytest.raises(KeyboardInterrupt):
            file.write(lambda start, stop=stop: encode(start, stop))
        assert file.read() is None
    whole = file.write(encode)
    # Of the blocks of four, the last is written again: the machine may have gone off in it.
    assert asked == [0, 0, 4, 4, 16]
    assert np.array_equal(whole, rows(0, 23))
    assert np.array_equal(np.load(file.path), rows(0, 23))
    assert [path.name for path in file.path.parent.iterdir()] == ["train-0.npy"]


def test_rows_that_another_encoder_left_are_written_again(tmp_path: Path) -> None:
    (tmp_path / "a.npy.partial").write_bytes(b"x" * 100_000)
    file = FeatureFile(tmp_path / "a.npy", (5, 3))
    assert np.array_equal(file.write(lambda start: [rows(start, 5)]), rows(0, 5))


def test_a_file_of_another_shape_is_not_read(tmp_path: Path) -> None:
    FeatureFile(tmp_path / "a.npy", (5, 3)).write(lambda _: [rows(0, 5)])
    assert FeatureFile(tmp_path / "a.npy", (3, 5)).read() is None
    os.truncate(tmp_path / "a.npy", 140)
    assert FeatureFile(tmp_path / "a.npy", (5, 3)).read() is None


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    bad = rows(0, 5)
    bad[3, 1] = np.inf
    with pytest.raises(KitError, match="features of tile 3 are not finite"):
        FeatureFile(tmp_path / "a.npy", (5, 3)).write(lambda _: [bad])


def test_two_processes_do_not_write_the_same_features(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / "a.npy.partial"),
        pytest.raises(KitError, match=r"another process writes .*a\.npy: wait for it"),
    ):
        FeatureFile(tmp_path / "a.npy", (5, 3)).write(lambda _: [rows(0, 5)])


def test_features_are_the_encoders_on_normalised_tiles(tmp_path: Path) -> None:
    tiles, encoder = tile_set(tmp_path), encoder_of(replace(RECIPE, precision="fp32"))
    images = torch.from_numpy(tiles.tiles).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        upright, turned = (encoder.encoder(view) for view in (images, images.transpose(2, 3)))
    found = torch.from_numpy(np.array(encoder.encode(tiles, progress=False))).float()
    assert torch.allclose(found, upright, rtol=2e-3, atol=1e-4)
    views = [torch.from_numpy(np.array(encoder.encode(tiles, v, progress=False))) for v in range(8)]
    assert any(torch.allclose(view.float(), turned, rtol=2e-3, atol=1e-4) for view in views[1:])
    in_memory = encoder.encode(tile_set(None), progress=False)
    assert np.array_equal(in_memory, found.half().numpy())


def test_features_are_read_and_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = tile_set(tmp_path)
    first = np.array(encoder_of().encode(tiles, progress=False))
    monkeypatch.setattr(training.TileEncoder, "_features", None)
    assert np.array_equal(encoder_of().encode(tiles, progress=False), first)
    assert encoder_of().plan([tiles], 1) == training.Plan(0, 0, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"size": 64},
        {"crop": 64},
        {"normalize": "unit"},
        {"pool": ("mean",)},
        {"precision": "fp32"},
    ],
)
def test_features_of_other_weights_or_preprocessing_are_not_read(
    tmp_path: Path, change: dict[str, object]
) -> None:
    tiles = tile_set(tmp_path)
    folders = {
        encoder_of(recipe).folder(tiles)
        for recipe in (RECIPE, replace(RECIPE, **change))  # type: ignore[arg-type]
    }
    assert len(folders) == 2


def test_features_of_other_tiles_are_not_read(tmp_path: Path) -> None:
    encoder = encoder_of()
    tiles = tile_set(tmp_path)
    other = replace(tiles, ids=tiles.ids[::-1].copy(), tiles=tiles.tiles[::-1])
    one, two = (encoder.encode(each, progress=False) for each in (tiles, other))
    assert np.array_equal(one, two[::-1])


def test_encoding_on_a_gpu_waits_once_and_copies_no_tile_twice(tmp_path: Path) -> None:
    recipe = replace(RECIPE, precision="fp32", size=32)
    waits = {}
    for count in (1500, 3000):
        tiles = tile_set(tmp_path, count)
        with simulated_gpu() as counts:
            encoder = encoder_of(recipe, CUDA)
            counts.clear()
            on_gpu = np.array(encoder.encode(tiles, progress=False))
        waits[count] = counts.waits["download"]
        assert counts.uploaded <= 1.01 * count * 32 * 32 * 3 + 16 * count
    # However many batches there are.
    assert waits == {1500: 1, 3000: 1}
    on_cpu = encoder_of(recipe).encode(tile_set(None, 3000), progress=False)
    assert np.allclose(on_gpu, on_cpu, rtol=5e-3, atol=1e-3)


def test_the_command_says_what_it_costs_and_what_comes_next(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(models.create_model(Recipe(model="test_resnet", size=96)).state_dict(), weights)
    words = ("--model", "test_resnet", "--weights", weights, "--size", 96, "--data", data)
    said = run_kernel("encode", *words)
    assert "31 tiles to encode, all views together: about 0:0" in said
    assert "train, view 0: 24 tiles" in said
    assert "next: python kernels/train.py --recipe probe" in said
    assert "all there already" in run_kernel("encode", *words)
    refused = kernel("encode", "--data", data)
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: name a model with --model; --list shows those that have short names\n"
    )
    assert "virchow2" in run_kernel("encode", "--list")
