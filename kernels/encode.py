"""Encode the tiles by a pretrained model, once: features that probes are fitted to.

They are kept beside the packed tiles, an array per split and view, where train.py's recipe probe
reads them; it makes them itself where there are none. --list shows the pathology models that have
short names, what their authors say of them, and under which terms.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from kit import base, data, models, runs, training
from kit.base import KitError, exit_on_error

# In here as well, since Ctrl-C may come while the libraries of command lines load.
with exit_on_error():
    from pydantic import Field

    from kit.base import Recipe

RECIPE = "probe"
MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Which model makes features of which tiles, and how."""

    model: str = ""
    """The name of a timm model, hf-hub:OWNER/NAME, local-dir:FOLDER, or a name of --list."""
    weights: Path | None = None
    """Its weights, a .safetensors or .pth file; needs no network."""
    data: Path = Path("data")
    """Folder of the competition's data."""
    size: base.Count = 224
    """Side of the model's input in pixels. Tiles have 96: 96 is quicker, 224 what ViTs expect."""
    pool: tuple[base.Pool, ...] = ()
    """What is taken from the model's last map, see train.py; by default what its card says, and the
    mean over the centre that decides the label."""
    normalize: base.Normalization = "model"
    """Channel statistics, see train.py; model: those that the model was trained with."""
    views: base.Views = 1
    """8 encodes all symmetries of the square: eight times the time and the space."""
    splits: Annotated[tuple[base.Split, ...], Field(min_length=1)] = ("train", "test")
    """Which tiles."""
    precision: base.Precision = "auto"
    """auto takes what the hardware does fast; on a CPU what is faster on the first tiles."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    list: bool = False
    """Show the pathology models and end."""


def main(options: EncodeOptions) -> None:
    """Say what it costs, and encode."""
    if options.list:
        print(models.describe_cards())
        return
    recipe = recipe_of(options)
    runs.check_without_data([recipe], device=options.device)
    base.require_file("weights", recipe.weights)
    training.prepare_process()
    store = data.open_store(options.data)
    sets = [getattr(store, split) for split in options.splits]
    encoder = training.TileEncoder(
        models.create_encoder(recipe), recipe, training.choose_device(options.device)
    )
    print(describe(encoder, encoder.plan(sets, options.views), sets), flush=True)
    for tiles in sets:
        for view in range(options.views):
            rows, width = encoder.encode(tiles, view).shape
            print(f"{tiles.split}, view {view}: {rows:,} tiles, {width:,} features", flush=True)
    print(f"next: {base.command('train', *base.recipe_words(recipe), '--data', options.data)}")


def recipe_of(options: EncodeOptions) -> Recipe:
    """Return the recipe of a probe on these features."""
    if not options.model:
        raise KitError("name a model with --model; --list shows those that have short names")
    recipe = replace(
        base.read_recipe(RECIPE),
        model=options.model,
        weights=options.weights,
        pretrained=options.weights is None,
        size=options.size,
        pool=options.pool,
        normalize=options.normalize,
        precision=options.precision,
        views=options.views,
    )
    return models.follow_model(recipe)


def describe(encoder: training.TileEncoder, plan: training.Plan, sets: list[data.TileSet]) -> str:
    """Say what is made, how large it is, and how long it takes."""
    recipe, folder = encoder.recipe, encoder.folder(sets[0])
    heading = (
        f"{recipe.model} at {recipe.size} pixels: {encoder.width:,} features of "
        f"{', '.join(recipe.pool)}, in {folder}"
    )
    if not plan.tiles:
        return f"{heading}: all there already"
    minutes, seconds = divmod(round(plan.seconds), 60)
    return (
        f"{heading}\n{plan.tiles:,} tiles to encode, all views together: about {minutes}:"
        f"{seconds:02} on {encoder.device} by the first tiles, and {plan.bytes / MEGABYTE:,.0f} MB "
        "on the disk"
    )


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(EncodeOptions, __doc__, sys.argv[1:]))
