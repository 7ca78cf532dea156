"""The synthetic competition: Kaggle's layout byte for byte, and labels that follow its rule."""

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kit.base import KitError, competition
from kit.data import is_standin_written, pack_tiles, synthetic, write_standin
from kit.data.standin import MIN_TRAIN

ROOT = Path(__file__).parents[1]
NUMBERS = {"train": 60, "test": 20, "seed": 3}
REAL_TILES = os.environ.get("KIT_REAL_TILES")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standin") / "data"
    write_standin(folder, **NUMBERS)
    return folder


@pytest.fixture(scope="module")
def members(data: Path) -> dict[str, bytes]:
    return read_members(data / competition.ARCHIVE)


@pytest.fixture(scope="module")
def drawn() -> list[synthetic.Tile]:
    return list(synthetic.draw_tiles("train", count=400, seed=5))


def read_members(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def read_tags(tiff: bytes) -> dict[int, list[int]]:
    """Type, count and value (or offset) of each tag of the only directory."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    entries = [struct.unpack_from("<HHII", tiff, start + 2 + 12 * row) for row in range(count)]
    assert struct.unpack_from("<I", tiff, start + 2 + 12 * count) == (0,)
    return {tag: rest for tag, *rest in entries}


def table(members: dict[str, bytes], name: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(members[name]))


def test_archive_has_the_competitions_files(members: dict[str, bytes], data: Path) -> None:
    labels = table(members, "train_labels.csv")
    sample = table(members, "sample_submission.csv")
    assert list(labels) == list(sample) == ["id", "label"]
    assert len(labels) == 60
    assert len(sample) == 20
    assert (sample["label"] == 0).all()
    expected = {f"train/{tile}.tif" for tile in labels["id"]}
    expected |= {f"test/{tile}.tif" for tile in sample["id"]}
    assert set(members) == expected | {"train_labels.csv", "sample_submission.csv"}
    assert {path.name for path in data.iterdir()} == {
        competition.ARCHIVE,
        "slides.csv",
        "standin.json",
    }


def test_archive_is_deflated_and_says_what_it_is(data: Path) -> None:
    with zipfile.ZipFile(data / competition.ARCHIVE) as archive:
        assert archive.comment == competition.STANDIN_COMMENT
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        assert {member.external_attr >> 16 for member in archive.infolist()} == {0o100644}
    recorded = json.loads((data / "standin.json").read_text())
    assert {name: recorded[name] for name in NUMBERS} == NUMBERS


def test_tiff_layout_is_the_competitions(members: dict[str, bytes]) -> None:
    tiff = next(content for name, content in members.items() if name.startswith("train/"))
    assert len(tiff) == 27_935
    assert tiff[:4] == b"II*\0"
    assert read_tags(tiff) == {
        254: [4, 1, 0],
        256: [4, 1, 96],
        257: [4, 1, 96],
        258: [3, 3, 194],
        259: [3, 1, 1],
        262: [3, 1, 2],
        270: [2, 23, 200],
        273: [4, 1, 287],
        277: [3, 1, 3],
        278: [4, 1, 96],
        279: [4, 1, 27_648],
        284: [3, 1, 1],
        305: [2, 12, 255],
        306: [2, 20, 267],
        339: [3, 1, 1],
    }
    assert struct.unpack_from("<3H", tiff, 194) == (8, 8, 8)
    assert tiff[200:223] == b'{"shape": [96, 96, 3]}\0'
    assert tiff[255:267] == b"tifffile.py\0"


@pytest.mark.skipif(REAL_TILES is None, reason="KIT_REAL_TILES names no folder of real tiles")
def test_header_is_a_real_tiles_but_for_the_date(members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(Path(REAL_TILES or "") / competition.ARCHIVE) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".tif"))
        real = archive.read(name)
    ours = next(content for name, content in members.items() if name.endswith(".tif"))
    assert ours[:267] == real[:267]
    assert len(ours) == len(real)


def test_ids_are_the_pixels_sha1_and_decoders_agree(members: dict[str, bytes]) -> None:
    tiles = {name: content for name, content in members.items() if name.endswith(".tif")}
    assert len(tiles) == 80
    for name, content in tiles.items():
        assert hashlib.sha1(content[287:]).hexdigest() == Path(name).stem

    content = next(iter(tiles.values()))
    pixels = np.frombuffer(content[287:], np.uint8).reshape(96, 96, 3)
    opened = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(opened[..., ::-1], pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)


def test_store_packs_it_and_says_that_it_is_a_standin(data: Path) -> None:
    packed = pack_tiles(data)
    assert packed.is_standin
    assert len(packed.train) == 60
    assert len(packed.test) == 20
    assert is_standin_written(data, **NUMBERS)


def test_labels_follow_the_rule_and_their_share_is_the_competitions(
    drawn: list[synthetic.Tile],
) -> None:
    labels = np.array([tile.label for tile in drawn])
    centres = np.array([tile.tumour[32:64, 32:64].any() for tile in drawn])
    np.testing.assert_array_equal(labels, centres)
    assert labels.sum() == round(0.405 * 400)


def test_written_labels_and_slides_are_those_drawn(members: dict[str, bytes], data: Path) -> None:
    tiles = list(synthetic.draw_tiles("train", count=60, seed=3))
    drawn = {competition.tile_id(tile.pixels.tobytes()): (tile.label, tile.slide) for tile in tiles}
    labels = table(members, "train_labels.csv").set_index("id")["label"]
    slides = pd.read_csv(data / "slides.csv").set_index("id")["slide"]
    assert {tile: (labels[tile], slides[tile]) for tile in labels.index} == drawn


def test_some_negatives_hold_tumour_outside_the_centre_only(drawn: list[synthetic.Tile]) -> None:
    outside = [tile for tile in drawn if tile.label == 0 and tile.tumour.any()]
    negatives = sum(tile.label == 0 for tile in drawn)
    assert 0.05 < len(outside) / negatives < 0.25
    assert not any(tile.tumour[32:64, 32:64].any() for tile in outside)


def test_one_black_and_one_white_tile_are_negative_training_tiles(
    drawn: list[synthetic.Tile],
) -> None:
    for value in (0, 255):
        blank = [tile for tile in drawn if (tile.pixels == value).all()]
        assert [tile.label for tile in blank] == [0]
    test = synthetic.draw_tiles("test", count=400, seed=5)
    assert not any(tile.pixels.min() == tile.pixels.max() for tile in test)


def test_near_white_tiles_are_negative() -> None:
    tiles = [
        tile for seed in range(3) for tile in synthetic.draw_tiles("train", count=400, seed=seed)
    ]
    white = [tile for tile in tiles if tile.pixels.std() < 8 and tile.pixels.std() > 0]
    assert 0.002 < len(white) / len(tiles) < 0.025
    assert not any(tile.label for tile in white)


def test_darkness_alone_does_not_tell_the_label(drawn: list[synthetic.Tile]) -> None:
    brightness = np.array([tile.pixels.mean() for tile in drawn])
    labels = np.array([tile.label for tile in drawn])
    darkest = labels[np.argsort(brightness)[:80]]
    assert 0.2 < darkest.mean() < 0.8


def test_channels_are_near_the_competitions(drawn: list[synthetic.Tile]) -> None:
    pixels = np.stack([tile.pixels for tile in drawn]) / 255
    assert np.abs(pixels.mean((0, 1, 2)) - competition.CHANNEL_MEAN).max() < 0.06
    assert np.abs(pixels.std((0, 1, 2)) - competition.CHANNEL_STD).max() < 0.06


def test_test_slides_are_others_of_a_shifted_stain(drawn: list[synthetic.Tile]) -> None:
    test = list(synthetic.draw_tiles("test", count=400, seed=5))
    slides = {tile.slide for tile in drawn}, {tile.slide for tile in test}
    assert slides[0].isdisjoint(slides[1])
    assert min(map(len, slides)) >= 8

    def redness(tiles: list[synthetic.Tile]) -> float:
        return float(np.mean([np.subtract(*tile.pixels.mean((0, 1))[[0, 2]]) for tile in tiles]))

    assert redness(test) > redness(drawn) + 5


def test_order_tells_nothing_of_the_label(members: dict[str, bytes]) -> None:
    """Chance alone gives a rank correlation beyond 0.35 to one in 160 tables of 60."""
    labels = table(members, "train_labels.csv")
    assert labels["id"].is_monotonic_increasing
    order = [Path(name).stem for name in members if name.startswith("train/")]
    in_archive = labels.set_index("id")["label"].loc[order].to_numpy()
    for values in (labels["label"].to_numpy(), in_archive):
        assert abs(np.corrcoef(values, np.arange(60))[0, 1]) < 0.35


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    write_standin(tmp_path, **NUMBERS)
    for name in (competition.ARCHIVE, "slides.csv", "standin.json"):
        assert (tmp_path / name).read_bytes() == (data / name).read_bytes()


def test_tiles_are_the_same_wherever_memory_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of OpenCV's functions round by their arguments' alignment, mostly below a grey level.

    So this compares the stain densities, and moves memory about between one tile and the next.
    """
    expose, sizes = synthetic._expose, np.random.default_rng(0)
    densities: list[bytes] = []
    held: list[bytes] = []

    def watched(*maps_slide_rng: Any) -> Any:
        densities.append(b"".join(stain.tobytes() for stain in maps_slide_rng[:2]))
        held.append(bytes(sizes.integers(50_000)))
        del held[: sizes.integers(2)]
        return expose(*maps_slide_rng)

    monkeypatch.setattr(synthetic, "_expose", watched)
    for _ in range(4):
        list(synthetic.draw_tiles("train", count=60, seed=5))
    once = len(densities) // 4
    assert once == 58  # all but the black and the white one
    assert densities == 4 * densities[:once]


def test_another_seed_other_tiles(members: dict[str, bytes], tmp_path: Path) -> None:
    archive = write_standin(tmp_path, **{**NUMBERS, "seed": 4})
    common = set(read_members(archive)) & set(members)
    black_and_white = {
        f"train/{competition.tile_id(bytes([value]) * 27_648)}.tif" for value in (0, 255)
    }
    assert common == {"train_labels.csv", "sample_submission.csv"} | black_and_white


def test_a_second_writing_leaves_it_alone(data: Path) -> None:
    before = (data / competition.ARCHIVE).stat()
    assert write_standin(data, **NUMBERS) == data / competition.ARCHIVE
    after = (data / competition.ARCHIVE).stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_a_cut_writing_is_finished_by_the_next(data: Path, tmp_path: Path) -> None:
    """A kill leaves at most the two small files; the archive comes last."""
    for name in ("slides.csv", "standin.json"):
        (tmp_path / name).write_bytes((data / name).read_bytes())
    archive = write_standin(tmp_path, train=20, test=5, seed=0)
    assert len(read_members(archive)) == 27
    assert is_standin_written(tmp_path, train=20, test=5, seed=0)


def test_other_options_are_refused(data: Path) -> None:
    with pytest.raises(KitError, match=r"made with other options .*or delete"):
        write_standin(data, **{**NUMBERS, "seed": 4})
    assert is_standin_written(data, **NUMBERS)


@pytest.mark.parametrize(
    "name", [competition.ARCHIVE, "slides.csv", "train_labels.csv", "train/a.tif", "store/x"]
)
def test_real_data_is_never_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"real")
    with pytest.raises(KitError, match="is no stand-in and is never replaced"):
        write_standin(tmp_path, **NUMBERS)
    assert path.read_bytes() == b"real"
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]


