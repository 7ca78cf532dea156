"""Compare two arms, paired by seed: BatchNorm before and after the activation, or two recipes.

A seed varies the split, the initial weights, the data order and the augmentation, identically
in both arms. A study that was stopped goes on where it was: finished runs are kept. The same
command on other machines that see the folder --out joins in: each run is trained by one of them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kit import base, data, report, study, training
from kit.base import exit_on_error

# In here as well, since Ctrl-C may come while the libraries of command lines load.
with exit_on_error():
    from kit.base import RunOptions


@dataclass(frozen=True, kw_only=True)
class CompareOptions(RunOptions):
    """The arms and the seeds, the data they meet, the hardware, and where the study is kept."""

    out: Path = Path("studies/bn")
    """The study's folder."""
    arm: base.Repeated[str] = ()
    """NAME=RECIPE, twice: a recipe's name or file. By default BatchNorm before and after."""
    seeds: base.Count = 6
    """Pairs of runs, from --seed on; decide before you look. Fewer than six allow no conclusion."""
    storage: str | None = None
    """Database that hands the runs out, as postgresql+pg8000://...; a file in --out if none."""


def read_options(argv: list[str]) -> CompareOptions:
    """Read a command line; where arms are named, over the recipe of the first one."""
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--arm", action="append", default=[])
    arms = named.parse_known_args(argv)[0].arm
    recipe = arms[0].partition("=")[2] if arms else ""
    if arms and "recipe" in base.given_options(argv):
        raise base.KitError("--recipe means nothing beside --arm, which names two recipes: drop it")
    return base.parse_options(
        CompareOptions, __doc__, [*(["--recipe", recipe] if recipe else []), *argv]
    )


def main(options: CompareOptions, argv: list[str]) -> None:
    """Train what is missing, then compare."""
    devices = training.choose_devices(options.device, options.devices)
    training.prepare_process(deterministic=options.deterministic)
    training.use_cuda_graphs(options.cuda_graphs)
    recipe = options.recipe
    comparison = study.Study(
        options.out,
        study.parse_arms(options.arm, recipe, base.given_options(argv)),
        tuple(range(recipe.seed, recipe.seed + options.seeds)),
    )
    for arm in comparison.arms.values():
        if not options.trust:
            base.refuse_code(arm, base.given_options(argv))
    tiles = data.open_store(options.data)
    outcomes = training.share_out(
        devices,
        partial(
            study.train_arms, comparison, tiles, workers=options.workers, storage=options.storage
        ),
        runs=len(comparison.recipes()),
        how_to_go_on=base.same_command,
    )
    first, second = comparison.arms
    predictions = study.pooled_predictions(comparison)
    slides = data.find_slides(tiles, comparison.arms[first].slides)
    holdouts = study.find_holdouts(comparison.seeded(first), tiles)
    judged = study.judge_arms(outcomes, predictions, first, second, holdouts)
    tables = {
        "verdict": study.population_table(judged, holdouts),
        "table1": study.paired_table(outcomes, first, second),
        "delong": study.delong_table(predictions, first, second),
        "pooled": study.pooled_table(predictions, first, second, slides.by_id(tiles.train.ids)),
    }
    verdict = study.record_look(
        options.out,
        comparison.seeds,
        study.paired_verdict(judged, first, second),
        conclusive=study.is_conclusive(judged),
        held_out_to_trained=holdouts.held_out_to_trained,
    )
    with base.FolderLock(options.out, wait=True):
        study.write_tables(options.out, tables, verdict)
    print("\n\n".join(map(str, [*tables.values(), verdict])))
    page = report.compare_page(
        comparison,
        study.histories(outcomes),
        predictions,
        tables,
        verdict,
        store=tiles,
        slides=slides,
        command=base.command("compare", *argv),
    )
    with base.FolderLock(options.out, wait=True):
        report.write_page(options.out / "report.html", page)
    print(f"the whole study: {options.out}/report.html")


if __name__ == "__main__":
    with exit_on_error(), base.going_on(base.same_command):
        main(read_options(sys.argv[1:]), sys.argv[1:])
