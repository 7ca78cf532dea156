"""Mutated files: never a crash, never a wrong tile accepted. `-m soak` runs the long form."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, competition_files, random_tile, tiff, write_folder, write_zip
from fuzz import mutate
from kaggle_server import tiff as opencv_tiff

from kit import runs
from kit.base import KitError, Recipe
from kit.data import Store, open_store, pack_tiles
from kit.runs import Run

RECIPE = Recipe(epochs=1, batch_size=8, size=32)
BATCH = 100
SHORT = 150
LONG = 10_000
counts = pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.soak)])


def assert_proved(packed: Store, labels: dict[str, int]) -> None:
    """Each tile that was accepted hashes to its id and has its own label."""
    for tiles in (packed.train, packed.test):
        for tile, pixels in zip(tiles.ids, tiles.tiles, strict=True):
            assert hashlib.sha1(pixels.tobytes()).hexdigest() == tile
    assert all(
        labels[tile] == label for tile, label in zip(packed.train.ids, packed.labels, strict=True)
    )


def labels_of(files: Files) -> dict[str, int]:
    rows = (line.split(",") for line in files["train_labels.csv"].decode().split()[1:])
    return {tile: int(label) for tile, label in rows}


@counts
def test_mutated_tiles(tmp_path: Path, count: int) -> None:
    """Each is left out with its reason, or its pixels are still those that its id names."""
    accepted = left_out = 0
    for batch in range(0, count, BATCH):
        rng = np.random.default_rng(batch)
        files = mutated_competition(rng, min(BATCH, count - batch))
        data = tmp_path / str(batch)
        (write_folder if batch % (2 * BATCH) else write_zip)(data, files)
        packed = pack_tiles(data, skip_bad=True)
        assert_proved(packed, labels_of(files))
        mutated = sum(name.startswith("train/") for name in files) - 2
        assert len(packed.train) + len(packed.skipped) == mutated + 2
        accepted += len(packed.train) - 2
        left_out += len(packed.skipped)
    assert accepted + left_out == count
    # Few faults hit bytes that mean nothing.
    assert left_out > count / 2


def mutated_competition(rng: np.random.Generator, count: int) -> Files:
    """Two good training tiles, a test tile, and `count` mutated ones, by Pillow and OpenCV."""
    files = competition_files(train=2, test=1)
    rows = []
    for number in range(count):
        pixels, other = random_tile(rng), random_tile(rng)
        encode = opencv_tiff if number % 2 else tiff
        name = hashlib.sha1(pixels.tobytes()).hexdigest()
        files[f"train/{name}.tif"] = mutate(encode(pixels), rng, encode(other))
        rows.append(f"{name},{number % 2}\n")
    files["train_labels.csv"] += "".join(rows).encode()
    return files


@counts
def test_mutated_archives(tmp_path: Path, count: int) -> None:
    """Each is refused with a message, or its tiles and labels are still the right ones."""
    files = flat_competition()
    labels = labels_of(files)
    path = write_zip(tmp_path, files)
    whole = path.read_bytes()
    other = write_zip(tmp_path / "other", competition_files(train=2, test=1)).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(count):
        path.write_bytes(mutate(whole, rng, other))
        try:
            packed = pack_tiles(tmp_path, skip_bad=bool(number % 2))
        except KitError as error:
            assert str(tmp_path) in str(error)
            refused += 1
        else:
            assert_proved(packed, labels)
            left_out = json.loads((packed.folder / "manifest.json").read_text())["skipped"]
            assert len(packed.train) + len(left_out) >= len(labels)
    assert refused > count / 2


def flat_competition() -> Files:
    """Tiles that deflate to little: most of the archive is then structure, which faults hit."""
    files = {"sample_submission.csv": b"id,label\n", "train_labels.csv": b"id,label\n"}
    for shade in range(8):
        pixels = np.full((96, 96, 3), shade, np.uint8)
        name = hashlib.sha1(pixels.tobytes()).hexdigest()
        split, table = (
            ("train", "train_labels.csv") if shade < 6 else ("test", "sample_submission.csv")
        )
        files[f"{split}/{name}.tif"] = tiff(pixels)
        files[table] += f"{name},{shade % 2}\n".encode()
    return files


@counts
def test_mutated_stores(tmp_path: Path, count: int) -> None:
    """A packed folder from elsewhere: refused with a message, or read with its own labels."""
    files = flat_competition()
    write_zip(tmp_path, files)
    folder = pack_tiles(tmp_path).folder
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    rng = np.random.default_rng(0)
    names = sorted(whole)
    for _ in range(count):
        name = names[rng.integers(len(names))]
        (folder / name).write_bytes(mutate(whole[name], rng, whole["train.csv"]))
        (tmp_path / "histopathologic-cancer-detection.zip").unlink(missing_ok=True)
        try:
            packed = open_store(tmp_path)
        except KitError as error:
            assert str(tmp_path) in str(error)
        else:
            read = dict(zip(packed.train.ids, packed.labels, strict=True))
            assert read == labels_of(files)
        (folder / name).write_bytes(whole[name])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("data")
    write_zip(data, competition_files(train=40, test=5))
    return pack_tiles(data)


@counts
@pytest.mark.filterwarnings("error")
def test_mutated_runs(tmp_path: Path, tiles: Store, count: int) -> None:
    """A run folder from elsewhere: each of its files is refused with a message, or read."""
    folder = tmp_path / "run"
    for _ in Run(RECIPE, tiles, folder, device="cpu").train(progress=False):
        pass
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    readers: dict[str, Callable[[], object]] = {
        "config.json": lambda: runs.load(folder, device="cpu"),
        "model.safetensors": lambda: runs.load(folder, device="cpu"),
        "valid.csv": lambda: runs.read_valid(folder),
        "metrics.json": lambda: runs.read_metrics(folder),
        "history.jsonl": lambda: runs.read_history(folder),
        "last.pt": lambda: Run(RECIPE, tiles, folder, device="cpu", resume=True),
    }
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(count):
        name = list(readers)[number % len(readers)]
        (folder / name).write_bytes(mutate(whole[folder / name], rng, whole[folder / "last.pt"]))
        try:
            readers[name]()
        except KitError as error:
            assert str(folder) in str(error)
            refused += 1
        for path, content in whole.items():
            path.write_bytes(content)
    assert refused > count / 2


def test_mutations_follow_from_their_seed() -> None:
    content = np.random.default_rng(0).bytes(1000)
    first, again, other = (
        mutate(content, np.random.default_rng(seed), content[::-1]) for seed in (1, 1, 2)
    )
    assert first == again != other
