import io
import json
import os
import signal
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import (
    Files,
    competition_files,
    random_tile,
    start_kernel,
    tiff,
    write_folder,
    write_zip,
)
from PIL import Image

from kit.base import KitError
from kit.data import CorruptArchiveError, is_packed, open_store, pack_tiles
from kit.data.pack import MAX_PROBLEMS
from kit.data.tiff import tile_pixels

ROOT = Path(__file__).parents[1]


def first_tile(files: Files, split: str = "train") -> str:
    return min(name for name in files if name.startswith(f"{split}/"))


def test_holds_what_opencv_decodes_in_the_tables_order(data: Path, files: Files) -> None:
    packed = pack_tiles(data)
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
    from_zip, from_folder = pack_tiles(data), pack_tiles(tmp_path / "extracted")
    assert from_zip.fingerprint == from_folder.fingerprint
    np.testing.assert_array_equal(from_zip.train.tiles, from_folder.train.tiles)


def test_fingerprint_changes_with_a_label(data: Path, files: Files, tmp_path: Path) -> None:
    text = files["train_labels.csv"].decode()
    changed = files | {"train_labels.csv": text.replace(",1\n", ",0\n", 1).encode()}
    write_zip(tmp_path / "changed", changed)
    assert pack_tiles(data).fingerprint != pack_tiles(tmp_path / "changed").fingerprint


def test_packs_once_and_again_when_the_archive_changes(data: Path) -> None:
    first = pack_tiles(data)
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    pack_tiles(data)
    assert (first.folder / "manifest.json").stat().st_mtime_ns == written
    write_zip(data, competition_files(train=30))
    assert len(open_store(data).train) == 30


def test_store_outlives_its_archive(data: Path) -> None:
    pack_tiles(data)
    (data / "histopathologic-cancer-detection.zip").unlink()
    assert len(open_store(data).train) == 24


def test_no_data_names_the_two_ways_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"make download.*make demo"):
        open_store(tmp_path)


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
        (drop("train"), r"1 bad tiles in .*\n  train/[0-9a-f]{40}\.tif: missing\n"),
        (drop("test"), r"1 bad tiles in .*\n  test/[0-9a-f]{40}\.tif: missing\n"),
        (drop("train_labels.csv"), "holds no train_labels.csv"),
        (edit("train_labels.csv", ",1\n", ",2\n"), "line 3: label '2' is not 0 or 1"),
        (edit("train_labels.csv", ",1\n", ",\n"), "line 3: label '' is not 0 or 1"),
        (edit("train_labels.csv", "id,label", "id,class"), "line 1: the header is 'id,class'"),
        (lambda files: files | {"train_labels.csv": b"id,label\n"}, "names no tile"),
        (lambda files: files | {"train_labels.csv": b"id,label\n\xe9"}, "line 2 is not text"),
        (edit("sample_submission.csv", "id,label\n", "id,label\nx,0\n"), "'x' is not 40 hex"),
        (edit("train_labels.csv", "id,label\n", "id,label\nx,0\n"), "'x' is not 40 hex"),
        (leak_test_label, "does not train on test tiles"),
        (
            lambda files: files | {"train/extra.tif": tiff(BLACK)},
            r"train/extra\.tif: not in the table",
        ),
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
        pack_tiles(tmp_path)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "store.partial").exists()


