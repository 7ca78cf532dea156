"""Exploration: every number against one computed from all pixels at once, the page in a browser."""

import hashlib
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import DESKTOP, PHONE, Browser, needs_chromium, visit
from conftest import competition_files, kernel, tiff, write_zip

from kit.base import CHANNEL_MEAN
from kit.data import Store, TileSet, pack_tiles
from kit.data import stains as colours
from kit.report import exploration

ROOT = Path(__file__).parents[1]
SLIDE = "<img src=x onerror=alert(1)>"


def uniform_tile(value: int) -> np.ndarray:
    return np.full((96, 96, 3), value, np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random tiles, a black one and one just too bright to be black, a white one, and slides."""
    files = competition_files(train=40, test=12)
    for split, table, value in (
        ("train", "train_labels.csv", 9),
        ("train", "train_labels.csv", 10),
        ("test", "sample_submission.csv", 245),
    ):
        pixels = uniform_tile(value)
        tile = hashlib.sha1(pixels.tobytes()).hexdigest()
        files[f"{split}/{tile}.tif"] = tiff(pixels)
        files[table] += f"{tile},0\n".encode()
    folder = tmp_path_factory.mktemp("place") / "data"
    write_zip(folder, files)
    ids = pack_tiles(folder).train.ids
    slides = [SLIDE if row < 30 else "plain" for row in range(len(ids))]
    pd.DataFrame({"id": ids, "slide": slides}).to_csv(folder / "slides.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def tiles(data: Path) -> Store:
    return pack_tiles(data)


def random_tiles(count: int) -> TileSet:
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
    return TileSet(pixels, np.array([f"{row:040x}" for row in range(count)]))


def test_measures_are_those_of_all_pixels() -> None:
    """More tiles than one block; the stains by least squares for each pixel, then their mean."""
    split = random_tiles(515)
    found = exploration.measure_tiles(split)
    assert found.tiles["id"].tolist() == split.ids.tolist()
    rows = [0, 3, 511, 512, 514]
    chosen, scaled = found.tiles.loc[rows], split.tiles / 255
    np.testing.assert_allclose(chosen["brightness"], scaled[rows].mean(axis=(1, 2, 3)))
    np.testing.assert_array_equal(chosen["darkest"], split.tiles[rows].min(axis=(1, 2, 3)))
    np.testing.assert_array_equal(chosen["brightest"], split.tiles[rows].max(axis=(1, 2, 3)))
    for row in rows:
        density = -np.log10(np.maximum(split.tiles[row].reshape(-1, 3), 1) / 255)
        stains = np.linalg.lstsq(colours.RUIFROK.T, density.T)[0].mean(axis=1)
        np.testing.assert_allclose(found.tiles.loc[row, ["haematoxylin", "eosin"]], stains)
    mean, std = exploration.channel_statistics(found.histogram)
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)))


def test_pure_stain_is_measured_as_itself() -> None:
    """Light through a layer of eosin alone (Beer and Lambert), up to rounding to 8 bits."""
    colour = np.round(255 * 10 ** -(0.4 * colours.RUIFROK[1])).astype(np.uint8)
    pixels = np.broadcast_to(colour, (1, 96, 96, 3)).copy()
    found = exploration.measure_tiles(TileSet(pixels, np.array(["0" * 40]))).tiles.loc[0]
    assert found["eosin"] == pytest.approx(0.4, abs=0.005)
    assert found["haematoxylin"] == pytest.approx(0, abs=0.005)


def test_blank_tiles_follow_the_rule(tiles: Store) -> None:
    found = exploration.explore_store(tiles, progress=False)
    blank = pd.DataFrame(exploration.exploration_numbers(found)["blank"]).set_index("kind")
    black, white = (hashlib.sha1(uniform_tile(value).tobytes()).hexdigest() for value in (9, 245))
    assert blank["id"].to_dict() == {"near black": black, "near white": white}
    assert blank["split"].to_dict() == {"near black": "train", "near white": "test"}
    assert blank["label"].to_dict() == {"near black": "negative", "near white": ""}


def test_equal_ids_are_duplicates(tiles: Store) -> None:
    assert set(exploration.duplicates(tiles).values()) == {0}
    train = replace(tiles.train, ids=tiles.train.ids[[0, 0, 0, 1, 2]])
    test = replace(tiles.test, ids=np.array([tiles.train.ids[1], "x", "x"]))
    counted = exploration.duplicates(replace(tiles, train=train, test=test))
    assert counted == {"within train": 2, "within test": 1, "in train and test": 1}


def test_balancing_is_what_the_notebook_draws(tiles: Store) -> None:
    """22 negative and 20 positive tiles: 20 of each, 14 to train on and 6 to validate on."""
    found = exploration.explore_store(tiles, progress=False)
    drawn = exploration.exploration_numbers(found)["balanced_by_notebook"]
    assert drawn["to train on"] == {"negative": 14, "positive": 14}
    assert drawn["to validate on"] == {"negative": 6, "positive": 6}
    assert exploration.exploration_numbers(found)["classes"] == {"negative": 22, "positive": 20}


@pytest.fixture(scope="module")
def explored(data: Path) -> Path:
    ended = kernel("explore", "--data", "data", cwd=data.parent)
    assert ended.returncode == 0, ended.stderr
    assert "42 training tiles: 22 negative, 20 positive (47.6 %); 13 test tiles" in ended.stdout
    assert "blank tiles: 2; exact duplicates: 0" in ended.stdout
    assert "slides: 2" in ended.stdout
    return data / "explore"


def test_command_writes_page_figures_and_numbers(explored: Path, tiles: Store) -> None:
    names = {path.name for path in explored.iterdir()}
    assert names == {"explore.html", "explore.json"} | {
        f"{name}.png"
        for name in (
            "chart-1-classes",
            "chart-2-balanced",
            "image-1-negative",
            "image-2-positive",
            "blank",
            "channels",
            "brightness",
            "haematoxylin",
            "eosin",
            "slides",
        )
    }
    page = (explored / "explore.html").read_text("utf-8")
    assert "All of them." in page
    assert "The first" not in page
    numbers = json.loads((explored / "explore.json").read_text("utf-8"))
    assert numbers["fingerprint"] == tiles.fingerprint
    assert numbers["channels"]["competition, as published"]["mean"] == list(CHANNEL_MEAN)
    pixels = tiles.train.tiles / 255
    training = numbers["channels"]["training tiles"]
    np.testing.assert_allclose(training["mean"], pixels.mean(axis=(0, 1, 2)))
    by_slide = {row["slide"]: (row["negative"], row["positive"]) for row in numbers["slides"]}
    assert by_slide == {SLIDE: (15, 15), "plain": (7, 5)}
    brightness = numbers["quantities"]["brightness"]
    assert brightness["positive"]["mean"] == pytest.approx(
        pixels[tiles.labels == 1].mean(), rel=1e-9
    )


@needs_chromium
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_page_in_a_browser(chromium: Browser, explored: Path, width: int) -> None:
    with visit(chromium, explored / "explore.html", width=width) as opened:
        opened.assert_sound()
        text = opened.page.locator("main").inner_text()
        assert opened.page.locator("img").count() == 10
        assert SLIDE in text
        assert "python kernels" not in text.split("How to rebuild this")[0]
        assert "explore.py --data data" in opened.page.locator("pre").inner_text()


def test_what_cannot_be_found_out_costs_no_page(tmp_path: Path) -> None:
    """Tiles of one class, which nobody can draw a holdout from, and a table that is none."""
    files = competition_files(train=6, test=2)
    files["train_labels.csv"] = files["train_labels.csv"].replace(b",1\n", b",0\n")
    write_zip(tmp_path / "data", files)
    (tmp_path / "data" / "slides.csv").write_text("id,slide\nx,A\n")
    ended = kernel("explore", "--data", "data", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "6 training tiles: 6 negative, 0 positive" in ended.stdout
    numbers = json.loads((tmp_path / "data" / "explore" / "explore.json").read_text("utf-8"))
    assert (numbers["balanced_by_notebook"], numbers["auc_of_one_number"]) == (None, {})
    page = (tmp_path / "data" / "explore" / "explore.html").read_text("utf-8")
    assert page.count("No slides are shown here: data/slides.csv line 2") == 2
    assert "The recipe notebook cannot draw its tiles: 0 of 6 training tiles are of class 1" in page


def test_named_table_of_slides_must_exist(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "elsewhere"
    options = ["--data", str(data), "--slides", "nowhere.csv", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["explore.py", *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "kernels" / "explore.py"), run_name="__main__")
    assert ended.value.code == 1
    assert "error: --slides nowhere.csv: there is no such file" in capsys.readouterr().err
    assert not out.exists()
