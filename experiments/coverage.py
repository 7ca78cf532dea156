"""Draw how often each 95 % interval holds what it names, and how often equal arms are told apart.

Claim:    intervals cover 93 to 97 %, verdicts are false in at most 6 %; what is missed is seen.
Cost:     the simulations, 2,000 studies each: about an hour of one core. Drawing alone: seconds.
Figure:   docs/coverage.png, from the table docs/coverage.csv that the simulations write.

    python experiments/coverage.py --simulate   # run them again, then draw
    python experiments/coverage.py              # draw the table that is there
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kit.report import save_figure

ROOT = Path(__file__).resolve().parents[1]
TABLE, PICTURE = ROOT / "docs" / "coverage.csv", ROOT / "docs" / "coverage.png"
TESTS = ("populations", "looks", "stats", "picked", "power")
COLUMNS = ["question", "case", "share", "studies"]
FALSE = (
    "equal arms, fresh pools, headline",
    "equal arms, fresh slides",
    "equal arms, one holdout, headline",
)
COVERED = (
    "AUC over tiles",
    "AUC over slides",
    "seed noise",
    "momenta, all intervals together",
    "best trial, picked on other tiles",
    "gain of the ensemble that was chosen",
)


def simulate() -> None:
    """Run the long forms of the tests, each of which adds its lines to the table."""
    TABLE.unlink(missing_ok=True)
    tests = [f"tests/test_{name}.py" for name in TESTS]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "soak", *tests],
        cwd=ROOT,
        env=os.environ | {"KIT_SIMULATIONS": str(TABLE)},
        check=True,
    )


def draw(table: pd.DataFrame) -> Figure:
    """Draw coverage on the left and false verdicts on the right, with two standard errors."""
    covered = table[table["question"].isin(COVERED)]
    false = table[table["question"].isin(FALSE)]
    figure = Figure(figsize=(13, 0.19 * max(len(covered), len(false)) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_shares(left, covered, "What a 95 % interval covers", (93, 97), 95)
    draw_shares(right, false, "Equal arms, called different at 5 %", (0, 6), 5)
    return figure


def draw_shares(
    axes: Axes, table: pd.DataFrame, title: str, aim: tuple[float, float], line: float
) -> None:
    """Draw a row per case, those outside of the aim in another colour."""
    share = 100 * table["share"].to_numpy()
    error = np.sqrt(share * (100 - share) / table["studies"].to_numpy())
    rows = np.arange(len(table))[::-1]
    axes.axvspan(*aim, color="#56B4E9", alpha=0.2, lw=0)
    axes.axvline(line, color="#767676", lw=1)
    inside = (share >= aim[0]) & (share <= aim[1])
    for mask, colour in ((inside, "#0072B2"), (~inside, "#D55E00")):
        axes.errorbar(share[mask], rows[mask], xerr=2 * error[mask], fmt="o", ms=4, color=colour)
    axes.set_yticks(rows, [f"{one.question}: {one.case}" for one in table.itertuples()], fontsize=7)
    axes.set(title=title, xlabel="% of studies, two standard errors")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    if "--simulate" in sys.argv[1:]:
        simulate()
    # Of a case with a short and a long form the long one counts.
    table = pd.read_csv(TABLE, names=COLUMNS).drop_duplicates(["question", "case"], keep="last")
    save_figure(draw(table), PICTURE)
    print(PICTURE)