def encode(image: Image.Image, kind: str = "TIFF", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def convert(mode: str) -> Callable[[Image.Image], bytes]:
    return lambda image: encode(image.convert("L").convert(mode))


def compress(how: str) -> Callable[[Image.Image], bytes]:
    return lambda image: encode(image, compression=how)


def opencv(image: Image.Image, *options: int) -> bytes:
    """Encode as OpenCV takes pixels: blue, green, red."""
    return cv2.imencode(".tif", np.asarray(image)[..., ::-1], options)[1].tobytes()


# Each is the right tile as some library would write it, or what became of its file.
BAD_TILES: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "empty": (lambda _: b"", "not a TIFF file"),
    "text": (lambda _: b"II, not 42", "not a TIFF file"),
    "PNG": (lambda image: encode(image, "PNG"), "not a TIFF file"),
    "JPEG": (lambda image: encode(image, "JPEG"), "not a TIFF file"),
    "BigTIFF": (lambda image: encode(image, big_tiff=True), "not a TIFF file"),
    "header cut": (lambda image: encode(image)[:9], "truncated TIFF header"),
    "pixels cut": (lambda image: opencv(image)[:20_000], "truncated TIFF"),
    "directory cut": (lambda image: encode(image)[:-100], "truncated TIFF"),
    "smaller": (lambda image: encode(image.resize((95, 96))), "TIFF width is (95,), not (96,)"),
    "taller": (lambda image: encode(image.resize((96, 97))), "TIFF height is (97,), not (96,)"),
    "grey": (convert("L"), "TIFF bits per sample is (8,)"),
    "black and white": (convert("1"), "TIFF bits per sample is"),
    "16 bits": (convert("I;16"), "TIFF bits per sample is (16,)"),
    "float": (convert("F"), "TIFF bits per sample is (32,)"),
    "palette": (lambda image: encode(image.convert("P")), "TIFF bits per sample is (8,)"),
    "RGBA": (lambda image: encode(image.convert("RGBA")), "TIFF bits per sample is (8, 8, 8, 8)"),
    "CMYK": (lambda image: encode(image.convert("CMYK")), "TIFF bits per sample is (8, 8, 8, 8)"),
    "YCbCr": (lambda image: encode(image.convert("YCbCr")), "TIFF photometric interpretation is"),
    "LZW": (compress("tiff_lzw"), "TIFF compression is (5,), not (1,)"),
    "deflate": (compress("tiff_adobe_deflate"), "TIFF compression is (8,), not (1,)"),
    "JPEG in TIFF": (compress("jpeg"), "TIFF compression is (7,), not (1,)"),
    "PackBits": (compress("packbits"), "TIFF compression is (32773,), not (1,)"),
    "two pages": (
        lambda image: encode(image, save_all=True, append_images=[image]),
        "TIFF of more than one page",
    ),
    "strips": (
        lambda image: opencv(image, cv2.IMWRITE_TIFF_COMPRESSION, 1, 278, 8),
        "TIFF pixels are not in one strip",
    ),
    "channels swapped": (lambda image: tiff(np.asarray(image)[..., ::-1]), "its pixels hash to"),
    "turned": (lambda image: encode(image.rotate(90)), "its pixels hash to"),
    "saved as JPEG once": (
        lambda image: encode(Image.open(io.BytesIO(encode(image, "JPEG")))),
        "its pixels hash to",
    ),
    "huge": (lambda image: encode(image) + bytes(2**20), "bytes, which is more than 1,048,576"),
}


def spoil(files: Files) -> dict[str, str]:
    """Make one training tile of each bad kind; return what should be said of each."""
    expected = {}
    names = sorted(name for name in files if name.startswith("train/"))
    for name, (change, message) in zip(names[2:], BAD_TILES.values(), strict=False):
        files[name] = change(Image.open(io.BytesIO(files[name])))
        expected[name] = message
    assert len(expected) == len(BAD_TILES)
    missing, extra = names[0], f"train/{'f' * 40}.tif"
    files[extra] = files.pop(missing)
    return expected | {missing: "missing", extra: "not in the table"}


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_every_kind_of_bad_tile_is_named_in_one_report(
    tmp_path: Path, write: Callable[[Path, Files], object]
) -> None:
    files = competition_files(train=40)
    expected = spoil(files)
    write(tmp_path, files)
    with pytest.raises(KitError, match=f"^{len(expected)} bad tiles in ") as caught:
        pack_tiles(tmp_path)
    lines = str(caught.value).splitlines()
    for name, message in expected.items():
        assert any(line.startswith(f"  {name}: ") and message in line for line in lines), message
    assert lines[-1].endswith("or leave them out: python kernels/pack.py --skip-bad")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_bad_training_tiles_are_left_out_on_demand_and_recorded(
    tmp_path: Path, write: Callable[[Path, Files], object], capsys: pytest.CaptureFixture[str]
) -> None:
    files = competition_files(train=40)
    whole = dict(files)
    bad = spoil(files)
    write(tmp_path, files)
    packed = pack_tiles(tmp_path, skip_bad=True)
    rows = [line.split(",") for line in files["train_labels.csv"].decode().split()[1:]]
    good = [(tile, int(label)) for tile, label in rows if f"train/{tile}.tif" not in bad]
    assert list(zip(packed.train.ids, packed.labels, strict=True)) == good
    for tile, pixels in zip(packed.train.ids, packed.train.tiles, strict=True):
        content = Image.open(io.BytesIO(whole[f"train/{tile}.tif"]))
        np.testing.assert_array_equal(pixels, np.asarray(content))
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    assert manifest["skipped"].keys() == bad.keys()
    assert manifest["tiles"] == {"train": len(good), "test": 7}
    assert packed.skipped == manifest["skipped"]
    assert f"{len(bad)} bad training tiles were left out" in capsys.readouterr().err
    assert open_store(tmp_path).fingerprint == packed.fingerprint
    assert f"{len(bad)} bad training tiles were left out" in capsys.readouterr().err


