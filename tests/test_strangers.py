"""What strangers send: nothing of it runs or is fetched, and nothing else is shown or written."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Files, competition_files, write_folder, write_zip
from matplotlib.figure import Figure

from kit import report, runs
from kit.base import KitError, Recipe
from kit.data import Store, open_store, pack_tiles
from kit.models import create_model
from kit.report import Drawing, GalleryTile, Page, Section, Table
from kit.runs import Run

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(epochs=1, batch_size=8, size=32)
SECRETS = {
    "KAGGLE_USERNAME": "the-name-of-nobody",
    "KAGGLE_KEY": "the-key-of-nobody",
    "KAGGLE_API_TOKEN": "the-token-of-nobody",
}


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where code would leave its mark."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("data")
    write_zip(data, competition_files(train=40, test=5))
    return pack_tiles(data)


@pytest.fixture(scope="module")
def trained(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, trained and reported by someone with credentials."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        for _ in Run(RECIPE, tiles, folder, device="cpu").train(progress=False):
            pass
        report.write_page(folder / "report.html", report.run_page(folder, tiles))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(trained, tmp_path / "run")


def test_the_payload_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


def pickle_by_torch(path: Path, content: object) -> None:
    torch.save({"weight": torch.zeros(1), "state_dict": content}, path)


def pickle_plainly(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps({"state_dict": content}))


def pickle_by_old_torch(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = [pickle_by_torch, pickle_plainly, pickle_by_old_torch]


@pytest.mark.parametrize("write", WRITERS)
def test_a_checkpoint_does_not_run(
    run: Path, tiles: Store, place: Path, write: Callable[[Path, object], None]
) -> None:
    write(run / "last.pt", Payload(place))
    with pytest.raises(KitError, match=r"last\.pt is damaged"):
        Run(RECIPE, tiles, run, device="cpu", resume=True)


@pytest.mark.parametrize("write", WRITERS)
def test_a_runs_weights_do_not_run(
    run: Path, place: Path, write: Callable[[Path, object], None]
) -> None:
    write(run / "model.safetensors", Payload(place))
    with pytest.raises(KitError, match="is damaged, or another run's"):
        runs.load(run, device="cpu")
    # As runs of version 0.4.0, which recorded no sum.
    figures = json.loads((run / "metrics.json").read_text())
    del figures["sha256"]
    (run / "metrics.json").write_text(json.dumps(figures))
    with pytest.raises(KitError, match=r"model\.safetensors is damaged: "):
        runs.load(run, device="cpu")


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "w.safetensors"])
@pytest.mark.parametrize("write", WRITERS)
def test_weights_do_not_run(
    tmp_path: Path, place: Path, name: str, write: Callable[[Path, object], None]
) -> None:
    write(tmp_path / name, Payload(place))
    with pytest.raises(KitError, match=r"cannot read weights|neither a \.safetensors"):
        create_model(Recipe(model="test_resnet", size=96, weights=tmp_path / name))


def test_a_packed_store_does_not_run(tmp_path: Path, place: Path) -> None:
    write_zip(tmp_path, competition_files(train=4, test=2))
    packed = pack_tiles(tmp_path)
    payloads = np.array([Payload(place)] * 4, dtype=object)
    (packed.folder / "train.npy").unlink()
    np.save(packed.folder / "train.npy", payloads, allow_pickle=True)
    with pytest.raises(KitError, match=r"train\.npy does not hold 4 tiles"):
        open_store(tmp_path)


@pytest.mark.parametrize("model", ["hf-hub:nobody/model", "local-dir:/tmp/model", "os.system"])
def test_a_configuration_names_no_model_to_fetch(run: Path, model: str) -> None:
    config = json.loads((run / "config.json").read_text())
    config["recipe"] |= {"model": model, "pretrained": True}
    (run / "config.json").write_text(json.dumps(config))
    # The folder itself says how its model is built, or nothing does.
    with pytest.raises(KitError, match=r"no model|run/architecture holds no config\.json"):
        runs.load(run, device="cpu")


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": runs.read_config,
    "valid.csv": runs.read_valid,
    "metrics.json": runs.read_metrics,
    "history.jsonl": runs.read_history,
    "model.safetensors": lambda folder: runs.load(folder, device="cpu"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_run_folder_shows_nothing_outside_itself(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(Path("..") / name)
    with pytest.raises(KitError, match=f"{name} is a link to .*, out of its run folder"):
        READERS[name](run)


def test_a_checkpoint_outside_the_run_folder_is_not_resumed(
    run: Path, tiles: Store, tmp_path: Path
) -> None:
    (run / "last.pt").rename(tmp_path / "last.pt")
    (run / "last.pt").symlink_to(tmp_path / "last.pt")
    with pytest.raises(KitError, match=r"last\.pt is a link to .*, out of its run folder"):
        Run(RECIPE, tiles, run, device="cpu", resume=True)


def test_a_run_folder_may_itself_be_reached_by_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "best").symlink_to(run)
    (run / "again.safetensors").symlink_to("model.safetensors")
    assert runs.load(tmp_path / "best", device="cpu").recipe == RECIPE


def test_nothing_outside_a_run_folder_is_written(run: Path, tiles: Store, tmp_path: Path) -> None:
    """Neither a link in a file's place nor one in its temporary file's is written through."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    names = [path.name for path in run.iterdir()]
    for name in names:
        (run / f"{name}.partial").symlink_to(precious)
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(precious)
    for _ in Run(RECIPE, tiles, run, device="cpu", resume=True).train(progress=False):
        pass
    report.write_page(run / "report.html", report.run_page(run, tiles))
    assert precious.read_text() == "mine"
    assert not (run / "report.html").is_symlink()


