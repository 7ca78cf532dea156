"""Ask how many labels it takes: train recipes on ever more tiles, and draw their AUC.

Each point is several draws of so many tiles, each a run in --out; each recipe trains as it always
does, however few its tiles are. A curve that was stopped goes on where it was. Give --slides and
--validate-on for one and the same holdout in all draws; else each seed holds out other tiles.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from kit import base, data, report, runs, study, training
from kit.base import KitError, exit_on_error, write_text

# In here as well, since Ctrl-C may come while the libraries of command lines load.
with exit_on_error():
    from pydantic import Field

    from kit.base import Recipe

TIMM_OPTIONS = ["model", "weights", "size"]


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """Which recipes, on how many tiles, judged on which."""

    recipe: base.Repeated[str] = ()
    """A recipe that comes with the kit, or a TOML file; may be given several times."""
    tiles: Annotated[tuple[str, ...], Field(min_length=1)] = ("100", "300", "1000", "3000", "all")
    """Numbers of labelled tiles; all takes the whole training side."""
    draws: base.Count = 5
    """Of each number, with seeds from 0 on."""
    model: str | None = None
    """Of recipes that take a timm model: which."""
    weights: Path | None = None
    """Of recipes that take a timm model: the file of its weights."""
    size: base.Count | None = None
    """Of recipes that take a timm model: the side of its input in pixels."""
    slides: Path | None = None
    """CSV of id,slide: no slide is on both sides of the holdout."""
    validate_on: tuple[str, ...] = ()
    """Slides of --slides to validate on, in place of a random share."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the tiles, or slides, kept for validation."""
    data: Path = Path("data")
    """Folder of the competition's data."""
    out: Path = Path("studies/learning")
    """Folder of the runs, the table and the picture."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    figures: tuple[base.FigureKind, ...] = ("png",)
    """Kinds of the files that the picture is written as."""


def main(options: CurveOptions) -> None:
    """Train what is missing, then tabulate and draw."""
    if not options.recipe:
        raise KitError("name recipes: --recipe probe --recipe compact")
    curve = study.LearningCurve(
        options.out,
        read_recipes(options),
        study.parse_tiles(options.tiles),
        tuple(range(options.draws)),
    )
    runs.check_without_data(curve.recipes.values(), device=options.device)
    training.prepare_process()
    tiles = data.open_store(options.data)
    with (
        base.going_on(base.same_command),
        training.TrainingBar(len(curve.runs())) as bar,
    ):
        study.train_curve(curve, tiles, device=options.device, bar=bar)
    table = study.curve_table(curve, tiles)
    write_text(options.out / "learning.csv", table.to_csv(index=False, lineterminator="\n"))
    pictures = [options.out / f"learning.{kind}" for kind in options.figures]
    for picture in pictures:
        report.save_figure(report.learning_figure(table), picture)
    # A mean over draws, as their tiles are from more or fewer slides.
    slides = table["slides"].map("{:.1f}".format, na_action="ignore").fillna("")
    shown = table.drop(columns="aucs").assign(slides=slides)
    print(shown.to_string(index=False, float_format="{:.4f}".format))
    print(
        "intervals are of the mean over draws (95 %, Student's t); they say nothing of other slides"
    )
    print(*pictures, sep="\n")


def read_recipes(options: CurveOptions) -> dict[str, Recipe]:
    """Return the recipes by the names of their curves."""
    recipes: dict[str, Recipe] = {}
    for name in options.recipe:
        curve = Path(name).stem
        if curve in recipes:
            raise KitError(
                f"--recipe {name} is the second of the name {curve}, which their runs would share: "
                "give it once, or rename the file"
            )
        recipes[curve] = recipe_of(name, options)
    if not any(recipe.is_backbone for recipe in recipes.values()):
        given = {name for name in TIMM_OPTIONS if getattr(options, name) is not None}
        base.refuse_unused(given, TIMM_OPTIONS, "where no recipe takes a timm model")
    return recipes


def recipe_of(name: str, options: CurveOptions) -> Recipe:
    """Read a recipe and give it the holdout, and the model where it takes one of timm."""
    recipe = replace(
        base.read_recipe(name),
        slides=options.slides,
        validate_on=options.validate_on,
        holdout=options.holdout,
    )
    if recipe.custom:
        raise KitError(
            f"--recipe {name}: {' and '.join(recipe.custom.values())} would be executed: read it, "
            f"and if you trust it train.py --recipe {name} --trust --train-tiles N trains a point"
        )
    if not recipe.is_backbone:
        return recipe
    changed = {key: getattr(options, key) for key in TIMM_OPTIONS}
    given = {key: value for key, value in changed.items() if value is not None}
    pretrained = recipe.pretrained and options.weights is None
    return replace(recipe, pretrained=pretrained, **given)


if __name__ == "__main__":
    with exit_on_error():
        description = f"{__doc__}\n{base.describe_recipes()}"
        main(base.parse_options(CurveOptions, description, sys.argv[1:]))