def test_a_bad_test_tile_is_never_left_out(tmp_path: Path, files: Files) -> None:
    files[first_tile(files, "test")] = b"?"
    write_zip(tmp_path, files)
    with pytest.raises(KitError, match=r"not a TIFF file\n.*a submission needs every test tile"):
        pack_tiles(tmp_path, skip_bad=True)


def test_something_must_be_left_to_train_on(tmp_path: Path, files: Files) -> None:
    for name in list(files):
        if name.startswith("train/"):
            del files[name]
    write_zip(tmp_path, files)
    with pytest.raises(KitError, match="24 bad tiles"):
        pack_tiles(tmp_path)
    with pytest.raises(KitError, match=r"no training tile in .* is good"):
        pack_tiles(tmp_path, skip_bad=True)


def test_a_long_report_ends_in_a_count(tmp_path: Path) -> None:
    files = competition_files(train=60)
    write_zip(tmp_path, {k: b"" if k.startswith("train/") else v for k, v in files.items()})
    with pytest.raises(KitError, match=r"^60 bad tiles") as caught:
        pack_tiles(tmp_path)
    assert str(caught.value).count("not a TIFF file") == MAX_PROBLEMS
    assert "\n  and 10 more\n" in str(caught.value)


def add_members(path: Path, members: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def patch_directory(path: Path, name: str, offset: int, value: bytes) -> None:
    """Overwrite bytes of one member's entry in the central directory (APPNOTE 4.3.12)."""
    content = bytearray(path.read_bytes())
    start = content.rindex(name.encode()) - 46
    assert content[start : start + 4] == b"PK\x01\x02"
    content[start + offset : start + offset + len(value)] = value
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_archive_made_to_do_harm_does_none(tmp_path: Path, files: Files, skip_bad: bool) -> None:
    """Two members of one name, names that lead outside, a bomb and an encrypted member."""
    twice, bomb, encrypted = sorted(name for name in files if name.startswith("train/"))[:3]
    path = write_zip(tmp_path / "data", files | {bomb: bytes(50_000_000)})
    outside = ["../evil.tif", "train/../../evil.tif", "/tmp/evil.tif", "..\\evil", "C:\\evil"]
    add_members(path, [(twice, files[twice]), *((name, b"evil") for name in outside)])
    patch_directory(path, encrypted, 8, b"\x01")
    expected = dict.fromkeys(outside, "leads out of its folder") | {
        twice: "is there twice",
        bomb: "50,000,000 bytes, which is more than 1,048,576",
        encrypted: "encrypted, or compressed by another method",
    }
    assert path.stat().st_size < 1_500_000
    if skip_bad:
        packed = pack_tiles(tmp_path / "data", skip_bad=True)
        assert len(packed.train) == 21
        reasons = dict(packed.skipped)
    else:
        with pytest.raises(KitError, match=r"^8 bad tiles") as caught:
            pack_tiles(tmp_path / "data")
        lines = (line.strip().split(": ", 1) for line in str(caught.value).splitlines()[1:-1])
        reasons = dict(lines)
    assert reasons.keys() == expected.keys()
    assert all(reason in reasons[name] for name, reason in expected.items())
    assert not list(tmp_path.rglob("*evil*"))


def test_a_bomb_that_lies_of_its_size_is_cut_off(tmp_path: Path, files: Files) -> None:
    bomb = first_tile(files)
    path = write_zip(tmp_path, files | {bomb: bytes(50_000_000)})
    patch_directory(path, bomb, 24, struct.pack("<I", 27_935))
    with pytest.raises(CorruptArchiveError, match=f"{bomb}: CRC mismatch"):
        pack_tiles(tmp_path)


def test_a_corrupt_archive_is_told_from_one_that_was_made_so(tmp_path: Path, files: Files) -> None:
    """Fetching it again mends the one and not the other."""
    name = first_tile(files)
    path = write_zip(tmp_path / "made", files | {name: tiff(BLACK)})
    with pytest.raises(KitError, match="its pixels hash to") as caught:
        pack_tiles(path.parent)
    assert not isinstance(caught.value, CorruptArchiveError)
    path = write_zip(tmp_path / "corrupt", files)
    patch_directory(path, name, 16, b"\0\0\0\0")
    with pytest.raises(CorruptArchiveError, match="CRC mismatch"):
        pack_tiles(path.parent)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_table_that_stands_there_twice_is_refused(data: Path, files: Files) -> None:
    path = data / "histopathologic-cancer-detection.zip"
    add_members(path, [("train_labels.csv", files["train_labels.csv"])])
    with pytest.raises(KitError, match=r"holds 2 train_labels\.csv: .* Move it away") as caught:
        pack_tiles(data)
    assert not isinstance(caught.value, CorruptArchiveError)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(
    tmp_path: Path, files: Files, make: Callable[[Path], None]
) -> None:
    name = first_tile(files)
    write_folder(tmp_path, {k: v for k, v in files.items() if k != name})
    make(tmp_path / name)
    with pytest.raises(KitError, match=f"{name}: not a file"):
        pack_tiles(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b"{", "is damaged"),
        ("manifest.json", b"[]", "manifest.json is not a store.s manifest"),
        ("train.csv", b"id,label\n", "its tables are not those that were packed"),
        ("test.npy", b"", "is damaged"),
        ("test.npy", b"\x93NUMPY", "is damaged"),
    ],
)
def test_a_damaged_store_is_refused(data: Path, name: str, content: bytes, message: str) -> None:
    packed = pack_tiles(data)
    (packed.folder / name).write_bytes(content)
    with pytest.raises(KitError, match=message) as caught:
        open_store(data)
    assert "delete it and pack again" in str(caught.value)


