"""Tables of slides as people have them: found by themselves, partial, changed, damaged."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, fresh_kernel, run_kernel, write_zip
from tqdm import tqdm

from kit.base import KitError, Recipe
from kit.data import (
    UNKNOWN,
    KnownSlides,
    Store,
    find_slides,
    find_slides_table,
    pack_tiles,
    read_slides,
    recipe_holdout,
    slides_fingerprint,
)
from kit.study.checks import check_recipes

IDS = np.array(["a" * 40, "b" * 40])


@pytest.fixture
def tiles(data: Path) -> Store:
    return pack_tiles(data)


def write_table(path: Path, tiles: Store, known: int, header: str = "id,slide") -> Path:
    """Name the slide of the first tiles: four slides, each of both classes."""
    rows = [f"{tile},S{row // 6}" for row, tile in enumerate(tiles.train.ids[:known])]
    path.write_text("\n".join([header, *rows, ""]))
    return path


@pytest.mark.parametrize("header", ["slide,id", "wsi,id", "WSI;ID"])
def test_slides_are_read_in_the_order_of_the_ids(tmp_path: Path, header: str) -> None:
    text = f"{header}\nnormal_001,{IDS[1]}\ntumor_001,{IDS[0]}\nC,{'c' * 40}\n"
    (tmp_path / "s.csv").write_text(text.replace(",", ";") if ";" in header else text)
    assert read_slides(tmp_path / "s.csv", IDS).tolist() == ["tumor_001", "normal_001"]


def test_a_tile_that_is_not_in_the_table_has_no_slide(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(f"id,slide\n{IDS[1]},A\n")
    assert read_slides(tmp_path / "s.csv", IDS).tolist() == [UNKNOWN, "A"]


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"cannot read id,slide from .*none\.csv: No such file"):
        read_slides(tmp_path / "none.csv", IDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"id,slide\n{'c' * 40},A\n", "names none of the 2 tiles: give the table of these"),
        (f"id,slide\n{IDS[0]},A\n{IDS[0]},B\n", "line 3: id 'a+' is there twice"),
        (f"id,scan\n{IDS[0]},A\n", "line 1: the header is 'id,scan', not 'id,slide'"),
        ("", "line 1: the header is '', not 'id,slide'"),
        (f"id,slide\n{IDS[0]},\n{IDS[1]},A\n", "line 2: slide '' is empty"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(KitError, match=message):
        read_slides(tmp_path / "s.csv", IDS)


@pytest.mark.parametrize("name", ["slides.csv", "patch_id_wsi_full.csv"])
def test_a_table_beside_the_data_is_found_and_named(
    tiles: Store, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_slides(tiles) == KnownSlides()
    assert find_slides_table(tiles) is None
    path = write_table(tiles.data / name, tiles, known=24, header="id,wsi")
    with tqdm(total=1, leave=False):
        slides = find_slides(tiles).of_tiles
    assert slides is not None
    assert slides.tolist() == [f"S{row // 6}" for row in range(24)]
    assert find_slides_table(tiles) == path
    note = f"note: {path} tells each tile's slide (24 of 24)"
    # Neither torn nor on the line of a bar that moves meanwhile.
    assert note in re.split(r"[\r\n]", capsys.readouterr().err)


@pytest.mark.parametrize("text", ["id,slide\n", "?", "id,slide\nx,y\n"])
def test_a_damaged_table_that_nobody_asked_for_is_left_out_with_a_note(
    tiles: Store, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiles.data / "slides.csv").write_text(text)
    found = find_slides(tiles)
    assert found.of_tiles is None
    assert found.notes[0].startswith("No slides are shown here: ")
    assert "note: slides are left out here: " in capsys.readouterr().err


def test_a_partial_table_leaves_tiles_out_and_says_how_many(
    tiles: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tiles.data / "patch_id_wsi.csv", tiles, known=18, header="id,wsi")
    for seed in range(3):
        chosen = recipe_holdout(tiles, Recipe(slides=path, seed=seed))
        assert sorted([*chosen.train, *chosen.valid]) == list(range(18))
    said = capsys.readouterr().err
    assert said.count(f"note: {path} is partial: it has no slide for 6 of 24 training tiles") == 1
    assert "which are left out. The community's whole table is patch_id_wsi_full.csv" in said


def test_a_study_says_that_a_table_does_not_choose_its_holdouts(
    tiles: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tiles.data / "slides.csv", tiles, known=24)
    seeds = [Recipe(seed=seed, batch_size=4) for seed in range(2)]
    check_recipes(seeds, tiles, device="cpu")
    said = capsys.readouterr().err
    assert said.count(f"note: {path} does not choose the holdout, which is one of single") == 1


def test_a_table_is_known_by_what_it_says_of_the_training_tiles(tiles: Store) -> None:
    path = write_table(tiles.data / "slides.csv", tiles, known=24)
    before = slides_fingerprint(path, tiles)
    header, *rows = path.read_text().split()
    path.write_text("\n".join([header, *reversed(rows), f"{'c' * 40},other", ""]))
    assert slides_fingerprint(path, tiles) == before
    path.write_text("\n".join([header, *rows]).replace(",S3", ",S2", 1))
    assert slides_fingerprint(path, tiles) != before


def test_an_incomplete_table_loses_no_page(tiles: Store, files: Files, tmp_path: Path) -> None:
    """Nobody asked for it; explore and train once failed at their ends."""
    write_zip(tiles.data, files)
    path = write_table(tiles.data / "slides.csv", tiles, known=18)
    run_kernel("explore", "--data", tiles.data, "--out", tmp_path / "explore")
    assert (tmp_path / "explore" / "explore.html").is_file()
    options = ("--data", tiles.data, "--out", tmp_path / "run", "--epochs", 1, "--batch-size", 4)
    # A process says each note once.
    done = fresh_kernel("train", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    assert f"--slides {path} keeps slides apart" in done.stdout
    assert f"note: {path} tells each tile's slide (18 of 24)" in done.stderr
