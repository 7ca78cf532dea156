"""The report page: opened in a real browser, and its Grad-CAM against the formula written out."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from browser import DESKTOP, PHONE, Browser, needs_chromium, visit
from conftest import competition_files, write_zip
from matplotlib.figure import Figure
from scipy.special import expit, logit
from torch import Tensor, nn
from torch.nn import functional

from kit import models, report, runs, stats
from kit.base import KitError, Recipe, RunOptions, parse_options, recipe_values
from kit.data import Store, find_slides, pack_tiles
from kit.models import SmallCNN
from kit.report import Drawing, Page, Section, Table, plots, thresholds
from kit.runs import Run, TrainedModel

INJECTION = "<script>document.title = 'owned'</script>"
SLIDES = [INJECTION, "quote \" and ' and >", "plain", "$x$"]
DASH = "\N{EN DASH}"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("data")
    write_zip(data, competition_files(train=160, test=5))
    packed = pack_tiles(data)
    slides = [SLIDES[row // 2 % 4] for row in range(160)]
    table = pd.DataFrame({"id": packed.train.ids, "slide": slides})
    table.to_csv(data / "slides.csv", index=False)
    return packed


def finished_run(recipe: Recipe, tiles: Store, folder: Path) -> Path:
    for _ in Run(recipe, tiles, folder, device="cpu").train(progress=False):
        pass
    return folder


@pytest.fixture(scope="module")
def folder(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose holdout keeps slides apart, and whose name would be markup."""
    recipe = Recipe(
        epochs=2,
        batch_size=16,
        crop=64,
        slides=tiles.folder.parent / "slides.csv",
        validate_on=(SLIDES[0], SLIDES[1]),
    )
    return finished_run(recipe, tiles, tmp_path_factory.mktemp("runs") / "<b>run & son")


@pytest.fixture(scope="module")
def written(folder: Path, tiles: Store) -> Path:
    path = folder / "report.html"
    report.write_page(path, report.run_page(folder, tiles))
    return path


@needs_chromium
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_run_page_in_a_browser(
    chromium: Browser, written: Path, folder: Path, tiles: Store, width: int
) -> None:
    """What others named is shown as text, and the filter hides the other slides' tiles."""
    with visit(chromium, written, width=width) as opened:
        opened.assert_sound()
        page = opened.page
        assert page.locator("[role=alert]").count() == 0
        assert page.title() == "Run <b>run & son"
        assert page.locator("h1").inner_text() == "Run <b>run & son"
        assert page.locator("pre").inner_text().strip() == report.train_command(folder, tiles.data)

        pairs = page.locator(".tile")
        assert 12 < pairs.count() <= 24
        assert page.locator(".tile img").count() == 2 * pairs.count()
        options = page.locator("select option").all_inner_texts()
        assert options == ["all slides", *sorted(SLIDES[:2])]
        shown = 0
        for slide in options[1:]:
            page.locator("select").select_option(slide)
            visible = page.locator(".tile:visible").all()
            assert 0 < len(visible) < pairs.count()
            assert all(f"slide {slide}" in tile.inner_text() for tile in visible)
            assert page.locator("output").inner_text() == f"{len(visible)} of {pairs.count()} tiles"
            shown += len(visible)
        assert shown == pairs.count()
        page.locator("select").select_option(index=0)
        assert page.locator(".tile:visible").count() == pairs.count()
        opened.assert_sound()


@needs_chromium
def test_policy_stops_what_escaping_would_miss(chromium: Browser, written: Path) -> None:
    """Markup that somehow got in neither runs nor fetches."""
    page = written.read_text("utf-8")
    smuggled = page.replace("<main>", f"<main>{INJECTION}<img src='http://127.0.0.1:9/x.png'>")
    path = written.with_name("smuggled.html")
    path.write_text(smuggled, "utf-8")
    with visit(chromium, path) as opened:
        assert opened.page.title() != "owned"
        assert "http://127.0.0.1:9/x.png: csp" in opened.problems


