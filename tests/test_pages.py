"""The pages of studies, opened in a real browser."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser, needs_chromium, visit
from conftest import competition_files, write_zip

from kit import report, study
from kit.base import Recipe
from kit.data import Store, find_slides, pack_tiles
from kit.study import MomentumSweep, Study

RECIPE = Recipe(epochs=2, batch_size=16, widths=(4, 6, 8))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("data")
    write_zip(data, competition_files(train=120, test=5))
    packed = pack_tiles(data)
    rows = [f"{tile},S{number % 3}\n" for number, tile in enumerate(packed.train.ids)]
    (data / "slides.csv").write_text("id,slide\n" + "".join(rows))
    return packed


def write_comparison(tiles: Store, folder: Path) -> Path:
    arms = {bn: replace(RECIPE, bn=bn) for bn in ("before", "after")}  # type: ignore[arg-type]
    comparison = Study(folder, arms, (0, 1))
    outcomes = study.train_arms(comparison, tiles, device="cpu")
    slides = find_slides(tiles)
    predictions = study.pooled_predictions(comparison)
    holdouts = study.find_holdouts(comparison.seeded("before"), tiles)
    judged = study.judge_arms(outcomes, predictions, *arms, holdouts)
    tables = {
        "verdict": study.population_table(judged, holdouts),
        "table1": study.paired_table(outcomes, *arms),
        "delong": study.delong_table(predictions, *arms),
        "pooled": study.pooled_table(predictions, *arms, slides.by_id(tiles.train.ids)),
    }
    verdict = study.paired_verdict(judged, *arms)
    page = report.compare_page(
        comparison,
        study.histories(outcomes),
        predictions,
        tables,
        verdict,
        store=tiles,
        slides=slides,
        command="compare <b>",
    )
    report.write_page(folder / "report.html", page)
    return folder / "report.html"


def write_sweep(tiles: Store, folder: Path) -> Path:
    outcomes = study.sweep_momenta(
        MomentumSweep(folder, RECIPE, (0.99, 0.5), (0, 1)), tiles, device="cpu"
    )
    tables = {
        "table2": study.momentum_table(outcomes),
        "notebook": study.notebook_table(outcomes),
    }
    folders = {"sweep-0": folder / "runs" / "sweep-0"}
    verdict = study.momentum_verdict(outcomes)
    slides = find_slides(tiles)
    page = report.momentum_page(
        study.histories(outcomes),
        tables,
        verdict,
        store=tiles,
        slides=slides,
        folders=folders,
        command="tune",
    )
    report.write_page(folder / "report.html", page)
    return folder / "report.html"


@pytest.fixture(scope="module", params=[write_comparison, write_sweep])
def page(
    request: pytest.FixtureRequest, tiles: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    yield request.param(tiles, tmp_path_factory.mktemp("study"))


@needs_chromium
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_study_page_in_a_browser(chromium: Browser, page: Path, width: int) -> None:
    with visit(chromium, page, width=width) as opened:
        opened.assert_sound()
        text = opened.page.inner_text("body")
        assert "No conclusion is possible" in text[:600]
        assert "Grad-CAM" in text
        gallery = opened.page.locator("select").first
        shown = opened.page.locator("[data-slide]:visible").count()
        gallery.select_option("S1")
        assert 0 < opened.page.locator("[data-slide]:visible").count() < shown
