"""The page where a person drops a tile: in a real browser it gives PyTorch's figures."""

import base64
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, Visit, needs_chromium, visit
from conftest import Type, serving, tiff
from PIL import Image
from scipy.special import expit
from test_export import SMALL, finished

from kit import report, runs
from kit.base import KitError
from kit.data import Store, eval_loader, recipe_dataset
from kit.report import gradcam, runtime
from kit.runs import TrainedModel
from kit.training import Normalize, predict_logits

# What the network does not see is grey on the page.
CROPPED = replace(SMALL, crop=64)


def package() -> Path | None:
    """Where npm's package is, if it is on this machine: the suite fetches nothing."""
    if given := os.environ.get("KIT_ONNXRUNTIME_WEB"):
        return Path(given)
    kept = runtime.cache_folder() / f"{runtime.PACKAGE}-{runtime.VERSION}"
    return kept if (kept / "package.json").is_file() else None


needs_package = pytest.mark.skipif(
    package() is None,
    reason="no onnxruntime-web on this machine: KIT_ONNXRUNTIME_WEB names a folder that has it",
)
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on this machine")


@contextmanager
def served(handler: Any) -> Iterator[str]:
    """Serve on the loopback interface until the block ends."""
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


class StaticFiles(SimpleHTTPRequestHandler):
    """python -m http.server, in silence."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def run(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(CROPPED, tiles, tmp_path_factory.mktemp("cropped") / "run <b>")


def ask(visit: Visit, path: Path) -> float:
    """Give the page a file; return the probability that it shows."""
    visit.page.set_input_files("#file", path)
    return answer(visit, path.name)


def answer(visit: Visit, name: str) -> float:
    there = "name => document.getElementById('answer').dataset.name === name"
    visit.page.wait_for_function(there, arg=name)
    return float(visit.page.get_attribute("#answer", "data-probability") or "nan")


def shown(visit: Visit, canvas: str) -> np.ndarray:
    read = "id => [...document.getElementById(id).getContext('2d').getImageData(0, 0, 96, 96).data]"
    return np.array(visit.page.evaluate(read, canvas)).reshape(96, 96, 4)[..., :3]


def probabilities(trained: TrainedModel, tiles: np.ndarray) -> np.ndarray:
    """Return PyTorch's, in float32."""
    loader = eval_loader(recipe_dataset(tiles, trained.recipe))
    normalize = Normalize(*trained.recipe.channel_statistics)
    return expit(predict_logits(trained.model, loader, normalize))


@needs_chromium
@needs_package
def test_page_gives_pytorchs_probabilities_and_grad_cam(
    chromium: Browser, run: Path, tiles: Store, tmp_path: Path, type_in: Type
) -> None:
    demo, data = tmp_path / "on a server" / "demo", tiles.folder.parent
    status, said = type_in(
        f"export --run '{run}' --demo '{demo}' --data '{data}' --onnxruntime-web '{package()}'"
    )
    assert (status, "the map is that of features.1.act" in said) == (0, True), said
    trained = runs.load(run, device="cpu")
    images = np.array(tiles.test.tiles[:4])
    own = probabilities(trained, images)
    maps = report.grad_cam(trained, images)
    assert np.ptp(own) > 0.01
    assert maps is not None
    files = [tmp_path / f"{number}.tif" for number in range(3)] + [tmp_path / "3.png"]
    for path, image in zip(files, images, strict=True):
        path.write_bytes(tiff(image)) if path.suffix == ".tif" else Image.fromarray(image).save(
            path
        )
    # Below a path, as on a page of one's own.
    handler = partial(StaticFiles, directory=str(demo.parent))
    with served(handler) as address, visit(chromium, f"{address}/demo/") as page:
        for path, image, probability, heat in zip(files, images, own, maps, strict=True):
            assert ask(page, path) == pytest.approx(probability, abs=1e-4)
            np.testing.assert_array_equal(shown(page, "tile"), image)
            difference = shown(page, "map") - gradcam.overlay(image, heat).astype(int)
            assert np.abs(difference).max() <= 1
        held_out = page.page.locator("[data-tile]").first
        name = held_out.get_attribute("data-tile") or ""
        held_out.click()
        row = list(tiles.train.ids).index(name)
        known = probabilities(trained, tiles.train.tiles[row][None])[0]
        assert answer(page, name) == pytest.approx(known, abs=1e-4)
        assert "label: negative" in page.page.inner_text("#name")
        text = page.page.inner_text("body")
        assert "not a medical device" in text
        assert "run <b>" in text
        assert "95 % interval" in text
        for content, problem in WRONG.items():
            (tmp_path / "wrong.tif").write_bytes(content)
            page.page.set_input_files("#file", tmp_path / "wrong.tif")
            page.page.wait_for_selector(f"#problem:has-text('{problem}')")
        Image.fromarray(images[0]).save(tmp_path / "again.jpg")
        ask(page, tmp_path / "again.jpg")
        page.assert_sound()