@needs_chromium
def test_square_is_drawn_over_the_centre(chromium: Browser, written: Path) -> None:
    with visit(chromium, written, width=PHONE) as opened:
        image, left, top, width = opened.page.evaluate(
            """() => {
                const span = document.querySelector(".tile .centred");
                const square = getComputedStyle(span, "::after");
                return [span.querySelector("img").clientWidth,
                        ...["left", "top", "width"].map((name) => parseFloat(square[name]))];
            }"""
        )
    assert image > 150
    assert (left, top, width) == pytest.approx((image / 3, image / 3, image / 3), abs=1)


def test_page_is_one_file_and_the_same_each_time(
    written: Path, folder: Path, tiles: Store, tmp_path: Path
) -> None:
    text = written.read_text("utf-8")
    sources = re.findall(r"""(?:src|href)=["']?([^"'> ]{0,12})""", text)
    assert len(sources) > 24
    assert all(source.startswith("data:") for source in sources)
    assert "@import" not in text
    assert INJECTION not in text
    report.write_page(tmp_path / "again.html", report.run_page(folder, tiles))
    assert (tmp_path / "again.html").read_text("utf-8") == text


def test_run_page_says_what_the_run_says(folder: Path, tiles: Store) -> None:
    page = report.run_page(folder, tiles)
    final, valid = runs.read_metrics(folder), runs.read_valid(folder)
    assert f"AUC {final['auc']['estimate']:.4f} on {len(valid)} held-out tiles" in page.verdict
    assert f"{final['auc']['low']:.4f} to {final['auc']['high']:.4f}" in page.verdict
    assert "No slide is on both sides" in page.limits[0]

    figures = page.sections[0].tables[0].frame.set_index("figure")
    slides = find_slides(tiles).of_tiles
    assert slides is not None
    by_id = dict(zip(tiles.train.ids, slides, strict=True))
    groups = valid["id"].map(by_id).to_numpy(str)
    expected = stats.auc_jackknife(valid["label"], valid["probability"], groups)
    assert figures.loc["AUC", "95 % interval"].tolist()[1] == report.bounds(expected)
    assert figures.loc["accuracy", "value"] == final["accuracy"]

    rebuild = page.sections[-1]
    assert rebuild.code == report.train_command(folder, tiles.data)
    facts = rebuild.tables[0].frame.set_index("fingerprint").iloc[:, 0]
    assert facts["data, SHA-256 of ids and labels"] == tiles.fingerprint
    assert json.loads(facts["held-out tiles"]) == len(valid)
    options = rebuild.tables[1].frame.set_index("option").iloc[:, 0]
    assert options["crop"] == "64"


def test_holdout_of_single_tiles_is_said_to_flatter(tiles: Store, tmp_path: Path) -> None:
    folder = finished_run(Recipe(epochs=1, batch_size=16), tiles, tmp_path / "run")
    page = report.run_page(folder, tiles)
    assert "too high" in page.limits[0]
    assert page.sections[0].tables[0].frame["figure"].tolist().count("AUC") == 1
    assert report.run_page(folder, replace(tiles, is_standin=True)).is_standin
    with pytest.raises(KitError, match="was trained on other data"):
        report.run_page(folder, replace(tiles, fingerprint="0"))


@needs_chromium
def test_stand_in_is_loud(chromium: Browser, tmp_path: Path) -> None:
    section = Section("Empty", gallery={"Most wrong": []}, drawings=[Drawing(Figure(), "none")])
    report.write_page(tmp_path / "page.html", Page("t", "v", [section], is_standin=True))
    with visit(chromium, tmp_path / "page.html", width=PHONE) as opened:
        opened.assert_sound()
        assert "synthetic" in opened.page.locator("[role=alert]").inner_text()


def test_cells_show_numbers_as_read(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"tiles": [12345, 6], "p": [0.03125, 1e-7], "note": ["<b>", None], "low": [np.nan, 1.0]}
    )
    report.write_page(
        tmp_path / "t.html", Page("t", "v", [Section("s", tables=[Table(frame, "c")])])
    )
    cells = re.findall(r"<td[^>]*>(.*?)</td>", (tmp_path / "t.html").read_text("utf-8"))
    assert cells == ["12,345", "0.0312", "&lt;b&gt;", DASH, "6", "1.0e-07", DASH, "1.0000"]


