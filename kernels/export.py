"""Take a finished run out of the kit: to ONNX, to timm, to TensorBoard.

--out writes one ONNX file that takes uint8 tiles, and leaves none unless ONNX Runtime gives
PyTorch's logits on the tiles of --data. --timm writes a folder for
timm.create_model("local-dir:FOLDER", pretrained=True), and how far timm's own preprocessing is
from the run's on these tiles. --tensorboard writes the history; --log puts it into a log, as
train.py does.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from kit import base, data, runs
from kit.base import KitError, exit_on_error


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The run, and what it becomes."""

    run: Path
    """Folder of the run."""
    out: Path | None = None
    """ONNX file."""
    timm: Path | None = None
    """New folder, for a run of a timm model."""
    tensorboard: Path | None = None
    """Folder of TensorBoard's runs."""
    log: base.LogKind = "none"
    """The log of the run, such as one of a study, in its usual place: see docs/runs.md."""
    data: Path = Path("data")
    """Folder of the competition's data, to check what is written on."""
    tiles: base.Count = 512
    """How many test tiles to check it on, spread over all of them."""
    trust: bool = False
    """Run code that came with a run, a network of somebody's own: read it before."""


def main(options: ExportOptions, argv: list[str]) -> None:
    """Write what is asked for."""
    base.trust_code(options.trust)
    run, out, timm, tensorboard = options.run, options.out, options.timm, options.tensorboard
    runs.require_logger(options.log)
    if out is None and timm is None and tensorboard is None and options.log == "none":
        raise KitError("say what to write: --out model.onnx, --timm FOLDER or --tensorboard FOLDER")
    if out is None:
        base.refuse_unused(base.given_options(argv), ["tiles", "data"], "without --out")
    standins = runs.trained_on_standin(runs.average([run]))
    if standins:
        print(runs.standin_notice(standins), file=sys.stderr)
    if out is not None or timm is not None:
        tiles = data.open_store(options.data).test.tiles
        count = min(options.tiles, len(tiles))
        checked = tiles[[number * len(tiles) // count for number in range(count)]]
    if out is not None:
        difference = runs.write_onnx(out, run, checked)
        print(
            f"{out}: {out.stat().st_size / 1e6:,.1f} MB; its logits are within {difference:.1g} of "
            f"PyTorch's (float32) on {len(checked):,} tiles"
        )
    if timm is not None:
        difference = runs.write_timm(timm, run, checked)
        print(
            f"{timm}: for timm.create_model({f'local-dir:{timm}'!r}, pretrained=True); with timm's "
            f"own transform probabilities are within {difference:.1g} of the run's on "
            f"{len(checked):,} tiles"
        )
        if difference > runs.EXACT:
            print(f"timm resizes otherwise: {timm}/README.md says how to get the run's own")
    if tensorboard is not None:
        runs.write_tensorboard(tensorboard, run)
        look = shlex.join(["tensorboard", "--logdir", str(tensorboard)])
        print(f"{tensorboard}: look at it with: {look}")
    if options.log != "none":
        with runs.open_log(options.log, run) as log:
            log.on_end(run, {})
            if not log.is_open:
                raise KitError(f"{run} is not logged: the note above says why")


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(ExportOptions, __doc__, sys.argv[1:]), sys.argv[1:])
