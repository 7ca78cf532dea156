import json
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Files, competition_files, random_tile, tiff, write_folder, write_zip

from kit import store
from kit.errors import KitError
from kit.store import CorruptArchiveError, TileError

ROOT = Path(__file__).parents[1]


def first_tile(files: Files, split: str = "train") -> str:
    return min(name for name in files if name.startswith(f"{split}/"))


def test_holds_what_opencv_decodes_in_the_tables_order(data: Path, files: Files) -> None:
    packed = store.pack(data)
    rows = [line.split(",") for line in files["train_labels.csv"].decode().split()[1:]]
    assert packed.train.ids.tolist() == [tile for tile, _ in rows]
    assert packed.labels.tolist() == [int(label) for _, label in rows]
    assert len(packed.test) == 7
    assert packed.test.labels is None
    for split, tiles in (("train", packed.train), ("test", packed.test)):
        for tile, pixels in zip(tiles.ids, tiles.tiles, strict=True):
            content = np.frombuffer(files[f"{split}/{tile}.tif"], np.uint8)
            decoded = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
            np.testing.assert_array_equal(pixels, decoded)


def test_folder_packs_to_the_same_store_as_the_zip(
    data: Path, files: Files, tmp_path: Path
) -> None:
    write_folder(tmp_path / "extracted", files)
    from_zip, from_folder = store.pack(data), store.pack(tmp_path / "extracted")
    assert from_zip.fingerprint == from_folder.fingerprint
    np.testing.assert_array_equal(from_zip.train.tiles, from_folder.train.tiles)


def test_fingerprint_changes_with_a_label(data: Path, files: Files, tmp_path: Path) -> None:
    text = files["train_labels.csv"].decode()
    changed = files | {"train_labels.csv": text.replace(",1\n", ",0\n", 1).encode()}
    write_zip(tmp_path / "changed", changed)
    assert store.pack(data).fingerprint != store.pack(tmp_path / "changed").fingerprint


def test_packs_once_and_again_when_the_archive_changes(data: Path) -> None:
    first = store.pack(data)
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    store.pack(data)
    assert (first.folder / "manifest.json").stat().st_mtime_ns == written
    write_zip(data, competition_files(train=30))
    assert len(store.open_store(data).train) == 30


def test_store_outlives_its_archive(data: Path) -> None:
    store.pack(data)
    (data / "histopathologic-cancer-detection.zip").unlink()
    assert len(store.open_store(data).train) == 24


def test_no_data_names_the_two_ways_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"make download.*make demo"):
        store.open_store(tmp_path)


def change_pixel(files: Files) -> Files:
    name = first_tile(files)
    content = bytearray(files[name])
    content[-300] ^= 1
    return files | {name: bytes(content)}


def edit(name: str, old: str, new: str) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        return files | {name: files[name].decode().replace(old, new, 1).encode()}

    return change


def replace_tile(content: bytes) -> Callable[[Files], Files]:
    return lambda files: files | {first_tile(files): content}


def drop(prefix: str) -> Callable[[Files], Files]:
    return lambda files: {k: v for k, v in files.items() if k != first_or(prefix, files)}


def first_or(prefix: str, files: Files) -> str:
    return prefix if prefix in files else first_tile(files, prefix)


def leak_test_label(files: Files) -> Files:
    tile = Path(first_tile(files, "test")).stem
    table = files["train_labels.csv"] + f"{tile},1\n".encode()
    return files | {"train_labels.csv": table, f"train/{tile}.tif": files[f"test/{tile}.tif"]}