def test_no_credential_stands_in_a_run_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "last.pt", "report.html"} <= names
    for path in trained.iterdir():
        assert not [value for value in SECRETS.values() if value.encode() in path.read_bytes()]


# What may happen only where somebody fetches or executes.
WATCHED = """
import os, runpy, sys
data = os.path.realpath(sys.argv[-1])
events = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec",
          "os.posix_spawn", "os.fork", "pickle.find_class", "ctypes.dlopen"}
def watch(event, arguments):
    if (event, arguments) == ("ctypes.dlopen", (None,)):
        return  # The program itself, by which ctypes reaches Python.
    if event in events or event == "exec" and arguments[0].co_filename.startswith(data):
        print("watched:", event, arguments, file=sys.stderr, flush=True)
        os._exit(99)
sys.addaudithook(watch)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CODE = b"import pathlib; pathlib.Path(__file__).with_name('executed').touch()\n"
TRAPS: Files = dict.fromkeys(
    ["kit.py", "kaggle.py", "pandas.py", "sitecustomize.py", "conftest.py", "train/__init__.py"],
    CODE,
) | {"setup.cfg": b"[", "standin.json.pkl": pickle.dumps(print), "http.url": b"http://127.0.0.1:9"}


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_nothing_in_a_data_folder_is_fetched_or_executed(
    tmp_path: Path, write: Callable[[Path, Files], object]
) -> None:
    data = tmp_path / "data"
    write(data, competition_files())
    write_folder(data, {name: code for name, code in TRAPS.items() if "/" not in name})
    command = [sys.executable, "-P", "-c", WATCHED, ROOT / "kernels" / "pack.py", "--data", data]
    done = subprocess.run(command, cwd=data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "24 train and 7 test tiles" in done.stdout
    assert not list(tmp_path.rglob("executed"))


def test_the_watch_would_see_it(tmp_path: Path) -> None:
    (tmp_path / "pack.py").write_text("import socket; socket.create_connection(('127.0.0.1', 9))")
    command = [sys.executable, "-c", WATCHED, tmp_path / "pack.py", tmp_path / "data"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 99
    assert "watched: socket." in done.stderr


MARKUP = "\"'></script><script>alert(1)</script><img src=x onerror=alert(1)><b>$x$"


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_page_escapes_all_that_it_prints(tmp_path: Path) -> None:
    pixels = np.zeros((96, 96, 3), np.uint8)
    tile = GalleryTile(MARKUP, 1, 0.5, MARKUP, pixels, pixels)
    figure = Figure()
    figure.suptitle(MARKUP)
    table = Table(pd.DataFrame({MARKUP: [MARKUP], "n": [1.5]}), MARKUP)
    section = Section(
        MARKUP,
        text=[MARKUP],
        tables=[table],
        drawings=[Drawing(figure, MARKUP)],
        gallery={MARKUP: [tile]},
        code=MARKUP,
    )
    report.write_page(
        tmp_path / "r.html", Page(MARKUP, MARKUP, [section], [MARKUP], is_standin=True)
    )
    text = (tmp_path / "r.html").read_text("utf-8")
    plain = Page("t", "v", [Section("s", gallery={"g": [tile]})])
    report.write_page(tmp_path / "plain.html", plain)
    tags = Tags(text).found
    scripts = [tag for tag, _ in tags if tag == "script"]
    assert scripts == [
        tag for tag, _ in Tags((tmp_path / "plain.html").read_text()).found if tag == "script"
    ]
    assert "b" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert sources
    assert all(source and source.startswith("data:image/") for source in sources)
    assert text.count("alert(1)") >= 10
