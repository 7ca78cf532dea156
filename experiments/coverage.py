"""Draw how often each 95 % interval holds what it names, and how often equal arms are told apart.

Claim:    intervals cover 93 to 97 %, verdicts are false in at most 6 %; what is missed is seen.
Cost:     the simulations, 2,000 studies each: about an hour of one core. Drawing alone: seconds.
Figure:   docs/coverage.png, from the table docs/coverage.csv that the simulations write.

    python experiments/coverage.py --simulate          # run them all again, then draw
    python experiments/coverage.py --simulate picked   # those of tests/test_picked.py
    python experiments/coverage.py                     # draw the table that is there

What was stopped goes on: a simulation with a file in data/simulations is not run again.
"""

import os
import re
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
DONE = ROOT / "data" / "simulations"
TESTS = ("populations", "looks", "stats", "picked", "power")
COLUMNS = ["question", "case", "share", "studies"]
FALSE = (
    "equal arms, fresh pools, headline",
    "equal arms, fresh pools, test over seeds alone",
    "equal arms, fresh slides",
    "equal arms, fresh slides, test over seeds alone",
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


def simulate(names: list[str]) -> list[str]:
    """Run the long forms of the tests, whose lines replace those of the table; return what fails.

    Each runs by itself, so that one that fails, or a stop, costs no other.
    """
    DONE.mkdir(parents=True, exist_ok=True)
    failed = []
    for test in collect(names):
        done = DONE / (re.sub(r"[^\w.-]+", "_", test) + ".csv")
        if not done.exists() and not run(test, done):
            failed.append(test)
        if done.exists():
            write(pd.concat([read(TABLE), read(done)]))
    return failed


def collect(names: list[str]) -> list[str]:
    """Return the tests that have long forms, as pytest names them."""
    tests = [f"tests/test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "soak", "--collect-only", *tests]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    named = [line.partition("[")[0] for line in listed.splitlines() if "::" in line]
    return list(dict.fromkeys(named))


def run(test: str, done: Path) -> bool:
    """Run a test's long forms, keep the lines of one that ended; return whether it passed."""
    lines = done.with_suffix(".part")
    lines.unlink(missing_ok=True)
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "soak", test],
        cwd=ROOT,
        env=os.environ | {"KIT_SIMULATIONS": str(lines)},
        check=False,
    )
    if lines.exists():
        lines.rename(done)
    return found.returncode == 0


def read(table: Path) -> pd.DataFrame:
    """Read lines without a header; of a case that is there twice the later one counts."""
    return pd.read_csv(table, names=COLUMNS).drop_duplicates(["question", "case"], keep="last")


def write(table: pd.DataFrame) -> None:
    """Write the table, a case of before in its place."""
    last = table.drop_duplicates(["question", "case"], keep="last")
    order = table.drop_duplicates(["question", "case"])[["question", "case"]]
    order.merge(last, how="left").to_csv(
        TABLE, header=False, index=False, float_format="%.4f", lineterminator="\n"
    )


def draw(table: pd.DataFrame) -> Figure:
    """Draw coverage on the left and false verdicts on the right, with two standard errors."""
    table = table.sort_values("question", kind="stable")
    covered = table[table["question"].isin(COVERED)]
    false = table[table["question"].isin(FALSE)]
    figure = Figure(figsize=(15, 0.15 * max(len(covered), len(false)) + 1.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.25)
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
    axes.margins(y=0.01)
    axes.grid(axis="x", alpha=0.3)


if __name__ == "__main__":
    option, *names = sys.argv[1:] or [""]
    failed = simulate(names or list(TESTS)) if option == "--simulate" else []
    save_figure(draw(read(TABLE)), PICTURE)
    print(PICTURE)
    if failed:
        sys.exit("these do not reach what is asked:\n" + "\n".join(failed))
