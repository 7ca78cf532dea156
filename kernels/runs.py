"""List all runs: what each is, how it differs from its recipe, and how it did.

Runs that are not finished, broken or another version's are listed as such. --sort and --where take
the columns of the CSV file that --out writes, a recipe's options among them: --where "auc > 0.95
and recipe == 'compact'". --html writes a page that leads to the runs' own pages, and lays the
learning curves of the first runs of the table, or of those that --curves names, over each other.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from kit import base, report, runs
from kit.base import KitError, exit_on_error, write_text

USUAL = (Path("runs"), Path("studies"))
ENDINGS = (".csv", ".md", ".tex")
# Of a cell in a terminal, in characters; files hold all of it.
WIDTH = 40


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """Which runs, in what order, and what is written."""

    folders: base.Positional[tuple[Path, ...]] = ()
    """Folders that hold runs at any depth; runs/ and studies/ if none is named."""
    where: str | None = None
    """Only runs for which this holds, an expression as pandas' query takes it."""
    sort: str = "auc"
    """Column to sort by; AUC and accuracy begin with the highest, all others with the lowest."""
    reverse: bool = False
    """Turn the order round."""
    out: base.Repeated[Path] = ()
    """File of the table: .csv has all columns, .md and .tex (booktabs) those that are printed."""
    html: Path | None = None
    """File of a page with the table, links to the runs' pages, and learning curves."""
    curves: tuple[Path, ...] = ()
    """With --html: the runs whose curves are drawn."""


def main(options: RunsOptions) -> None:
    """List the runs, and write what is asked for."""
    check(options)
    folders = options.folders or tuple(folder for folder in USUAL if folder.is_dir())
    table = runs.runs_table(folders)
    if table.empty:
        where = " or ".join(map(str, folders or USUAL))
        raise KitError(f"no runs in {where}: {base.command('train')} makes one")
    chosen = runs.choose_runs(
        table, where=options.where, sort=options.sort, reverse=options.reverse
    )
    shown = runs.shown_table(chosen)
    found = base.counted(len(table), "run")
    short = shown.map(lambda cell: base.shorten(cell, WIDTH)).reset_index()
    print(short.to_string(index=False) if len(shown) else f"--where holds for none of {found}")
    print("\n".join(runs.table_notes(chosen)))
    if options.html is not None:
        page = report.overview_page(chosen, options.curves, options.html.parent)
        report.write_page(options.html, page)
        print(options.html)
    texts = {
        ".csv": chosen.to_csv(index=False, lineterminator="\n"),
        ".md": base.as_markdown(shown),
        ".tex": base.as_latex(shown),
    }
    for path in options.out:
        write_text(path, texts[path.suffix])
        print(path)


def check(options: RunsOptions) -> None:
    """Refuse what cannot be written, before anything is."""
    for path in options.out:
        if path.suffix not in ENDINGS:
            raise KitError(f"--out {path}: the table is written as {', '.join(ENDINGS)}")
    if options.curves and options.html is None:
        raise KitError("--curves draws on the page: name its file with --html")


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(RunsOptions, __doc__, sys.argv[1:]))
