"""The packed tiles as a dataset on Kaggle: uploaded by the unmodified client, mounted, used."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import competition_files, kernel, write_folder
from kaggle_server import KEY, KaggleServer, move_in, serve

from kit.data import open_store, pack_tiles
from kit.kaggle.on_kaggle import link_data


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    with serve() as fake:
        move_in(fake, tmp_path, monkeypatch)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        yield fake


def upload() -> "subprocess.CompletedProcess[str]":
    done = kernel("dataset")
    assert "Traceback" not in done.stderr
    assert KEY not in done.stdout + done.stderr
    return done


def test_packed_tiles_are_uploaded_once_and_used_there(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = competition_files(train=24, test=7)
    write_folder(Path("data"), files)
    done = upload()
    assert done.returncode == 0, done.stderr
    assert "uploaded: https://www.kaggle.com/datasets/nobody/the-dataset" in done.stdout
    assert "next: python kernels/push.py --dataset nobody/histopathologic-packed" in done.stdout
    assert server.dataset["slug"] == "histopathologic-packed"
    assert server.dataset["isPrivate"] is True
    stored = {path.name: path.read_bytes() for path in Path("data/store").iterdir()}
    assert server.blobs == stored
    assert {path.name for path in Path("data").iterdir()} >= {"store", "train"}
    assert not Path("data/store-upload").exists()

    again = upload()
    assert again.returncode == 1
    assert '"histopathologic-packed" is already in use' in again.stderr
    taken = "take it as it is, with push.py --dataset nobody/histopathologic-packed, or give"
    assert taken in again.stderr

    root = tmp_path / "kaggle"
    write_folder(root / "input/competitions/histopathologic-cancer-detection", files)
    write_folder(root / "input/datasets/nobody/histopathologic-packed", server.blobs)
    (root / "temp").mkdir()
    monkeypatch.setattr("kit.data.store._pack", None)
    there = open_store(link_data(root, root / "temp"))
    assert len(there.train) == 24


def test_an_upload_that_fails_is_told(server: KaggleServer) -> None:
    write_folder(Path("data"), competition_files())
    pack_tiles(Path("data"))
    server.upload_status = 403
    done = upload()
    assert done.returncode == 1
    # kaggle 2.2.4 makes the dataset without the file.
    expected = "without manifest.json, test.csv" if server.dataset else "file store refused a file"
    assert expected in done.stderr
    assert Path("data/store-upload").is_dir()
    if server.dataset:
        return
    server.upload_status = 200
    assert upload().returncode == 0
    assert server.blobs == {p.name: p.read_bytes() for p in Path("data/store").iterdir()}
