"""Data as people have it: extracted, in a folder on top, read-only, on another disk."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, competition_files, kernel, write_folder, write_zip

from kit.base import KitError
from kit.data import is_packed, open_store, pack_tiles

ROOT = Path(__file__).parents[1]
ARCHIVE = "histopathologic-cancer-detection.zip"
JUNK = dict.fromkeys(
    ["train/.DS_Store", "test/Thumbs.db", "train/desktop.ini", f"train/._{'a' * 40}.tif"], b"junk"
)


def manifest(store: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((store / "manifest.json").read_text())
    return values


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_names_that_are_no_tiles_are_passed_over_and_counted(
    tmp_path: Path,
    files: Files,
    write: Callable[[Path, Files], object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, files | JUNK)
    assert len(pack_tiles(tmp_path).train) == 24
    said = capsys.readouterr().err
    assert "note: 4 names in" in said
    assert "are not those of tiles and were passed over, the first test/Thumbs.db" in said


def test_an_archive_with_one_folder_on_top_is_read(tmp_path: Path, files: Files) -> None:
    folders = {"pcam/": b"", "pcam/train/": b"", "pcam/test/": b"", "__MACOSX/": b""}
    on_top = folders | {f"pcam/{name}": content for name, content in files.items()}
    resources = {f"__MACOSX/pcam/train/._{'a' * 40}.tif": b"Mac OS X", "__MACOSX/._pcam": b"?"}
    write_zip(tmp_path / "top", on_top | resources)
    write_zip(tmp_path / "plain", files)
    packed, plain = pack_tiles(tmp_path / "top"), pack_tiles(tmp_path / "plain")
    assert packed.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(packed.test.tiles, plain.test.tiles)


def test_an_archive_with_backslashes_in_its_names_is_read(tmp_path: Path, files: Files) -> None:
    write_zip(tmp_path, {name.replace("/", "\\"): content for name, content in files.items()})
    assert len(pack_tiles(tmp_path).train) == 24


def test_an_archive_of_another_name_is_pointed_out(tmp_path: Path, files: Files) -> None:
    path = write_zip(tmp_path, files)
    path.rename(path.with_stem(f"{path.stem} (1)"))
    with pytest.raises(KitError, match=r"If .*detection \(1\)\.zip is the archive, rename it"):
        open_store(tmp_path)


def test_an_extracted_archive_with_one_folder_on_top_is_read(tmp_path: Path, files: Files) -> None:
    write_folder(tmp_path / "pcam", files)
    write_folder(tmp_path / "__MACOSX", {"pcam/train/._x.tif": b"?"})
    assert len(open_store(tmp_path).train) == 24
    assert is_packed(tmp_path)


def test_another_archive_of_that_name_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of it may be right; `make download` deletes what is proved corrupt alone."""
    path = write_zip(tmp_path, {"publicleaderboard.csv": b"team,score\n"})
    monkeypatch.setenv("KAGGLE_USERNAME", "nobody")
    monkeypatch.setenv("KAGGLE_KEY", "none")
    done = kernel("download", "--data", tmp_path)
    assert done.returncode == 1
    assert "holds no train_labels.csv: it is not the competition's. Move it away" in done.stderr
    assert path.exists()


def test_a_new_sample_submission_beside_extracted_tiles_is_seen(
    tmp_path: Path, files: Files
) -> None:
    write_folder(tmp_path, files)
    assert len(pack_tiles(tmp_path).test) == 7
    more = competition_files(test=9)
    for name in ("test", "sample_submission.csv"):
        write_folder(tmp_path, {path: more[path] for path in more if path.startswith(name)})
    assert not is_packed(tmp_path)
    assert len(open_store(tmp_path).test) == 9


def test_extracted_tiles_that_only_were_touched_stay_packed(tmp_path: Path, files: Files) -> None:
    write_folder(tmp_path, files)
    pack_tiles(tmp_path)
    for name in ("train_labels.csv", "sample_submission.csv"):
        os.utime(tmp_path / name, (0, 0))
    assert is_packed(tmp_path)


