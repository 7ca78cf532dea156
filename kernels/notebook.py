"""Write the study as a notebook that holds the kit, and execute it here.

It follows the study: the data, both models, plots 1 to 6, tables 1 and 2, a submission. It needs no
other file: open it in Jupyter, or upload it to Kaggle by hand, which takes no token. push.py
--notebook pushes it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from kit import base, data, kaggle
from kit.base import KitError, exit_on_error, write_text

REPOSITORY = Path(__file__).parents[1]
LEAST_EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class NotebookOptions:
    """How much it computes, and where it goes."""

    data: Path = Path("data")
    """Folder of the competition's data; on Kaggle it is found by itself."""
    out: Path = Path("notebook.ipynb")
    """The notebook to write."""
    epochs: base.Count = 20
    """Passes over the training tiles in each run, three or more."""
    seeds: base.Count = 6
    """Pairs of runs; fewer than six allow no conclusion."""
    sweep_seeds: base.Count = 8
    """Trainings of the momentum sweep."""
    execute: bool = True
    """Execute it here, into studies/histopathologic-notebook; what was trained there is kept."""


def main(options: NotebookOptions) -> None:
    """Build, execute and write."""
    if options.epochs < LEAST_EPOCHS:
        raise KitError(
            f"--epochs {options.epochs}: the notebook says how accuracies change from epoch to "
            f"epoch, which takes {LEAST_EPOCHS} or more"
        )
    out = base.output_file(options.out)
    settings = kaggle.Notebook(
        epochs=options.epochs,
        seeds=options.seeds,
        sweep_seeds=options.sweep_seeds,
        data=options.data,
    )
    text = kaggle.notebook_text(settings, REPOSITORY)
    if options.execute:
        # What is wrong with the data is told before a notebook is begun.
        data.open_store(kaggle.notebook_data(options.data))
        with base.going_on(lambda: "the same command goes on"):
            kaggle.execute_notebook(text, out)
    else:
        write_text(out, text)
    print(f"{options.out}: open it in Jupyter, or upload it to Kaggle (Create, Notebook, File)")


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(NotebookOptions, __doc__, sys.argv[1:]))
