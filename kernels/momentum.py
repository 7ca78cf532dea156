"""Sweep BatchNorm's momentum: one training per seed, evaluated with each momentum's statistics.

Momenta are in Keras' sense (0.99 keeps 99 % of a running statistic a step; PyTorch's is 1 minus
it). A sweep that was stopped goes on where it was; on other machines that see the folder --out
the same command joins in.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from kit import base, data, report, runs, stats, study, training
from kit.base import exit_on_error

# In here as well, since Ctrl-C may come while the libraries of command lines load.
with exit_on_error():
    from pydantic import Field

    from kit.base import RunOptions


@dataclass(frozen=True, kw_only=True)
class MomentumOptions(RunOptions):
    """The momenta and the seeds, the data, the hardware, and where the study is kept."""

    out: Path = Path("studies/momentum")
    """The study's folder."""
    values: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.99, 0.75, 0.5, 0.25)
    """In Keras' sense (PyTorch's is 1 minus it); the others are compared with the first."""
    seeds: base.Count = 8
    """Trainings, from --seed on. Five values, compared fairly, need eight for a conclusion."""
    seed_list: tuple[int, ...] = ()
    """The seeds themselves, in place of --seed and --seeds."""
    independent: bool = False
    """Train every momentum by itself: the same figures for several times the cost."""
    storage: str | None = None
    """Database that hands the runs out, as postgresql+pg8000://...; a file in --out if none."""


def read_options(argv: list[str]) -> MomentumOptions:
    """Read a command line."""
    if "bn_momentum" in base.given_options(argv):
        raise base.KitError("the momenta are those of --values: leave --bn-momentum out")
    return base.parse_options(MomentumOptions, __doc__, argv)


def main(options: MomentumOptions, argv: list[str]) -> None:
    """Train what is missing, then compare the momenta."""
    devices = training.choose_devices(options.device, options.devices)
    training.prepare_process(deterministic=options.deterministic, cuda_graphs=options.cuda_graphs)
    recipe = options.recipe
    given = base.given_options(argv)
    seeds = study.choose_seeds(recipe.seed, options.seeds, options.seed_list, given)
    sweep = study.MomentumSweep(options.out, recipe, options.values, seeds)
    runs.check_without_data([recipe], device=devices.device)
    study.check_sweep(sweep, independent=options.independent)
    study.require_storage(options.storage)
    tiles = data.open_store(options.data)
    train = study.train_momenta if options.independent else study.sweep_momenta
    all_runs = (sweep.as_arms() if options.independent else sweep).recipes()
    outcomes = training.share_out(
        devices,
        partial(train, sweep, tiles, workers=options.workers, storage=options.storage),
        runs=len(all_runs),
        how_to_go_on=base.same_command,
    )
    holdouts = study.find_holdouts([replace(recipe, seed=seed) for seed in seeds], tiles)
    tables = study.sweep_tables(outcomes, holdouts)
    verdict = study.record_look(
        options.out,
        seeds,
        study.momentum_verdict(outcomes, holdouts),
        conclusive=len(seeds) >= stats.min_seeds(len(outcomes) - 1),
        held_out_to_trained=holdouts.held_out_to_trained,
    )
    with base.FolderLock(options.out, wait=True):
        study.write_tables(options.out, tables, verdict)
    print("\n\n".join(map(str, [*tables.values(), verdict])))
    folders = list(all_runs)
    page = report.momentum_page(
        study.histories(outcomes),
        tables,
        verdict,
        store=tiles,
        slides=data.find_slides(tiles, recipe.slides),
        folders={folder.name: folder for folder in folders[:3]},
        command=base.command("momentum", *argv, *study.precision_words(options.out, [recipe])),
    )
    with base.FolderLock(options.out, wait=True):
        report.write_page(options.out / "report.html", page, options.figures)
    print(f"the whole study: {options.out}/report.html")


if __name__ == "__main__":
    with exit_on_error(), base.going_on(base.same_command):
        main(read_options(sys.argv[1:]), sys.argv[1:])