def test_a_store_of_another_length_than_its_index_is_refused(data: Path) -> None:
    packed = pack_tiles(data)
    fewer = np.array(packed.test.tiles[:-1])
    np.save(packed.folder / "test.npy", fewer)
    with pytest.raises(KitError, match=r"test\.npy does not hold 7 tiles"):
        open_store(data)


def test_a_flipped_bit_anywhere_in_the_archive_is_found(data: Path) -> None:
    """Wherever it hits, the outcome is a message or, in bytes that mean nothing, the same tiles."""
    path = data / "histopathologic-cancer-detection.zip"
    whole = path.read_bytes()
    fingerprint = pack_tiles(data).fingerprint
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        content = bytearray(whole)
        content[place] ^= 16
        path.write_bytes(content)
        try:
            assert pack_tiles(data).fingerprint == fingerprint
        except KitError:
            refused += 1
    assert refused >= 38


@pytest.mark.parametrize("kept", [0, 100, 40_000])
def test_a_cut_archive_is_refused(data: Path, kept: int) -> None:
    path = data / "histopathologic-cancer-detection.zip"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptArchiveError, match="not a whole zip"):
        pack_tiles(data)


def test_stored_members_are_read_too(tmp_path: Path, files: Files) -> None:
    with zipfile.ZipFile(tmp_path / "histopathologic-cancer-detection.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert len(pack_tiles(tmp_path).train) == 24


def test_big_endian_tiff_is_read_by_its_header() -> None:
    pixels = random_tile(np.random.default_rng(0))
    entries = [(256, 96), (257, 96), (262, 2), (273, 200), (277, 3)]
    shorts = b"".join(struct.pack(">HHIHxx", tag, 3, 1, value) for tag, value in entries)
    bits = struct.pack(">HHII", 258, 3, 3, 100)
    header = b"MM" + struct.pack(">HIH", 42, 8, 6) + shorts + bits
    content = header.ljust(100, b"\0") + struct.pack(">HHH", 8, 8, 8)
    content = content.ljust(200, b"\0") + pixels.tobytes()
    assert bytes(tile_pixels(content)) == pixels.tobytes()


def test_killed_packing_starts_clean(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_zip(data, competition_files(train=600, test=10))
    process = start_kernel("pack", "--data", data, log=tmp_path)
    while process.is_alive() and not (data / "store.partial" / "train.npy").exists():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not is_packed(data)
    assert len(pack_tiles(data).train) == 600
    assert not (data / "store.partial").exists()


def test_manifest_says_what_was_packed(data: Path) -> None:
    packed = pack_tiles(data)
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    assert manifest["tiles"] == {"train": 24, "test": 7}
    assert manifest["fingerprint"] == packed.fingerprint
    assert not packed.is_standin
