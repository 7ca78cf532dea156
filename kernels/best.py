"""The best submission that a time allows, in one command.

It measures how fast this machine trains, plans what fits into the time, trains it, averages what
helps on held-out tiles, and predicts: probes and tuned encoders where pretrained weights are at
hand (in the caches of timm and the hub, or by --encoder), networks from scratch beside them. After
each part there is a valid submission. The same command goes on where it was stopped or killed; the
time used before counts, the time between does not, and a longer --time-limit trains more.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kit import base, data, report, runs, study, training
from kit.base import exit_on_error

# In here as well, since Ctrl-C may come while the libraries of command lines load.
with exit_on_error():
    from pydantic import Field

if TYPE_CHECKING:
    from kit.study import BestResult


@dataclass(frozen=True, kw_only=True)
class BestOptions:
    """How long, on which data, judged on which tiles."""

    time_limit: str = "2h"
    """In all, from the first start to the end: 2h, 90m, 1h30m, 600s."""
    data: Path = Path("data")
    """Folder of the competition's data."""
    out: Path = Path("best")
    """Folder of the parts, the mean, the submission and the page."""
    slides: Path | None = None
    """CSV of id,slide: no slide is on both sides of a holdout. One in the data folder is found."""
    validate_on: tuple[str, ...] = ()
    """Slides to validate on, in place of a random share or of folds."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the slides, or tiles, kept for validation, where the time is too short for folds."""
    encoder: base.Repeated[str] = ()
    """A timm model with its weights, MODEL=FILE, or MODEL where they are in a cache; may be given
    several times. By default the smallest ones whose weights are in a cache."""
    refit: bool = True
    """Where time is left, train the parts that count again on all tiles, for the submission."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides the holdout, and what each part draws."""
    device: str = "auto"
    """auto takes a GPU where there is one."""


def main(options: BestOptions, argv: list[str]) -> None:
    """Seek, and after each part write the page; end with the command that submits."""
    limit = base.parse_duration(options.time_limit)
    device = training.choose_device(options.device)
    training.prepare_process()
    encoders = study.find_encoders(options.encoder)
    base.require_file("slides", options.slides)
    tiles = data.open_store(options.data)
    search = study.BestSearch(
        folder=options.out,
        sides=held_out(options, tiles),
        encoders=encoders,
        refit=options.refit,
    )
    print(machine(search, str(device)))
    clock = study.Clock(options.out, limit)
    page, typed = options.out / "report.html", base.command("best", *argv)
    for result in study.seek_best(search, tiles, clock, device=options.device):
        submit = submit_command(result, options)
        report.write_page(page, report.best_page(result, typed, submit))
        print(progress(result), flush=True)
    print(conclusion(result))
    print(f"the whole search: {page}")
    if result.standins:
        print(runs.standin_notice(result.standins), file=sys.stderr)
    else:
        print(f"next: {submit}")


def held_out(options: BestOptions, tiles: data.Store) -> dict[str, Any]:
    """Return the fields of every recipe that say which tiles are held out."""
    slides = options.slides or data.find_slides_table(tiles)
    if slides is None:
        print(
            "note: tiles of one slide look alike, and without --slides single tiles are held out: "
            "figures are too high, and parts are compared less well",
            file=sys.stderr,
        )
    return {
        "slides": slides,
        "validate_on": options.validate_on,
        "holdout": options.holdout,
        "seed": options.seed,
    }


def machine(search: study.BestSearch, device: str) -> str:
    """Say what there is to compute with and to begin from."""
    encoders = ", ".join(one.model for one in search.encoders) or (
        "none; --encoder MODEL=FILE gives one, which helps more than anything else"
    )
    return f"computing on {device}; pretrained encoders at hand: {encoders}"


def progress(result: BestResult) -> str:
    """Say what has been reached and what comes, with the time it takes."""
    lines = [report.best_verdict(result)] if result.submission else []
    if result.plan:
        kind = f"{result.folds} folds each" if result.folds else "one holdout"
        left = base.format_duration(max(0.0, result.clock.left))
        lines.append(f"to come ({kind}; {left} of the limit left):")
        for one in result.plan:
            epochs = f", {one.epochs} epochs" if one.epochs > 1 else ""
            lines.append(f"  {base.format_duration(one.seconds):>8}  {one.name}{epochs}")
    return "\n".join(lines)


def conclusion(result: BestResult) -> str:
    """Tell the mean's parts, and the time."""
    rows = [
        f"{'' if entry.auc is None else f'{entry.auc.estimate:.4f}':6}  "
        f"weight {result.weight(name):.2f}  {base.format_duration(entry.seconds):>8}  {name}"
        for name, entry in result.parts.items()
        if entry.state == "finished"
    ]
    used, limit = (base.format_duration(s) for s in (result.clock.used, result.clock.limit))
    return "\n".join(["held-out AUC by part:", *rows, f"{used} of {limit} used"])


def submit_command(result: BestResult, options: BestOptions) -> str:
    """Return the command that submits what has been reached."""
    return base.command("submit", "--file", result.submission, "--data", options.data)


if __name__ == "__main__":
    with exit_on_error(), base.going_on(base.same_command):
        main(base.parse_options(BestOptions, __doc__, sys.argv[1:]), sys.argv[1:])
