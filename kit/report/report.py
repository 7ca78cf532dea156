"""The report: one HTML page that needs nothing but itself, and Grad-CAM for its gallery."""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor, nn
from torch.nn import functional

from kit import __version__, runs, stats
from kit.base import CLASS_NAMES, TILE_SIZE, KitError, write_text
from kit.data import dataset, split
from kit.data.store import Store, UInt8Array
from kit.models import GroupConv2d
from kit.report import plots
from kit.runs import TrainedModel
from kit.stats import Interval
from kit.training import Normalize

Floats = npt.NDArray[np.float64]
Slides = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Table:
    """A table of a page: every column is shown, the index is not."""

    frame: pd.DataFrame
    caption: str


@dataclass(frozen=True)
class Drawing:
    """A figure of a page."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class GalleryTile:
    """A held-out tile and what a model made of it.

    Attributes
    ----------
    label
        0 or 1.
    probability
        Of tumour, as the model gave it.
    slide
        None if no table of slides says.
    pixels
        (96, 96, 3), RGB.
    cam
        The same with Grad-CAM over it; None for a model without a map to show.
    """

    id: str
    label: int
    probability: float
    slide: str | None
    pixels: UInt8Array
    cam: UInt8Array | None


Gallery = Mapping[str, Sequence[GalleryTile]]
"""Tiles under their headings."""


@dataclass(frozen=True)
class Section:
    """A part of a page, shown in the order of its attributes.

    Attributes
    ----------
    text
        Paragraphs.
    code
        Commands to type, shown as they are.
    """

    heading: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
    gallery: Gallery = field(default_factory=dict)
    code: str = ""


@dataclass(frozen=True)
class Page:
    """A report: the verdict, what limits it, and the sections that bear it out."""

    title: str
    verdict: str
    sections: Sequence[Section]
    limits: Sequence[str] = ()
    is_standin: bool = False


def write(path: Path, page: Page) -> None:
    """Write a page as one HTML file, whole or not at all.

    Everything that it prints is escaped, and its policy lets a browser fetch nothing and run
    no script but the slide filter.

    Raises
    ------
    KitError
        If the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("kit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "svg": _svg, "png": _png}
    style, script = (_asset(name) for name in ("report.css", "report.js"))
    template = environment.get_template("report.html")
    write_text(
        path,
        template.render(
            page=page,
            style=Markup(style),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            class_names=CLASS_NAMES,
            version=__version__,
        ),
    )


def run_page(folder: Path, store: Store, command: str) -> Page:
    """Describe a finished run.

    Parameters
    ----------
    command
        What was typed to train it.

    Raises
    ------
    KitError
        If the folder holds no finished run, or one of other data.
    """
    config = runs.read_config(folder)
    _check_data(folder, config, store)
    valid = runs.read_valid(folder)
    slides = split.slides_of(store, config["recipe"]["slides"])
    figures = runs.read_metrics(folder)
    by_slide = config["recipe"]["slides"] is not None
    auc = Interval(**figures["auc"])
    return Page(
        title=f"Run {folder.name}",
        verdict=f"AUC {auc.estimate:.4f} on {figures['tiles']:,} held-out tiles "
        f"(95 % interval {bounds(auc)}).",
        limits=_limits(by_slide=by_slide),
        sections=[
            Section(
                "Figures", tables=[_figures(store, valid, figures, slides if by_slide else None)]
            ),
            Section("Training and validation", drawings=_run_drawings(folder, valid)),
            gallery_section(gallery(runs.load(folder), store, valid, slides)),
            rebuild_section(command, {folder.name: folder}),
        ],
        is_standin=store.is_standin,
    )


def gallery(
    trained: TrainedModel,
    store: Store,
    valid: pd.DataFrame,
    slides: Slides | None = None,
    *,
    count: int = 12,
) -> dict[str, list[GalleryTile]]:
    """Choose the held-out tiles that a model got most wrong and is least sure of.

    Parameters
    ----------
    valid
        id,label,probability, from `runs.read_valid`.
    slides
        The slide of each of the store's training tiles.
    count
        Most tiles of each kind.

    Raises
    ------
    KitError
        If a tile is not in the store.
    """
    rows = pd.Index(store.train.ids).get_indexer(pd.Index(valid["id"]))
    if (rows < 0).any():
        missing = valid["id"][rows < 0].iloc[0]
        raise KitError(f"tile {missing} of {trained.name} is not in {store.folder}: other data")
    labels, probabilities = valid["label"].to_numpy(), valid["probability"].to_numpy()
    distance = np.abs(labels - probabilities)
    wrong = np.flatnonzero((probabilities > 0.5) != (labels == 1))
    chosen = {
        "Most wrong": wrong[np.argsort(-distance[wrong], kind="stable")][:count],
        "Least sure": np.argsort(np.abs(probabilities - 0.5), kind="stable")[:count],
    }
    table = valid.assign(row=rows)
    return {
        heading: _gallery_tiles(trained, store, table.iloc[places], slides)
        for heading, places in chosen.items()
    }


def gallery_section(tiles: Gallery) -> Section:
    """Show a gallery with the words that explain it."""
    return Section(
        "Most wrong and least sure",
        text=[
            "The square is the centre that decides the label: positive if any of it is "
            "tumour. A tile whose tumour lies outside the square is negative. Below each tile "
            "stand its label and the probability of tumour that the network gave it.",
            "Beside each tile stands its Grad-CAM (Selvaraju et al. 2017): the brighter, the more "
            "that place spoke for the answer which the network gave. It is as coarse as the "
            "network's last map, it is scaled tile by tile, and it explains the network, not the "
            "tissue. What the network does not see is grey.",
        ],
        gallery=tiles,
    )


def rebuild_section(command: str, folders: Mapping[str, Path]) -> Section:
    """Give the command and the fingerprints that rebuild runs, named by arm or seed."""
    names = list(folders)
    facts = {name: _provenance(folder) for name, folder in folders.items()}
    recipes = {name: runs.read_config(folder)["recipe"] for name, folder in folders.items()}
    return Section(
        "How to rebuild this",
        text=[
            "On the same processor and number of threads the same command, with the data and the "
            "versions of these fingerprints, gives the same weights bit for bit. Elsewhere the "
            "last digits differ, and training makes of that what it makes of another seed.",
        ],
        code=command,
        tables=[
            Table(_side_by_side("fingerprint", facts, names), "What it was made from."),
            Table(_side_by_side("option", recipes, names), "Every option of the recipe."),
        ],
    )


def bounds(interval: Interval) -> str:
    """Tell an interval's bounds, or why there are none."""
    if interval.low is None or interval.high is None:
        return f"none: {interval.note}"
    return f"{interval.low:.4f} to {interval.high:.4f}"


def grad_cam(trained: TrainedModel, tiles: UInt8Array) -> Floats | None:
    """Return where a model's answers come from.

    Grad-CAM of the answer that was given, tumour or none, from the map of the last convolution
    that is larger than one pixel, taken after the norm and the activation that follow it:
    max(0, sum over channels of map times the mean gradient of the logit, or of minus the logit
    where the answer is no). Scaled to 1 tile by tile and laid over the crop that the model sees.

    Parameters
    ----------
    tiles
        (tiles, 96, 96, 3), RGB.

    Returns
    -------
    ndarray or None
        (tiles, 96, 96) in [0, 1], NaN outside the crop; None for a model without such a map, and
        where captum is not installed.

    References
    ----------
    Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2.
    """
    # Captum takes half a second to import, which whoever draws no gallery can do without.
    try:
        from captum.attr import LayerGradCam
    except ModuleNotFoundError:
        # Kaggle's image lacks it.
        return None

    recipe, model = trained.recipe, trained.model.eval()
    loader = dataset.eval_loader(dataset.recipe_dataset(tiles, recipe))
    normalize = Normalize(*recipe.channel_statistics)
    inputs = torch.cat([normalize(images) for images, _ in loader]).to(trained.device)
    layer = _last_map(model, inputs[:1])
    if layer is None:
        return None
    with torch.no_grad():
        answers = model(inputs).squeeze(1).sign()
    explained = LayerGradCam(lambda images: model(images).squeeze(1) * answers, layer)
    maps: Tensor = explained.attribute(inputs, relu_attributions=True).detach().cpu().double()
    maps = functional.interpolate(maps, (recipe.crop, recipe.crop), mode="bilinear")
    maps = maps / maps.amax((2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    border = TILE_SIZE - recipe.crop
    sides = (border // 2, border - border // 2) * 2
    return functional.pad(maps.squeeze(1), sides, value=torch.nan).numpy()


def _last_map(model: nn.Module, image: Tensor) -> nn.Module | None:
    """Return the last layer whose output has the height and width of the last convolution's.

    For a network of convolution, norm and activation that is the activation; for a ResNet, its
    last stage.
    """
    outputs: list[tuple[nn.Module, tuple[int, ...]]] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((module, tuple(output.shape[2:])))

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    maps = [
        size
        for module, size in outputs
        if isinstance(module, nn.Conv2d | GroupConv2d) and min(size, default=0) > 1
    ]
    return next((module for module, size in reversed(outputs) if maps and size == maps[-1]), None)


def _gallery_tiles(
    trained: TrainedModel, store: Store, chosen: pd.DataFrame, slides: Slides | None
) -> list[GalleryTile]:
    if chosen.empty:
        return []
    rows = chosen["row"].to_numpy()
    pixels = np.stack([store.train.tiles[row] for row in rows])
    heat = grad_cam(trained, pixels)
    overlays = [None] * len(rows) if heat is None else list(map(_overlay, pixels, heat))
    names = [None] * len(rows) if slides is None else slides[rows].tolist()
    columns = (chosen["id"], chosen["label"], chosen["probability"], names, pixels, overlays)
    return [GalleryTile(*values) for values in zip(*columns, strict=True)]


def _overlay(pixels: UInt8Array, heat: Floats) -> UInt8Array:
    """Lay a map in [0, 1] over a tile, the stronger the more opaque; grey where it is NaN."""
    seen = np.isfinite(heat)
    strength = np.where(seen, heat, 0)
    colours = 255 * colormaps["viridis"](strength)[..., :3]
    opacity = 0.75 * strength[..., None]
    blended = (1 - opacity) * pixels + opacity * colours
    grey = 0.5 * pixels.mean(-1, keepdims=True) + 0.5 * 200
    overlaid: UInt8Array = np.where(seen[..., None], blended, grey).astype(np.uint8)
    return overlaid


def _check_data(folder: Path, config: dict[str, Any], store: Store) -> None:
    if config["data"]["fingerprint"] != store.fingerprint:
        raise KitError(
            f"{folder} was trained on other data than {store.folder} holds: give the --data that "
            "it was trained on"
        )


def _limits(*, by_slide: bool) -> list[str]:
    """Say in plain words what a single run's figures do not tell."""
    holdout = (
        "No slide stands on both sides of this holdout."
        if by_slide
        else "Tiles of one slide look alike and stand on both sides of this holdout, so its "
        "figures flatter: on slides never seen they will be lower. --slides keeps slides apart."
    )
    return [
        holdout,
        "This is one run: another seed gives other figures, and no interval here tells how far. "
        "A comparison of two variants takes several seeds of each.",
    ]


def _figures(
    store: Store, valid: pd.DataFrame, figures: dict[str, Any], slides: Slides | None
) -> Table:
    """Tabulate the final figures; `slides` is given where the holdout keeps slides apart."""
    labels, probabilities = valid["label"].to_numpy(), valid["probability"].to_numpy()
    error = stats.expected_calibration_error(labels, probabilities)
    auc = Interval(**figures["auc"])
    rows = [
        ("AUC", auc.estimate, bounds(auc), "of other tiles of these slides (DeLong)"),
        ("AUC of hard labels", figures["auc_of_hard_labels"], "", "what 0 and 1 would score"),
        ("accuracy", figures["accuracy"], "", "at a probability of 0.5"),
        ("log loss", figures["log_loss"], "", "nats a tile; 0.693 for always saying one half"),
        ("calibration error", error, "", "mean distance of probability and share of positives"),
    ]
    if slides is not None:
        places = pd.Index(store.train.ids).get_indexer(pd.Index(valid["id"]))
        interval = stats.auc_bootstrap(labels, probabilities, slides[places])
        meaning = "of other slides (bootstrap over slides)"
        rows.insert(1, ("AUC", interval.estimate, bounds(interval), meaning))
    frame = pd.DataFrame(rows, columns=["figure", "value", "95 % interval", "meaning"])
    return Table(frame, f"Final figures on {len(valid):,} held-out tiles.")


def _run_drawings(folder: Path, valid: pd.DataFrame) -> list[Drawing]:
    history = runs.read_history(folder)
    predictions = {folder.name: (valid["label"].to_numpy(), valid["probability"].to_numpy())}
    training = (
        "Training figures are means over the epoch while the weights still moved; validation "
        "figures are of the epoch's last weights."
    )
    return [
        Drawing(
            plots.sides(history, "accuracy", title="Accuracy"),
            f"Share of tiles called right. {training}",
        ),
        Drawing(plots.sides(history, "loss", title="Loss"), "Mean log loss, in nats a tile."),
        Drawing(
            plots.roc(predictions),
            "Each point is a threshold; the area below is the chance that a positive tile is "
            "scored above a negative one.",
        ),
        Drawing(
            plots.calibration(predictions),
            "Points on the diagonal mean what they say: of the tiles given 0.8, 80 % are positive. "
            "Bars are 95 % intervals over tiles; below, the number of tiles.",
        ),
    ]


def _provenance(folder: Path) -> dict[str, Any]:
    """Return what identifies a run's data, weights, versions and hardware."""
    config = runs.read_config(folder)
    facts = {
        "data, SHA-256 of ids and labels": config["data"]["fingerprint"],
        "training tiles": config["data"]["train_tiles"],
        "held-out tiles": config["data"]["valid_tiles"],
    }
    for name in ("split.csv", "model.safetensors", "valid.csv"):
        facts[f"{name}, SHA-256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    versions = ("kit", "torch", "timm", "python", "device", "precision", "workers", "threads")
    return facts | {name: config.get(name) for name in versions}


def _side_by_side(
    heading: str, values: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> pd.DataFrame:
    """Return a row a key and a column a run, the values as JSON writes them."""
    keys = values[names[0]]
    columns = {name: [_json(values[name].get(key)) for key in keys] for name in names}
    return pd.DataFrame({heading: list(keys)} | columns)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _asset(name: str) -> str:
    return resources.files("kit.report.templates").joinpath(name).read_text("utf-8")


def _cell(value: Any) -> str:
    """Show a value: integers with separators, other numbers with four decimals or two digits."""
    if value is None or value is pd.NA or value != value:
        return "\N{EN DASH}"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
    return str(value)


def _svg(figure: Figure) -> str:
    """Return a figure as a data URI, the same bytes each time."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "kit"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", buffer.getvalue())


def _png(pixels: UInt8Array) -> str:
    """Return an RGB image as a data URI."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