BLACK = np.zeros((96, 96, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_pixel, "its pixels hash to"),
        (replace_tile(b""), "not a TIFF file"),
        (replace_tile(tiff(BLACK)[:9]), "truncated TIFF"),
        (replace_tile(tiff(BLACK)[:-200]), "truncated TIFF"),
        (replace_tile(tiff(BLACK[:95])), "TIFF height is"),
        (replace_tile(tiff(BLACK[:, :, 0])), "TIFF bits per sample"),
        (replace_tile(tiff(BLACK, compression="tiff_lzw")), "TIFF compression is"),
        (drop("train"), "1 tiles of the table are missing"),
        (drop("test"), "1 tiles of the table are missing"),
        (drop("train_labels.csv"), "holds no train_labels.csv"),
        (edit("train_labels.csv", ",1\n", ",2\n"), "line 3: label '2' is not 0 or 1"),
        (edit("train_labels.csv", ",1\n", ",\n"), "line 3: label '' is not 0 or 1"),
        (edit("train_labels.csv", "id,label", "id;label"), "has the columns"),
        (edit("train_labels.csv", "id,label\n", "id,label\nx,0\n"), "'x' is not 40 hex"),
        (leak_test_label, "does not train on test tiles"),
        (lambda files: files | {"train/extra.tif": tiff(BLACK)}, "1 tiles are not in the table"),
    ],
)
@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_bad_data_is_refused_with_its_place(
    tmp_path: Path,
    files: Files,
    write: Callable[[Path, Files], object],
    change: Callable[[Files], Files],
    message: str,
) -> None:
    write(tmp_path, change(files))
    with pytest.raises(KitError, match=message):
        store.pack(tmp_path)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "store.partial").exists()


def test_every_bad_tile_is_named(tmp_path: Path, files: Files) -> None:
    tiles = sorted(name for name in files if name.startswith("train/"))[:3]
    write_zip(tmp_path, files | dict.fromkeys(tiles, b"?"))
    with pytest.raises(KitError, match="3 bad tiles") as caught:
        store.pack(tmp_path)
    assert all(name in str(caught.value) for name in tiles)


def test_a_flipped_bit_anywhere_in_the_archive_is_found(data: Path) -> None:
    """Wherever it hits, the outcome is a message or, in bytes that mean nothing, the same tiles."""
    path = data / "histopathologic-cancer-detection.zip"
    whole = path.read_bytes()
    fingerprint = store.pack(data).fingerprint
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        content = bytearray(whole)
        content[place] ^= 16
        path.write_bytes(content)
        try:
            assert store.pack(data).fingerprint == fingerprint
        except KitError:
            refused += 1
    assert refused >= 38


@pytest.mark.parametrize("kept", [0, 100, 40_000])
def test_a_cut_archive_is_refused(data: Path, kept: int) -> None:
    path = data / "histopathologic-cancer-detection.zip"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptArchiveError, match="not a whole zip"):
        store.pack(data)


def test_stored_members_are_read_too(tmp_path: Path, files: Files) -> None:
    with zipfile.ZipFile(tmp_path / "histopathologic-cancer-detection.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert len(store.pack(tmp_path).train) == 24


def test_big_endian_tiff_is_read_by_its_header() -> None:
    pixels = random_tile(np.random.default_rng(0))
    entries = [(256, 96), (257, 96), (262, 2), (273, 200), (277, 3)]
    shorts = b"".join(struct.pack(">HHIHxx", tag, 3, 1, value) for tag, value in entries)
    bits = struct.pack(">HHII", 258, 3, 3, 100)
    header = b"MM" + struct.pack(">HIH", 42, 8, 6) + shorts + bits
    content = header.ljust(100) + struct.pack(">HHH", 8, 8, 8)
    content = content.ljust(200) + pixels.tobytes()
    assert bytes(store.tile_pixels(content)) == pixels.tobytes()


def test_mutated_tiff_never_crashes() -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(tiff(random_tile(rng)), np.uint8)
    # Pillow puts the header before the pixels and its directory after them.
    header = np.r_[:8, 27_648 : len(whole)]
    for _ in range(2000):
        content = whole.copy()
        content[rng.choice(header, 3)] = rng.integers(0, 256, 3)
        try:
            assert len(store.tile_pixels(content.tobytes())) == 96 * 96 * 3
        except TileError as error:
            assert "TIFF" in str(error)


def test_killed_packing_starts_clean(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_zip(data, competition_files(train=1000, test=10))
    command = [sys.executable, str(ROOT / "kernels" / "pack.py"), "--data", str(data)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (data / "store.partial" / "train.npy").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not store.is_packed(data)
    assert len(store.pack(data).train) == 1000
    assert not (data / "store.partial").exists()


def test_manifest_says_what_was_packed(data: Path) -> None:
    packed = store.pack(data)
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    assert manifest["tiles"] == {"train": 24, "test": 7}
    assert manifest["fingerprint"] == packed.fingerprint
    assert not packed.is_standin
