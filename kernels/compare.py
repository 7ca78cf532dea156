"""Compare arms, paired by seed: BatchNorm before and after the activation, or two recipes or more.

A seed varies the split, the initial weights, the data order and the augmentation, identically
in all arms. Three arms or more are compared all with all, or with --control; p is then corrected
for the number of comparisons. A study that was stopped goes on where it was: finished runs are
kept. The same command on other machines that see the folder --out joins in: each run is trained by
one of them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from kit import base, data, report, runs, study, training
from kit.base import exit_on_error

# In here as well, since Ctrl-C may come while the libraries of command lines load.
with exit_on_error():
    from pydantic import Field

    from kit.base import RunOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from kit.study import Holdouts, Outcomes, SeveralJudgements, Study, StudyTable
    from kit.training import Devices


@dataclass(frozen=True, kw_only=True)
class CompareOptions(RunOptions):
    """The arms and the seeds, the data they meet, the hardware, and where the study is kept."""

    out: Path = Path("studies/bn")
    """The study's folder."""
    arm: base.Repeated[str] = ()
    """NAME=RECIPE, twice or more: a recipe's name or file. BatchNorm before and after if none."""
    control: str | None = None
    """Of three arms or more: compare each with this one alone, and so make fewer comparisons."""
    seeds: base.Count = 6
    """Pairs of runs, from --seed on; decide before you look. Fewer than six allow no conclusion."""
    seed_list: tuple[int, ...] = ()
    """The seeds themselves, in place of --seed and --seeds."""
    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Ask as well whether arms are the same within this difference in AUC, or one is at least not
    worse by it; decide before you look."""
    plan: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Judge nothing: say how many seeds would show this difference in AUC, from the spread of these
    seeds, and what they would cost."""
    storage: str | None = None
    """Database that hands the runs out, as postgresql+pg8000://...; a file in --out if none."""


def read_options(argv: list[str]) -> CompareOptions:
    """Read a command line; where arms are named, over the recipe of the first one."""
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--arm", action="append", default=[])
    arms = named.parse_known_args(argv)[0].arm
    recipe = arms[0].partition("=")[2] if arms else ""
    if arms and "recipe" in base.given_options(argv):
        raise base.KitError("--recipe means nothing beside --arm, which names recipes: drop it")
    return base.parse_options(
        CompareOptions, __doc__, [*(["--recipe", recipe] if recipe else []), *argv]
    )


def main(options: CompareOptions, argv: list[str]) -> None:
    """Train what is missing, then compare."""
    devices = training.choose_devices(options.device, options.devices)
    training.prepare_process(deterministic=options.deterministic, cuda_graphs=options.cuda_graphs)
    comparison = read_study(options, base.given_options(argv))
    pairs = study.choose_pairs(comparison)
    runs.check_without_data(comparison.arms.values(), device=devices.device)
    study.require_storage(options.storage)
    tiles = data.open_store(options.data)
    outcomes = train_arms(comparison, tiles, options, devices)
    arm = next(iter(comparison.arms))
    holdouts = study.find_holdouts(comparison.seeded(arm), tiles)
    if options.plan is not None:
        print(study.plan_table(outcomes, pairs, holdouts, options.plan))
        return
    predictions = study.pooled_predictions(comparison)
    slides = data.find_slides(tiles, comparison.arms[arm].slides)
    by_id = slides.by_id(tiles.train.ids)
    judged = study.judge_several(outcomes, predictions, pairs, holdouts)
    tables = study_tables(outcomes, judged, predictions, holdouts, by_id)
    verdict = study.record_look(
        options.out,
        comparison.seeds,
        study_verdict(judged, options.margin),
        conclusive=any(study.is_conclusive(own) for own in judged.values()),
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
        command=base.command(
            "compare", *argv, *study.precision_words(options.out, comparison.arms.values())
        ),
    )
    with base.FolderLock(options.out, wait=True):
        report.write_page(options.out / "report.html", page, options.figures)
    print(f"the whole study: {options.out}/report.html")


def read_study(options: CompareOptions, given: set[str]) -> study.Study:
    """Return the arms and the seeds of a command line."""
    arms = study.parse_arms(options.arm, options.recipe, given)
    if len(arms) < 3:
        base.refuse_unused(given, ["control"], "for two arms")
    for recipe in arms.values():
        if not options.trust:
            base.refuse_code(recipe, given)
    seeds = study.choose_seeds(options.recipe.seed, options.seeds, options.seed_list, given)
    if options.plan is not None:
        base.refuse_unused(given, ["margin"], "with --plan")
        study.require_spread(len(seeds))
    return study.Study(options.out, arms, seeds, options.control)


def train_arms(
    comparison: Study, tiles: data.Store, options: CompareOptions, devices: Devices
) -> Outcomes:
    """Train what is missing on the devices, and return how each arm's runs went."""
    return training.share_out(
        devices,
        partial(
            study.train_arms, comparison, tiles, workers=options.workers, storage=options.storage
        ),
        runs=len(comparison.recipes()),
        how_to_go_on=base.same_command,
    )


def study_tables(
    outcomes: Outcomes,
    judged: SeveralJudgements,
    predictions: pd.DataFrame,
    holdouts: Holdouts,
    slides: Mapping[str, str] | None,
) -> dict[str, StudyTable]:
    """Return the tables of two arms, or of more, by their files' names."""
    pairs = list(judged)
    if len(outcomes) > 2:
        tables = {
            "differences": study.differences_table(judged, holdouts),
            "arms": study.several_table(outcomes),
        }
    else:
        tables = {
            "verdict": study.population_table(judged[pairs[0]], holdouts),
            "table1": study.paired_table(outcomes, *pairs[0]),
            "delong": study.delong_table(predictions, *pairs[0]),
            "pooled": study.pooled_table(predictions, *pairs[0], slides),
        }
    spread = study.spread_table(predictions, pairs, holdouts, slides)
    return tables if spread is None else {**tables, "spread": spread}


def study_verdict(judged: SeveralJudgements, margin: float | None) -> str:
    """Return what the study shows, in a sentence per question and pair."""
    pair, own = next(iter(judged.items()))
    verdict = study.several_verdict(judged) if len(judged) > 1 else study.paired_verdict(own, *pair)
    if margin is None:
        return verdict
    within = [study.margin_verdict(own, *pair, margin) for pair, own in judged.items()]
    return "\n".join([verdict, *within])


if __name__ == "__main__":
    with exit_on_error(), base.going_on(base.same_command):
        main(read_options(sys.argv[1:]), sys.argv[1:])