def test_a_real_archive_beside_an_old_standin_file_is_never_replaced(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "standin.json").write_bytes((data / "standin.json").read_bytes())
    with zipfile.ZipFile(tmp_path / competition.ARCHIVE, "w") as archive:
        archive.writestr("train_labels.csv", "id,label\n")
    with pytest.raises(KitError, match="never replaced"):
        write_standin(tmp_path, **NUMBERS)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"train": 15}, "train is 15: .* at least 16"),
        ({"train": -1}, "train is -1"),
        ({"test": 0}, "test is 0: .* at least 1"),
        ({"seed": -2}, "seed is -2: .* at least 0"),
    ],
)
def test_impossible_numbers_are_refused(
    numbers: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=message):
        write_standin(tmp_path / "data", **{**NUMBERS, **numbers})
    assert not (tmp_path / "data").exists()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(KitError, match="data is a file, not a folder"):
        write_standin(tmp_path / "data", **NUMBERS)
    assert (tmp_path / "data").read_text() == "mine"


def test_smallest_competition_has_both_classes(tmp_path: Path) -> None:
    archive = write_standin(tmp_path, train=MIN_TRAIN, test=1, seed=0)
    labels = table(read_members(archive), "train_labels.csv")["label"]
    assert labels.value_counts().to_dict() == {0: 10, 1: 6}


def test_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "kernels" / "standin.py")]
    options = ["--data", "demo/data", "--train", "20", "--test", "5"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options, *more], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    first = run()
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("*** STAND-IN")
    assert "20 train and 5 test tiles, written now" in first.stdout
    assert first.stdout.endswith("next: python kernels/train.py --data demo/data --bn before\n")
    assert "written before" in run().stdout
    refused = run("--seed", "1")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: demo/data holds a stand-in made with other options")
    assert "Traceback" not in refused.stderr
