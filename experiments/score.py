"""Judge changes of a recipe on groups of slides, each held out in turn: score.py --help.

The difference of a change is paired by group and seed, so its interval speaks of these groups,
however runs are seeded. Two runs of one group share its slides: read the groups' own means as well.
A run that is there is kept, and the same command with one arm more trains that one alone.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kit import base, data, runs, stats, study, training

if TYPE_CHECKING:
    from collections.abc import Iterator

# By arm, group and seed.
Plan = dict[tuple[str, str, int], base.Recipe]


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The recipe, its changes, and the slides to judge them on."""

    recipe: str = "compact"
    """What each arm changes."""
    arm: base.Repeated[str] = ()
    """NAME=OPTIONS: options of train.py over those of the recipe, in quotes; none is the recipe
    itself. Others are compared with the first one."""
    slides: Path = Path("groups.csv")
    """CSV of id,slide, from group_by_colour.py."""
    leave_out: tuple[str, ...] = ("A",)
    """Groups that no run sees."""
    seeds: base.Count = 2
    """Runs of each group and arm."""
    epochs: base.Count | None = None
    """Of each run that does not choose its own: a third of the recipe's is the short form."""
    data: Path = Path("data")
    """Folder of the competition's data."""
    devices: tuple[str, ...] = ("cpu:2",)
    """cpu:2 is two processes that share the runs."""
    out: Path = Path("studies/score")
    """Folder of the runs: runs/ARM-GROUP-SEED."""


def main(options: ScoreOptions) -> None:
    """Train what is missing, and print the mean of each arm and its difference from the first."""
    training.prepare_process()
    store = data.open_store(options.data)
    arms = dict(read_arm(arm, options) for arm in options.arm)
    slides = data.read_slides(options.slides, store.train.ids)
    groups = [group for group in np.unique(slides) if group not in options.leave_out]
    plan = {
        (arm, group, seed): replace(recipe, validate_on=(group,), seed=seed)
        for seed in range(options.seeds)
        for group in groups
        for arm, recipe in arms.items()
    }
    training.share_out(
        training.choose_devices("auto", options.devices),
        partial(train, plan, store, options.out),
        runs=len(plan),
        how_to_go_on=base.same_command,
    )
    outcomes = {place: study.read_outcome(folder(options.out, *place)) for place in plan}
    table = pd.DataFrame.from_records(
        [
            (*place, outcome.auc, sum(epoch.seconds for epoch in outcome.history))
            for place, outcome in outcomes.items()
        ],
        columns=["arm", "group", "seed", "AUC", "seconds"],
    )
    table.to_csv(options.out / "runs.csv", index=False)
    print(differences(table, list(arms)).to_string(float_format="{:.4f}".format))


def read_arm(arm: str, options: ScoreOptions) -> tuple[str, base.Recipe]:
    """Read NAME=OPTIONS."""
    name, _, words = arm.partition("=")
    own = ["--recipe", options.recipe, *shlex.split(words)]
    recipe = base.parse_options(base.RunOptions, "", own).recipe
    if options.epochs is not None and "epochs" not in base.given_options(own):
        recipe = replace(recipe, epochs=options.epochs)
    return name, replace(recipe, slides=options.slides, leave_out=options.leave_out)


def folder(out: Path, arm: str, group: str, seed: int) -> Path:
    """Return where a run lies."""
    return out / "runs" / f"{arm}-{group}-{seed}"


def train(plan: Plan, store: data.Store, out: Path, *, device: str) -> None:
    """Train what is missing, together with all processes that call this."""
    recipes = {folder(out, *place): recipe for place, recipe in plan.items()}
    for path, recipe in recipes.items():
        if (path / "config.json").exists():
            for difference in runs.find_differences(path, recipe, store, device=device):
                raise base.KitError(f"{path} is another run: {difference}. Remove it")
    folders = {path.name: path for path in recipes}

    def train_one(name: str, bar: training.TrainingBar) -> Iterator[base.EpochResult]:
        path = folders[name]
        resume = (path / "config.json").exists()
        run = runs.begin_run(recipes[path], store, path, device=device, resume=resume)
        yield from run.train(progress=bar)

    study.share_runs(
        list(folders),
        out,
        train_one,
        is_done=lambda name: (folders[name] / "metrics.json").exists(),
    )


def differences(table: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """Return a row per arm: its mean AUC, and what it has over the first arm."""
    aucs = table.pivot_table("AUC", index=["group", "seed"], columns="arm")
    rows: dict[str, dict[str, float | None]] = {}
    for arm in arms:
        rows[arm] = {"AUC": aucs[arm].mean(), "seconds": table[table["arm"] == arm].seconds.mean()}
        if arm == arms[0]:
            continue
        test = stats.paired_difference(aucs[arm], aucs[arms[0]], comparisons=len(arms) - 1)
        low, high = test.difference.low, test.difference.high
        by_group = (aucs[arm] - aucs[arms[0]]).groupby("group").mean()
        rows[arm] |= {"difference": test.difference.estimate, "low": low, "high": high}
        rows[arm] |= {"p": test.p_value, "n": test.n, **by_group}
    return pd.DataFrame.from_dict(rows, orient="index")


if __name__ == "__main__":
    with base.exit_on_error():
        main(base.parse_options(ScoreOptions, __doc__, sys.argv[1:]))
