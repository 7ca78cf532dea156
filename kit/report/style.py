"""How figures look: colours, axes, and writing them."""

from pathlib import Path
from typing import IO

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kit.base import CLASS_NAMES, atomic_path

BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE = PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)
GREY = "#767676"
GROUP_COLOURS = {CLASS_NAMES[0]: BLUE, CLASS_NAMES[1]: VERMILLION, "test": GREY}
Dashes = str | tuple[int, tuple[int, ...]]
"""A line style as Matplotlib takes it."""
DASHES: tuple[Dashes, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF, as its name ends, whole or not at all."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        draw_figure(figure, file, path.suffix.removeprefix("."))


def draw_figure(figure: Figure, buffer: IO[bytes], kind: str) -> None:
    """Write a figure into an open file or memory, the same bytes each time."""
    lay_out(figure)
    dated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context({"svg.hashsalt": "kit"}):
        figure.savefig(buffer, format=kind, dpi=120, metadata=dated[kind])


def lay_out(figure: Figure) -> None:
    """Give everything in a figure its final place.

    Left to `savefig` this takes one more drawing of the whole figure.
    """
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)


def single(title: str, *, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a figure of one plot."""
    figure = Figure(figsize=(5, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(plain(title))
    tidy(axes)
    return figure, axes


def legend_below(figure: Figure, *, columns: int = 1) -> None:
    """Put the legend under the axes, where it hides no line, with room for a whole dash."""
    figure.legend(
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize="small",
        handlelength=3,
    )


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)


def plain(text: str) -> str:
    """Keep Matplotlib from reading dollar signs as mathematics."""
    return text.replace("$", r"\$")