def test_a_pages_figures_are_files_named_by_their_titles(tmp_path: Path) -> None:
    shown = {"a run": ([0, 1], [0.2, 0.9])}
    drawings = [Drawing(plots.roc(shown), "c"), Drawing(plots.calibration(shown), "c")]
    page = Page("t", "v", [Section("s", drawings=drawings)])
    report.write_page(tmp_path / "plain" / "t.html", page)
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["t.html"]
    report.write_page(tmp_path / "t.html", page, ("svg", "pdf"))
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["calibration.pdf", "calibration.svg", "roc_curve.pdf", "roc_curve.svg"]


def held_out(ids: npt.ArrayLike, labels: npt.ArrayLike, logits: npt.ArrayLike) -> pd.DataFrame:
    """Return predictions as `runs.read_valid` does."""
    values = {"id": ids, "label": labels, "probability": expit(logits), "logit": logits}
    return pd.DataFrame(values)


def test_gallery_holds_the_most_wrong_and_the_least_sure(folder: Path, tiles: Store) -> None:
    trained = runs.load(folder, device="cpu")
    ids = tiles.train.ids[:6]
    valid = held_out(ids, [0, 1, 0, 1, 0, 1], logit([0.9, 0.2, 0.1, 0.7, 0.55, 0.49]))
    slides = np.array([f"slide {row}" for row in range(len(tiles.train))])
    chosen = report.choose_gallery(trained, tiles, valid, slides, count=3)
    assert [tile.id for tile in chosen["Most wrong"]] == ids[[0, 1, 4]].tolist()
    assert [tile.id for tile in chosen["Least sure"]] == ids[[5, 4, 3]].tolist()
    first = chosen["Most wrong"][0]
    assert (first.label, first.slide) == (0, "slide 0")
    assert first.probability == pytest.approx(0.9)
    np.testing.assert_array_equal(first.pixels, tiles.train.tiles[0])

    right = held_out(ids, valid["label"], 4 * valid["label"] - 2)
    assert report.choose_gallery(trained, tiles, right)["Most wrong"] == []
    # Both have a probability of exactly 1 in float64.
    sure = held_out(ids, [0, 0, 0, 1, 1, 1], [38.0, 60.0, 45.0, 1.0, 1.0, 1.0])
    most_wrong = report.choose_gallery(trained, tiles, sure)["Most wrong"]
    assert [tile.id for tile in most_wrong] == ids[[1, 2, 0]].tolist()
    with pytest.raises(KitError, match="tile elsewhere of"):
        report.choose_gallery(trained, tiles, valid.assign(id="elsewhere"))


def small_model(bn: str, crop: int = 96) -> TrainedModel:
    """Return a small network whose running statistics are those of the images it sees."""
    recipe = Recipe(bn=bn, crop=crop, size=32, seed=3)  # type: ignore[arg-type]
    model = models.create_model(recipe)
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(64, 3, 32, 32))
    return TrainedModel("small", recipe, model, torch.device("cpu"), torch.float32)


def grad_cam_written_out(model: SmallCNN, images: Tensor) -> Tensor:
    """Equations 1 and 2 of Selvaraju et al. by hand, for the answer that was given."""
    last = model.features[1]
    features = last.layer(model.features[0](images))
    first, second = (last.norm, last.act) if model.bn == "before" else (last.act, last.norm)
    features = second(first(features))
    logits = model.head(model.dense(model.flatten(last.pool(features)))).squeeze(1)
    score = torch.where(logits > 0, logits, -logits).sum()
    gradients = torch.autograd.grad(score, features)[0]
    weights = gradients.mean(dim=(2, 3))
    return torch.relu(torch.einsum("bc,bchw->bhw", weights, features))


