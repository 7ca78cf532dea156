"""Take a finished run out of the kit: to ONNX, to timm, to the hub, to a web page, to TensorBoard.

ONNX: --out writes one file that takes uint8 tiles, and leaves none unless ONNX Runtime gives
PyTorch's logits on the tiles of --data. --timm writes a folder with a model card for
timm.create_model("local-dir:FOLDER", pretrained=True), and how far timm's own preprocessing is
from the run's on these tiles. --hub uploads such a folder to the Hugging Face hub, where
--model hf-hub:OWNER/NAME --pretrained finds it. --demo writes a page that computes the probability
of a tile which a person drops on it, and where the network looked, in the browser alone: any static
server shows it. --tensorboard writes the history; --log puts it into a log, as train.py does.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kit import base, data, report, runs, stats
from kit.base import KitError, exit_on_error

if TYPE_CHECKING:
    from kit.base import Pixels

# Each is one call of the network in the exported form, as a page makes them.
MOST_TILES_OF_A_PAGE = 64


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The run, and what it becomes."""

    run: Path
    """Folder of the run."""
    out: Path | None = None
    """ONNX file."""
    timm: Path | None = None
    """New folder, for a run of a timm model."""
    hub: str | None = None
    """OWNER/NAME of a new repository on the Hugging Face hub, for a run of a timm model. HF_TOKEN
    says who uploads."""
    public: bool = False
    """Of --hub: everybody may see it."""
    license: str | None = None
    """Of --timm and --hub: the weights' licence, as the hub names it (mit, cc-by-4.0); by default
    that of the published weights that the run began with, where it is known."""
    demo: Path | None = None
    """New folder with a web page."""
    views: base.Views | None = None
    """Of --demo: 8 averages the eight symmetries of a tile; by default as the run predicts."""
    cam_layer: str | None = None
    """Of --demo: the layer that Grad-CAM is taken from; by default the last convolution's, or of a
    ViT the last block's norm1. A wrong name lists those that can be named."""
    onnxruntime_web: Path | None = None
    """Of --demo: folder of npm's package onnxruntime-web; by default npm fetches it, once."""
    tensorboard: Path | None = None
    """Folder of TensorBoard's runs."""
    log: base.LogKind = "none"
    """The log of the run, such as one of a study, in its usual place: see docs/runs.md."""
    data: Path = Path("data")
    """Folder of the competition's data, to check what is written on."""
    tiles: base.Count = 512
    """How many test tiles to check it on, spread over all of them; a page on 64 at most."""
    trust: bool = False
    """Run code that came with a run, a network of somebody's own: read it before."""


def main(options: ExportOptions, argv: list[str]) -> None:
    """Write what is asked for."""
    base.trust_code(options.trust)
    runs.require_logger(options.log)
    check(options, base.given_options(argv))
    check_places(options)
    standins = runs.trained_on_standin(runs.average([options.run]))
    if standins:
        print(runs.standin_notice(standins), file=sys.stderr)
    if options.out or options.timm or options.hub or options.demo:
        store = data.open_store(options.data)
        if options.out:
            export_onnx(options.out, options.run, spread(store, options.tiles))
        if options.timm or options.hub:
            export_timm(options, store)
        if options.demo:
            export_demo(options, options.demo, store)
    if options.tensorboard is not None:
        runs.write_tensorboard(options.tensorboard, options.run)
        look = shlex.join(["tensorboard", "--logdir", str(options.tensorboard)])
        print(f"{options.tensorboard}: look at it with: {look}")
    if options.log != "none":
        with runs.open_log(options.log, options.run) as log:
            log.on_end(options.run, {})
            if not log.is_open:
                raise KitError(f"{options.run} is not logged: the note above says why")