@pytest.mark.parametrize("name", ["train_labels.csv", "sample_submission.csv"])
def test_a_store_outlives_a_table(tmp_path: Path, files: Files, name: str) -> None:
    write_folder(tmp_path, files)
    pack_tiles(tmp_path)
    (tmp_path / name).unlink()
    assert len(open_store(tmp_path).train) == 24


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_store_of_version_0_4_opens_without_packing_again(
    tmp_path: Path, files: Files, skip_bad: bool
) -> None:
    """It knew an extracted folder by the date of its labels."""
    if skip_bad:
        files[min(name for name in files if name.startswith("train/"))] = b""
    write_folder(tmp_path, files)
    store = pack_tiles(tmp_path, skip_bad=skip_bad).folder
    date = (tmp_path / "train_labels.csv").stat().st_mtime_ns
    old = manifest(store) | {"packed_from": {"source": "folder", "mtime_ns": date}}
    (store / "manifest.json").write_text(json.dumps(old))
    assert len(open_store(tmp_path).train) == 24 - skip_bad
    assert manifest(store) == old
    text = files["sample_submission.csv"].decode()
    (tmp_path / "sample_submission.csv").write_text(text.replace(text.split()[-1] + "\n", ""))
    assert not is_packed(tmp_path)


@pytest.fixture
def read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, int], Path]]:
    """Write read-only data of a name and a number of training tiles; work in another folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    mounts = []

    def write(name: str, train: int) -> Path:
        folder = tmp_path / name
        write_zip(folder, competition_files(train=train))
        shutil.copytree(folder, tmp_path / f"{name}-copy")
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            # To root every folder is writable that its file system allows.
            options = (["--bind", folder], ["-o", "remount,ro,bind"])
            for option in options:
                if subprocess.run(["mount", *option, folder], capture_output=True).returncode:
                    pytest.skip("to root every folder is writable, and mounting is not allowed")
            mounts.append(folder)
        return folder

    yield write
    for folder in mounts:
        subprocess.run(["umount", folder], check=True)


def test_read_only_data_have_a_store_each(
    read_only: Callable[[str, int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = read_only("one", 24), read_only("two", 30)
    for data in (one, two):
        open_store(data)
        said = capsys.readouterr().err
        assert f"{data} is read-only, so its packed tiles are in packed-" in said
    stores = [open_store(data) for data in (one, two)]
    assert [len(store.train) for store in stores] == [24, 30]
    assert sorted(path.name for path in Path().iterdir()) == sorted(
        store.folder.parent.name for store in stores
    )


def test_a_store_of_version_0_4_in_the_working_folder_is_that_of_its_data_alone(
    read_only: Callable[[str, int], Path], tmp_path: Path
) -> None:
    one, two = read_only("one", 24), read_only("two", 30)
    os.utime(tmp_path / "one-copy" / ARCHIVE, ns=(0, (one / ARCHIVE).stat().st_mtime_ns))
    pack_tiles(tmp_path / "one-copy").folder.rename("store")
    assert open_store(one).folder == Path("store")
    assert len(open_store(two).train) == 30


@pytest.mark.parametrize("target", ["empty", "missing", "packed"])
def test_a_link_to_a_larger_disk_is_packed_into(data: Path, tmp_path: Path, target: str) -> None:
    disk = tmp_path / "disk"
    if target == "empty":
        disk.mkdir()
    if target == "packed":
        write_zip(tmp_path / "other", competition_files(train=30))
        pack_tiles(tmp_path / "other").folder.rename(disk)
    (data / "store").symlink_to(disk)
    assert len(open_store(data).train) == 24
    assert (data / "store").is_symlink()
    assert (disk / "train.npy").is_file()
    assert sorted(path.name for path in disk.parent.glob("disk*")) == ["disk"]


def foreign_file(store: Path) -> None:
    store.mkdir()
    (store / "thesis.tex").touch()


def a_file(store: Path) -> None:
    store.touch()


def a_loop(store: Path) -> None:
    store.symlink_to(store)


def top_of_a_disk(store: Path) -> None:
    store.symlink_to("/proc")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign_file, "store holds other files than the kit's"),
        (a_file, "store holds other files than the kit's"),
        (a_loop, "store is a link to itself"),
        (top_of_a_disk, "leads to /proc, the top of a disk"),
    ],
)
def test_what_is_not_a_store_is_never_replaced(
    data: Path, make: Callable[[Path], None], message: str
) -> None:
    make(data / "store")
    with pytest.raises(KitError, match=message):
        open_store(data)
    assert os.path.lexists(data / "store")