@pytest.mark.parametrize("bn", ["before", "after"])
def test_grad_cam_is_the_formula(bn: str) -> None:
    trained = small_model(bn)
    images = np.random.default_rng(1).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    # Nearest neighbours with pixel centres: the middle of each three by three.
    inputs = torch.from_numpy(images[:, 1::3, 1::3]).permute(0, 3, 1, 2).float() / 255
    assert isinstance(trained.model, SmallCNN)
    maps = grad_cam_written_out(trained.model.eval(), inputs)[:, None].double()
    maps = functional.interpolate(maps, (96, 96), mode="bilinear")[:, 0].detach()
    expected = (maps / maps.amax((1, 2), keepdim=True)).numpy()
    found = report.grad_cam(trained, images)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.max(axis=(1, 2)) == pytest.approx(1)


class TopLeft(nn.Module):
    """A network whose answer is how red the top left quarter is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.zeros_(self.conv.weight)
        nn.init.ones_(self.conv.weight[:, :1])

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.conv(images)
        side = images.shape[-1] // 2
        return features[:, :, :side, :side].mean((2, 3))


def test_grad_cam_lies_where_the_network_looked() -> None:
    """A red patch left of the middle; the map shows it there, and nothing outside the crop."""
    tile = np.zeros((1, 96, 96, 3), np.uint8)
    tile[0, 40:48, 24:32, 0] = 255
    model = TopLeft()
    recipe = Recipe(crop=64, size=64)
    trained = TrainedModel("top left", recipe, model, torch.device("cpu"), torch.float32)
    found = report.grad_cam(trained, tile)
    assert found is not None
    expected = np.full((96, 96), np.nan)
    expected[16:80, 16:80] = 0
    expected[40:48, 24:32] = 1
    np.testing.assert_allclose(found[0], expected)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "test_nfnet", "test_vit"]
)
def test_grad_cam_of_timm_models(name: str) -> None:
    recipe = Recipe(model=name, size=160, normalize="imagenet")
    model = models.create_model(recipe)
    trained = TrainedModel(name, recipe, model, torch.device("cpu"), torch.float32)
    tiles = np.random.default_rng(1).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    found = report.grad_cam(trained, tiles)
    assert found is not None
    assert found.shape == (2, 96, 96)
    assert 0 <= found.min() <= found.max() <= 1


def test_model_without_a_map_has_no_grad_cam(tiles: Store) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1))
    trained = TrainedModel("flat", Recipe(size=8), model, torch.device("cpu"), torch.float32)
    assert report.grad_cam(trained, tiles.train.tiles[:2]) is None
    valid = held_out(tiles.train.ids[:2], [0, 1], [2.0, -2.0])
    chosen = report.choose_gallery(trained, tiles, valid)["Most wrong"]
    assert [tile.cam for tile in chosen] == [None, None]


def test_a_run_that_is_too_sure_is_judged_and_has_its_page(tiles: Store, tmp_path: Path) -> None:
    """Logits of 60, as dead channels that revive give: each probability is exactly 1 in float64."""
    run = Run(Recipe(epochs=1, batch_size=16), tiles, tmp_path / "sure", device="cpu")
    for _ in run.train(progress=False):
        with torch.no_grad():
            run.state.model.head.bias += 60
    valid, final = runs.read_valid(run.folder), runs.read_metrics(run.folder)
    assert (valid["probability"] == 1).all()
    assert valid["logit"].nunique() > 40
    assert 0 < final["auc"]["estimate"] < 1
    assert final["temperature"] == pytest.approx(stats.TEMPERATURES[1], rel=0.01)
    page = report.run_page(run.folder, tiles)
    report.write_page(tmp_path / "sure.html", page)
    wrong = page.sections[3].gallery["Most wrong"]
    logits = valid.set_index("id")["logit"][[tile.id for tile in wrong]]
    assert logits.is_monotonic_decreasing
    assert logits.iloc[0] == valid["logit"][valid["label"] == 0].max()


def test_command_that_rebuilds_is_the_run_s_own(folder: Path, tiles: Store) -> None:
    """As its folder records it, whatever was typed last; typed again it asks for the same run."""
    words = shlex.split(report.train_command(folder, tiles.data))
    assert words[:2] == ["python", "kernels/train.py"]
    options = [word for word in words[2:] if word not in ("--out", str(folder))]
    parsed = parse_options(RunOptions, "", options)
    assert recipe_values(parsed.recipe) == runs.read_config(folder)["recipe"]
    assert parsed.data == tiles.data
    assert str(folder) == words[words.index("--out") + 1]


def test_a_deterministic_run_is_rebuilt_so(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    for deterministic in (False, True):
        options = {"options": {"deterministic": deterministic}}
        (copy / "config.json").write_text(json.dumps(config | options))
        words = shlex.split(report.train_command(copy, Path("data")))
        assert ("--deterministic" in words) is deterministic


def test_a_forced_run_is_said_to_have_no_command(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "forced")
    config = json.loads((copy / "config.json").read_text())
    for then, said in (({"processes": 2}, 1), ({"recipe": {}}, 2)):
        resumed = config | {"resumed_from": config | then}
        (copy / "config.json").write_text(json.dumps(resumed | {"processes": 2}))
        section = report.rebuild_section("typed", {"run": copy})
        assert len(section.text) == said
    assert "--force" in section.text[1]
    assert report.train_command(copy, Path("data")).startswith(
        "torchrun --standalone --nproc-per-node=2 kernels/train.py --recipe notebook --slides "
    )


def test_a_table_of_slides_that_cannot_be_used_costs_no_page(
    folder: Path, tiles: Store, tmp_path: Path
) -> None:
    """Unasked for and incomplete, or gone since the run: the page says why it shows no slides."""
    (tmp_path / "slides.csv").write_text("id,slide\nx,A\n")
    plain = finished_run(Recipe(epochs=1, batch_size=16), tiles, tmp_path / "plain")
    page = report.run_page(plain, replace(tiles, data=tmp_path))
    assert "No slides are shown" in page.limits[-1]
    assert f"{tmp_path / 'slides.csv'} line 2: id 'x' is not 40 hex digits" in page.limits[-1]
    assert page.sections[3].gallery["Least sure"][0].slide is None

    copy = shutil.copytree(folder, tmp_path / "moved")
    config = json.loads((copy / "config.json").read_text())
    config["recipe"]["slides"] = str(tmp_path / "gone.csv")
    (copy / "config.json").write_text(json.dumps(config))
    page = report.run_page(copy, tiles)
    assert "No slide is on both sides" in page.limits[0]
    assert f"cannot read id,slide from {tmp_path / 'gone.csv'}: No such file" in page.limits[-1]
    assert page.sections[0].tables[0].frame["figure"].tolist().count("AUC") == 1


def test_page_shows_what_thresholds_make_of_the_tiles() -> None:
    """20 tiles by hand; at the threshold that is chosen on them every tile is called right."""
    valid = pd.DataFrame(
        {
            "label": [0] * 12 + [1] * 8,
            "probability": [0.1] * 9
            + [0.55, 0.6, 0.65]
            + [0.7, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.95],
        }
    )
    section = thresholds.threshold_section(valid)
    frame = section.tables[0].frame.set_index("figure")
    at_half = frame["at 0.5 (95 % interval)"].str.split().str[0].astype(float).to_dict()
    expected = {"sensitivity": 1, "specificity": 9 / 12, "precision": 8 / 11, "accuracy": 17 / 20}
    assert at_half == pytest.approx(expected | {"F1": 16 / 19}, abs=5e-5)
    assert frame["at 0.675 (95 % interval)"].str[:6].tolist() == ["1.0000"] * 5
    assert "optimistic" in section.text[0]
    texts = [text.get_text() for text in section.drawings[0].figure.axes[0].texts]
    assert texts == ["9\n75.0 %", "3\n25.0 %", "0\n0.0 %", "8\n100.0 %"]


def test_missing_table_of_slides_is_none(tiles: Store, tmp_path: Path) -> None:
    assert find_slides(tiles, tmp_path / "none.csv").of_tiles is None
    assert find_slides(replace(tiles, data=tmp_path)).of_tiles is None