def check(options: ExportOptions, given: set[str]) -> None:
    """Refuse a command that asks for nothing, and options that nothing asked for uses."""
    forms = ("out", "timm", "hub", "demo", "tensorboard")
    if all(getattr(options, form) is None for form in forms) and options.log == "none":
        raise KitError(
            "say what to write: --out model.onnx, --timm FOLDER, --hub OWNER/NAME, --demo FOLDER, "
            "--tensorboard FOLDER or --log KIND"
        )
    users = {
        ("tiles", "data"): ("out", "timm", "hub", "demo"),
        ("public",): ("hub",),
        ("license",): ("timm", "hub"),
        ("views", "cam_layer", "onnxruntime_web"): ("demo",),
    }
    for names, needed in users.items():
        if all(getattr(options, form) is None for form in needed):
            base.refuse_unused(given, names, f"without --{' or --'.join(needed)}")


def check_places(options: ExportOptions) -> None:
    """Refuse what cannot be written, before anything is opened."""
    for name, place in (("timm", options.timm), ("demo", options.demo)):
        if place is not None and place.exists():
            raise KitError(f"{place} exists: name another folder with --{name}")
    if options.tensorboard is not None:
        runs.require_logger("tensorboard")
    if options.hub is not None:
        runs.require_hub(options.hub)
    if options.timm or options.hub:
        recipe = base.parse_recipe(runs.read_config(options.run)["recipe"], source=str(options.run))
        runs.require_timm_model(options.run, recipe)


def spread(store: data.Store, count: int) -> Pixels:
    """Return so many test tiles, spread over all of them."""
    tiles = store.test.tiles
    count = min(count, len(tiles))
    return tiles[[number * len(tiles) // count for number in range(count)]]


def export_onnx(out: Path, run: Path, tiles: Pixels) -> None:
    """Write one ONNX file."""
    difference = runs.write_onnx(out, run, tiles)
    print(
        f"{out}: {out.stat().st_size / 1e6:,.1f} MB; its logits are within {difference:.1g} of "
        f"PyTorch's (float32) on {len(tiles):,} tiles"
    )


def export_timm(options: ExportOptions, store: data.Store) -> None:
    """Write a folder for timm, upload one, or both."""
    tiles = spread(store, options.tiles)
    facts = runs.CardFacts(options.license, over_slides(options.run, store))
    if options.timm is not None:
        difference = runs.write_timm(options.timm, options.run, tiles, facts=facts)
        tell_timm(str(options.timm), f"local-dir:{options.timm}", difference, len(tiles))
    if options.hub is not None:
        page, difference = runs.upload_timm(
            options.hub, options.run, tiles, public=options.public, facts=facts
        )
        seen = "everybody" if options.public else "its owner alone"
        tell_timm(f"{page} ({seen} sees it)", f"hf-hub:{options.hub}", difference, len(tiles))


def tell_timm(what: str, place: str, difference: float, tiles: int) -> None:
    """Say how timm loads what was written, and how near that is to the run."""
    print(
        f"{what}: for timm.create_model({place!r}, pretrained=True); with timm's own transform "
        f"probabilities are within {difference:.1g} of the run's on {tiles:,} tiles"
    )
    if difference > runs.EXACT:
        print("timm resizes otherwise: its README.md says how to get the run's own")


def over_slides(run: Path, store: data.Store) -> stats.Interval | None:
    """Return the run's AUC with an interval for new slides, if its holdout keeps slides apart."""
    table = runs.read_config(run)["recipe"]["slides"]
    if table is None:
        return None
    slides = data.find_slides(store, table).of_tiles
    return runs.auc_over_slides(runs.read_valid(run), store, slides)


def export_demo(options: ExportOptions, demo: Path, store: data.Store) -> None:
    """Write a folder with a page."""
    tiles = spread(store, min(options.tiles, MOST_TILES_OF_A_PAGE))
    written = report.write_demo(
        demo,
        options.run,
        store,
        tiles,
        runtime=report.find_runtime(options.onnxruntime_web),
        views=options.views,
        cam_layer=options.cam_layer,
    )
    shown = f"the map is that of {written.layer}" if written.layer else f"no map: {written.note}"
    print(
        f"{demo}: its probabilities are within {written.difference:.1g} of PyTorch's (float32) on "
        f"{len(tiles):,} tiles; {shown}"
    )
    serve = shlex.join(["python", "-m", "http.server", "--directory", str(demo)])
    print(f"look at it with: {serve}, at http://localhost:8000")


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(ExportOptions, __doc__, sys.argv[1:]), sys.argv[1:])
