"""Look at the data before training: classes, tiles, channels, stains, blanks, slides.

Every tile is measured, in one pass and in blocks, so that memory stays bounded whatever the
number of tiles; the competition's 277,483 take about a minute. Writes explore.html, its figures
as PNG, and explore.json with the numbers.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import tyro

from kit import report
from kit.base import KitError, exit_on_error, write_text
from kit.data import find_slides, open_store


def main(data: Path = Path("data"), out: Path | None = None, slides: Path | None = None) -> None:
    """Measure, draw and write.

    Parameters
    ----------
    data
        Folder of the competition's data.
    out
        Folder to write; DIR/explore of --data by default.
    slides
        CSV of id,slide for the training tiles; slides.csv in --data by default, where there is
        one.
    """
    if slides is not None and not slides.is_file():
        raise KitError(f"no table of slides at {slides}")
    packed = open_store(data)
    found = report.explore_store(packed, find_slides(packed, slides))
    out = out or data / "explore"
    drawn = report.exploration_figures(found)
    for name, drawing in drawn.items():
        report.save_figure(drawing.figure, out / f"{name}.png")
    numbers = report.exploration_numbers(found)
    write_text(out / "explore.json", json.dumps(numbers, indent=2) + "\n")
    command = shlex.join(["python", *sys.argv])
    report.write_page(out / "explore.html", report.exploration_page(found, drawn, command))
    print(summary(numbers))
    print(f"{out / 'explore.html'}: the page; beside it {len(drawn)} figures and explore.json")


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
        "AUC of one number alone: "
        + ", ".join(f"{name} {estimate:.3f}" for name, estimate in alone.items()),
    ]
    if numbers["slides"] is not None:
        lines.append(f"slides: {len(numbers['slides']):,}")
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
