"""A report page: one HTML file that needs nothing but itself."""

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from kit import __version__
from kit.base import CLASS_NAMES, FigureKind, Pixels, write_text
from kit.report.style import draw_figure, save_figure
from kit.stats import Interval


@dataclass(frozen=True)
class Table:
    """A table of a page: every column is shown, the index is not.

    Attributes
    ----------
    notes
        Shown below it, such as why cells are empty.
    """

    frame: pd.DataFrame
    caption: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Link:
    """A cell that leads to another page, by an address relative to this one."""

    text: str
    address: str


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
    pixels: Pixels
    cam: Pixels | None


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
    """A report: the verdict, its limits, and the sections that it rests on."""

    title: str
    verdict: str
    sections: Sequence[Section]
    limits: Sequence[str] = ()
    is_standin: bool = False


def write_page(path: Path, page: Page, figures: Sequence[FigureKind] = ()) -> None:
    """Write a page as one HTML file, whole or not at all.

    Its figures are written as files of the kinds in `figures` as well, named by their titles, into
    the folder figures beside it.

    Everything that it prints is escaped, and its policy lets a browser fetch nothing and run
    no script but the slide filter.

    Raises
    ------
    KitError
        If the file cannot be written.
    """
    environment = page_templates()
    style, script = (asset(name) for name in ("report.css", "report.js"))
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
    for kind in figures:
        for name, figure in named_figures(page).items():
            save_figure(figure, path.parent / "figures" / f"{name}.{kind}")


def named_figures(page: Page) -> dict[str, Figure]:
    """Return a page's figures by their titles, roc_curve, and the next of a title roc_curve_2."""
    named: dict[str, Figure] = {}
    for figure in (drawing.figure for section in page.sections for drawing in section.drawings):
        name = slug(figure.get_suptitle() or figure.axes[0].get_title())
        again = f"{name}_{sum(other.startswith(name) for other in named) + 1}"
        named[again if name in named else name] = figure
    return named


def slug(title: str) -> str:
    """Return a name that is the same in all runs, whatever numbers a title has."""
    return re.sub(r"[\W\d_]+", "_", title.lower()).strip("_")


def page_templates() -> Environment:
    """Return the pages' templates; everything that they print is escaped."""
    environment = Environment(
        loader=PackageLoader("kit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "svg": _svg, "png": _png}
    return environment


def bounds(interval: Interval) -> str:
    """Tell an interval's bounds, or why there are none."""
    if interval.low is None or interval.high is None:
        return f"none: {interval.note}"
    return f"{interval.low:.4f} to {interval.high:.4f}"


def asset(name: str) -> str:
    """Return the text of one of the templates' files."""
    return resources.files("kit.report.templates").joinpath(name).read_text("utf-8")


def _cell(value: Any) -> str:
    """Show a value: integers with separators, other numbers with four decimals or two digits."""
    if isinstance(value, Link):
        return Markup('<a href="{}">{}</a>').format(value.address, value.text)
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
    draw_figure(figure, buffer, "svg")
    return _data_uri("image/svg+xml", buffer.getvalue())


def _png(pixels: Pixels) -> str:
    """Return an RGB image as a data URI."""
    # Six times as fast as Matplotlib, and a page has some dozens.
    return _data_uri("image/png", cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
