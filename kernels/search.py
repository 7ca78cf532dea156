"""Search over a recipe's options with Optuna.

An option given by name keeps its value. The same command goes on with a search that was stopped;
on other machines that see the folder --out (or the database --storage) it joins in.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kit import base, data, report, runs, study, training
from kit.base import exit_on_error

# In here as well, since Ctrl-C may come while the libraries of command lines load.
with exit_on_error():
    from kit.base import RunOptions


@dataclass(frozen=True, kw_only=True)
class SearchOptions(RunOptions):
    """The recipe that a search starts from, what it runs on, and how long."""

    out: Path = Path("studies/search")
    """The search's folder; the same command goes on with it, or joins in."""
    trials: base.Count = 40
    """Trials to finish in all, whichever worker runs them."""
    seeds: base.Count = 1
    """Runs per trial, each with its own seed and so its own holdout; their mean AUC counts."""
    storage: str | None = None
    """Database, as postgresql+pg8000://..., where workers share no folder; else a file in --out."""


def read_options(argv: list[str]) -> SearchOptions:
    """Read a command line."""
    return base.parse_options(SearchOptions, __doc__, argv)


def main(options: SearchOptions, argv: list[str]) -> None:
    """Search until enough trials are finished, then tell what was found."""
    devices = training.choose_devices(options.device, options.devices)
    training.prepare_process(deterministic=options.deterministic, cuda_graphs=options.cuda_graphs)
    runs.check_without_data([options.recipe], device=devices.device)
    study.require_storage(options.storage)
    tiles = data.open_store(options.data)
    search = study.Search(
        folder=options.out,
        recipe=options.recipe,
        trials=options.trials,
        seeds=options.seeds,
        fixed=base.given_options(argv),
    )
    result = training.share_out(
        devices,
        partial(study.run_search, search, tiles, workers=options.workers, storage=options.storage),
        runs=options.trials,
        how_to_go_on=base.same_command,
    )
    for name, share in result.importances.items():
        print(f"{name:24} {share:7.1%} of what sets good trials apart")
    verdict = report.search_verdict(result, tiles)
    print(verdict)
    words = ["--recipe", options.out / "best.toml", "--data", options.data]
    trusted = ["--trust"] if options.recipe.custom else []
    print(f"next: {base.command('train', *words, *trusted)}")
    where = "on the machine that trained the best trial"
    # Workers of a database may share no folder.
    if result.folder.exists():
        words = [*argv, *study.precision_words(options.out, [options.recipe])]
        command = base.command("search", *words)
        page = report.search_page(result, options.out, tiles, verdict=verdict, command=command)
        with base.FolderLock(options.out, wait=True):
            report.write_page(options.out / "report.html", page, options.figures)
        where = f"{options.out}/report.html"
    print(f"the whole search: {where}")


if __name__ == "__main__":
    with exit_on_error(), base.going_on(base.same_command):
        main(read_options(sys.argv[1:]), sys.argv[1:])