NOISE = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
WRONG = {
    tiff(NOISE)[:20_000]: "wrong.tif: it is a TIFF file that is cut off",
    tiff(NOISE[:64]): "wrong.tif: its height (tag 257) is 64, not 96",
    tiff(NOISE, compression="tiff_lzw"): "wrong.tif: its compression (tag 259) is 5, not 1",
    b"no image": "wrong.tif: it is not an image that can be read",
}


@needs_package
def test_folder_stands_by_itself(run: Path, tiles: Store, tmp_path: Path) -> None:
    """All of it is the run's: held-out tiles of both classes, and the runtime's licence."""
    demo = tmp_path / "demo"
    found = runtime.find_runtime(package())
    report.write_demo(demo, run, tiles, np.array(tiles.test.tiles[:2]), runtime=found)
    files = {str(path.relative_to(demo)) for path in demo.rglob("*") if path.is_file()}
    examples = {name for name in files if name.startswith("tiles/")}
    assert files - examples == {
        "index.html",
        "demo.css",
        "demo.js",
        "model.onnx",
        "onnxruntime-web/LICENSE",
        "onnxruntime-web/ort-wasm-simd-threaded.wasm",
        "onnxruntime-web/ort.wasm.bundle.min.js",
    }
    assert "MIT License" in (demo / "onnxruntime-web/LICENSE").read_text("utf-8")
    valid = runs.read_valid(run).set_index("id")
    labels = [valid.loc[Path(name).stem, "label"] for name in examples]
    assert sorted(labels) == [0] * 6 + [1] * 6


class Registry(BaseHTTPRequestHandler):
    """One package of npm's, which is not what was published."""

    def do_GET(self) -> None:
        buffer = io.BytesIO()
        described = {"name": runtime.PACKAGE, "version": runtime.VERSION}
        text = json.dumps(described).encode()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            member = tarfile.TarInfo("package/package.json")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        content = buffer.getvalue()
        if not self.path.endswith(".tgz"):
            digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
            address = f"http://{self.headers['Host']}/{runtime.PACKAGE}.tgz"
            dist = {"tarball": address, "integrity": f"sha512-{digest}"}
            versions = {runtime.VERSION: {**described, "dist": dist}}
            content = json.dumps({"name": runtime.PACKAGE, "versions": versions}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it, and an npm that neither waits nor knows another registry."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"cache": str(tmp_path / "npm"), "fetch_retry_mintimeout": "1"}.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "cache"


@needs_npm
def test_another_package_than_the_published_one_is_not_kept(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Registry) as address:
        monkeypatch.setenv("npm_config_registry", address)
        with pytest.raises(KitError, match="is not what was published"):
            runtime.find_runtime()
    assert not list(alone.rglob("package.json"))


@needs_npm
def test_a_registry_that_cannot_be_reached_is_one_message(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1")
    with pytest.raises(KitError, match=r"npm cannot fetch .*--onnxruntime-web FOLDER") as raised:
        runtime.find_runtime()
    assert "\n" not in str(raised.value)
    assert not list(alone.rglob("package.json"))


def test_without_npm_the_message_says_what_to_do(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KitError, match=r"there is no npm: install Node.js, or .* FOLDER$"):
        runtime.find_runtime()
    with pytest.raises(KitError, match=r"holds no package.json of onnxruntime-web: where there is"):
        runtime.find_runtime(tmp_path)
    assert not list(alone.rglob("package.json"))
