"""The figures and the gallery of a page as pictures, for logs that show pictures."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kit.base import CENTRE_SIZE, CLASS_NAMES, TILE_SIZE, Pixels
from kit.report.page import GalleryTile, Page, named_figures, slug

_COLUMNS = 3


def page_images(page: Page) -> dict[str, Pixels]:
    """Return a page's figures and galleries, (height, width, 3), by names as plots/roc_curve."""
    images = {f"plots/{name}": _pixels(figure) for name, figure in named_figures(page).items()}
    for section in page.sections:
        for heading, tiles in section.gallery.items():
            if tiles:
                images[f"gallery/{slug(heading)}"] = _pixels(_gallery(tiles))
    return images


def _gallery(tiles: Sequence[GalleryTile]) -> Figure:
    """Draw tiles, each beside its Grad-CAM, with its label and the probability it was given."""
    rows = math.ceil(len(tiles) / _COLUMNS)
    figure = Figure(figsize=(3.2 * _COLUMNS, 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for axes in grid:
        axes.set_axis_off()
    for axes, tile in zip(figure.axes, tiles, strict=False):
        shown = [tile.pixels] if tile.cam is None else [tile.pixels, tile.cam]
        axes.imshow(np.hstack(shown))
        axes.set_title(f"{CLASS_NAMES[tile.label]}, {tile.probability:.4f}", fontsize="small")
        _mark_centre(axes)
    return figure


def _mark_centre(axes: Axes) -> None:
    """Draw the square that decides the label."""
    first = (TILE_SIZE - CENTRE_SIZE) / 2 - 0.5
    axes.add_patch(Rectangle((first, first), CENTRE_SIZE, CENTRE_SIZE, fill=False, color="white"))


def _pixels(figure: Figure) -> Pixels:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: Pixels = np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return pixels
