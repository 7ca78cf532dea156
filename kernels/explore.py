"""Look at the data before training: classes, tiles, channels, stains, blanks, slides.

Every tile is measured, in one pass and in blocks, so that memory stays bounded whatever the
number of tiles; the competition's 277,483 take about a minute. Writes explore.html, its figures
as files, and explore.json with the numbers.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import base, data, report
from kit.base import exit_on_error, write_text


@dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """What is looked at, and where the page goes."""

    data: Path = Path("data")
    """Folder of the competition's data."""
    out: Path | None = None
    """Folder to write; explore in --data by default, or here where that is read-only."""
    slides: Path | None = None
    """CSV of id,slide (or id,wsi) for the training tiles; by default slides.csv or
    patch_id_wsi_full.csv in --data, where there is one."""
    figures: tuple[base.FigureKind, ...] = ("png",)
    """Kinds of the files that figures are written as."""


def main(options: ExploreOptions, argv: list[str]) -> None:
    """Measure, draw and write."""
    base.require_file("slides", options.slides)
    tiles = data.open_store(options.data)
    slides = (
        data.find_slides(tiles)
        if options.slides is None
        else data.KnownSlides(data.read_slides(options.slides, tiles.train.ids))
    )
    found = report.explore_store(tiles, slides)
    out = options.out or default_folder(options.data)
    numbers = report.exploration_numbers(found)
    write_text(out / "explore.json", json.dumps(numbers, indent=2) + "\n")
    print(summary(numbers))
    drawn = report.exploration_figures(found)
    for name, drawing in drawn.items():
        for kind in options.figures:
            report.save_figure(drawing.figure, out / f"{name}.{kind}")
    page = report.exploration_page(found, drawn, base.command("explore", *argv))
    report.write_page(out / "explore.html", page)
    print(f"{out / 'explore.html'}: the page; beside it {len(drawn)} figures and explore.json")
    print(f"next: {base.command('train', '--data', options.data, '--bn', 'before')}")


def default_folder(folder: Path) -> Path:
    """Return where the page goes: beside the data, or here where that is read-only."""
    return folder / "explore" if os.access(folder, os.W_OK) else Path("explore")


def summary(numbers: dict[str, Any]) -> str:
    """Tell the most important numbers."""
    tiles, classes = numbers["tiles"], numbers["classes"]
    alone = {name: value["estimate"] for name, value in numbers["auc_of_one_number"].items()}
    lines = [
        f"{tiles['train']:,} training tiles: {classes['negative']:,} negative, "
        f"{classes['positive']:,} positive ({100 * classes['positive'] / tiles['train']:.1f} %); "
        f"{tiles['test']:,} test tiles",
        f"blank tiles: {len(numbers['blank']):,}; exact duplicates: "
        f"{sum(numbers['duplicates'].values()):,}",
    ]
    if alone:
        aucs = ", ".join(f"{name} {estimate:.3f}" for name, estimate in alone.items())
        lines.append(f"AUC of one number alone: {aucs}")
    if numbers["slides"] is not None:
        lines.append(f"slides: {len(numbers['slides']):,}")
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(ExploreOptions, __doc__, sys.argv[1:]), sys.argv[1:])
