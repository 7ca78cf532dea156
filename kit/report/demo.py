"""The page where a person drops a tile: a folder that any static server shows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.image import imsave

from kit import __version__, runs
from kit.base import CLASS_NAMES, TILE_SIZE, Pixels, Recipe, Views, atomic_folder
from kit.data import KnownSlides, Store, find_slides
from kit.report.galleries import store_rows
from kit.report.gradcam import OPACITY
from kit.report.page import Table, asset, page_templates
from kit.report.run import check_data, figures_table, run_limits, run_verdict
from kit.report.runtime import PACKAGE, copy_runtime, package_version
from kit.runs import ExportedTile, TrainedModel

EXAMPLES_OF_A_CLASS = 6


@dataclass(frozen=True)
class Example:
    """A held-out tile to click at."""

    id: str
    label: int
    pixels: Pixels


def write_demo(
    folder: Path,
    run: Path,
    store: Store,
    tiles: Pixels,
    *,
    runtime: Path,
    views: Views | None = None,
    cam_layer: str | None = None,
) -> ExportedTile:
    """Write a folder with a page that computes a dropped tile's probability and Grad-CAM.

    It needs a static server and nothing else: the network is an ONNX file, which onnxruntime-web
    beside it runs in the browser.

    Parameters
    ----------
    folder
        A new one.
    store
        Which the run was trained on.
    tiles
        (tiles, 96, 96, 3): those to compare the exported network on.
    runtime
        From `find_runtime`.
    views
        8 averages the eight symmetries; by default as the run predicts.
    cam_layer
        See `kit.models.find_map_layer`; by default that of the run's page.

    Raises
    ------
    KitError
        As `kit.runs.export_tile` does, or if the run was trained on other data.
    """
    config = runs.read_config(run)
    check_data(run, config, store)
    trained = runs.load(run, device="cpu")
    cam_layer = cam_layer or config.get("options", {}).get("cam_layer")
    views = views or trained.recipe.views
    exported = runs.export_tile(trained, tiles, views=views, cam_layer=cam_layer)
    examples = _choose_examples(run, store)
    with atomic_folder(folder) as partial:
        (partial / "model.onnx").write_bytes(exported.model)
        copy_runtime(runtime, partial / PACKAGE)
        _write_tiles(partial / "tiles", examples)
        described = _described(run, store, trained, exported)
        described |= {"checked": f"{len(tiles):,}", "runtime": package_version(runtime)}
        _write_page(partial, described, examples)
    return exported


def _write_tiles(folder: Path, examples: Sequence[Example]) -> None:
    folder.mkdir()
    for example in examples:
        imsave(folder / f"{example.id}.png", example.pixels)


def _write_page(partial: Path, described: dict[str, Any], examples: Sequence[Example]) -> None:
    template = page_templates().get_template("demo.html")
    page = template.render(
        described, tiles=examples, class_names=CLASS_NAMES, side=TILE_SIZE, version=__version__
    )
    style, more, script = (asset(name) for name in ("report.css", "demo.css", "demo.js"))
    for name, text in {"index.html": page, "demo.css": style + more, "demo.js": script}.items():
        (partial / name).write_text(text, encoding="utf-8")


def _described(
    run: Path, store: Store, trained: TrainedModel, exported: ExportedTile
) -> dict[str, Any]:
    """Return what the page says of the network."""
    recipe = trained.recipe
    viridis = np.rint(255 * colormaps["viridis"](np.arange(256))[:, :3]).astype(int)
    data = {
        "crop": recipe.crop,
        "colours": viridis.tolist(),
        "opacity": OPACITY,
        "class_names": CLASS_NAMES,
    }
    return {
        "title": f"{trained.name}: tumour in a tile?",
        "verdict": run_verdict(run, runs.read_metrics(run)),
        "is_standin": store.is_standin,
        "layer": exported.layer,
        "difference": f"{exported.difference:.1g}",
        "how": _how(trained, exported),
        "about_map": _about_map(exported),
        "tables": [_figures(run, store)],
        "limits": _limits(run, recipe, exported),
        # A script's text ends at the first </; JSON can say it otherwise.
        "data": Markup(json.dumps(data).replace("<", "\\u003c")),
    }


def _how(trained: TrainedModel, exported: ExportedTile) -> str:
    recipe = trained.recipe
    size = f", resized to {recipe.size} ({recipe.interpolation})" * (recipe.size != recipe.crop)
    views = (
        "The probability is the mean over the eight symmetries of the tile"
        if exported.views == 8
        else "The probability is that of the tile as it is"
    )
    return (
        f"The network, {recipe.model}, sees the central {recipe.crop}x{recipe.crop} pixels of a "
        f"tile{size}. {views}. Tumour that is only outside the central square does not count."
    )


def _about_map(exported: ExportedTile) -> str:
    if exported.layer is None:
        return f"There is no map of where the answer comes from: {exported.note}."
    turned = " the mean over the eight views, turned back," if exported.views == 8 else ""
    return (
        f"The map is Grad-CAM (Selvaraju et al. 2017) of the layer {exported.layer},{turned} with "
        "the gradient itself, which is part of the exported network: the brighter, the more that "
        "place spoke for the answer given. It is as coarse as the layer, it is scaled tile by "
        "tile, and it explains the network, not the tissue."
    )


def _figures(run: Path, store: Store) -> Table:
    table = runs.read_config(run)["recipe"]["slides"]
    slides = find_slides(store, table) if table else KnownSlides()
    return figures_table(store, runs.read_valid(run), runs.read_metrics(run), slides)


def _limits(run: Path, recipe: Recipe, exported: ExportedTile) -> list[str]:
    views = (
        f"These figures are of {recipe.views} of a tile's views, this page's of {exported.views}."
    )
    return [
        *run_limits(run, by_slide=recipe.slides is not None),
        *([views] if exported.views != recipe.views else []),
        "It knows tiles of lymph nodes as PatchCamelyon has them: 96x96 pixels at 0.97 "
        "micrometres each, stained with haematoxylin and eosin. For any other image it answers, "
        "too, and its answer means nothing.",
    ]


def _choose_examples(run: Path, store: Store) -> list[Example]:
    """Choose held-out tiles of both classes, spread evenly over the answers they were given.

    A refit was trained on them.
    """
    if runs.refit_of(run) is not None:
        return []
    valid = runs.read_valid(run)
    valid = valid.assign(row=store_rows(valid, store, run.name)).sort_values("logit", kind="stable")
    chosen = pd.concat([_spread(group) for _, group in valid.groupby("label")])
    return [
        Example(tile, label, store.train.tiles[row])
        for tile, label, row in chosen[["id", "label", "row"]].itertuples(index=False, name=None)
    ]


def _spread(table: pd.DataFrame) -> pd.DataFrame:
    places = np.linspace(0, len(table) - 1, min(EXAMPLES_OF_A_CLASS, len(table)))
    return table.iloc[places.round().astype(int)]
