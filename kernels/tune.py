"""Tune BatchNorm's momentum or a whole recipe: tune.py momentum ..., tune.py search ...

momentum   one training a seed carries the running statistics of every momentum (in Keras' sense)
search     a search over the recipe's options with Optuna

The same command on other machines joins in.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from kit.base import config
from kit.base.config import Count, RunOptions
from kit.base.errors import KitError, exit_on_error
from kit.data import split, store
from kit.report import pages, report
from kit.study import momentum, search, study
from kit.study.search import SearchOptions

Momentum = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class MomentumOptions(RunOptions):
    """The momenta and the seeds, the data, the hardware, and where the study is kept."""

    out: Path = Path("studies/momentum")
    """The study's folder."""
    values: tuple[Momentum, ...] = (0.99, 0.75, 0.5, 0.25)
    """In Keras' sense (PyTorch's is 1 minus it); the others are compared with the first."""
    seeds: Count = 8
    """Trainings, from --seed on. Five values, compared fairly, need eight for a conclusion."""
    independent: bool = False
    """Train every momentum by itself: the same figures for several times the cost."""
    storage: str | None = None
    """Database that hands the runs out, as postgresql+pg8000://...; a file in --out if none."""


def tune_momentum(argv: list[str]) -> None:
    """Train what is missing, then compare the momenta."""
    description = "Sweep BatchNorm's momentum: one training a seed, evaluated with each momentum."
    options = config.parse_options(MomentumOptions, description, argv)
    if len(set(options.values)) < 2 or len(set(options.values)) < len(options.values):
        raise KitError("--values takes two or more different momenta")
    tiles = store.open_store(options.data)
    recipe = options.settings
    seeds = range(recipe.seed, recipe.seed + options.seeds)
    train = momentum.independent if options.independent else momentum.sweep
    histories = train(
        recipe,
        options.values,
        seeds,
        tiles,
        options.out,
        device=options.device,
        workers=options.workers,
        storage=options.storage,
    )
    tables = {
        "table2": momentum.momentum_table(histories),
        "notebook": momentum.notebook_table(histories),
    }
    verdict = momentum.verdict(histories)
    folders = {path.name: path for path in sorted((options.out / "runs").iterdir())[:3]}
    command = shlex.join(["python", "kernels/tune.py", "momentum", *argv])
    slides = split.slides_of(tiles, recipe.slides)
    page = pages.momentum_page(
        histories, tables, verdict, store=tiles, slides=slides, folders=folders, command=command
    )
    with study.turn(options.out):
        study.write_tables(options.out, tables, verdict)
        report.write(options.out / "report.html", page)
    for table in tables.values():
        print(f"\n{table.to_string(float_format='{:.4f}'.format)}")
    print(f"\n{verdict}\nthe whole study: {options.out}/report.html")


def tune_search(argv: list[str]) -> None:
    """Search until enough trials are finished, then tell what was found."""
    description = (
        "Search over the recipe's options with Optuna. An option given by name keeps its value. "
        "The same command goes on with a search that was stopped, or joins one."
    )
    options = config.parse_options(SearchOptions, description, argv)
    tiles = store.open_store(options.data)
    result = search.run(
        options.settings,
        tiles,
        options.out,
        trials=options.trials,
        seeds=options.seeds,
        storage=options.storage,
        fixed=config.given(argv),
        device=options.device,
        workers=options.workers,
    )
    where = "on the machine that trained the best trial"
    # Workers of a database may share no folder.
    if result.folder.exists():
        command = shlex.join(["python", "kernels/tune.py", "search", *argv])
        page = pages.search_page(result, options.out, tiles, command)
        with study.turn(options.out):
            report.write(options.out / "report.html", page)
        where = f"{options.out}/report.html"
    for name, share in result.importances.items():
        print(f"{name:24} {share:7.1%} of what sets good trials apart")
    print(f"{pages.search_verdict(result)}\nthe whole search: {where}")
    print(f"next: python kernels/train.py --recipe {options.out}/best.toml --data {options.data}")


COMMANDS = {"momentum": tune_momentum, "search": tune_search}


def main(argv: list[str]) -> None:
    """Run the command that the first word names."""
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    if argv[0] not in COMMANDS:
        raise KitError(f"no command {argv[0]}: there are {', '.join(COMMANDS)}")
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
