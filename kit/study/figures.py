"""What a study compares of a finished run: the model that it keeps, and how training went."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit import runs
from kit.base import EpochResult, KitError

PRIMARY = "validation AUC"
"""The figure that the verdict rests on; the competition is scored by it."""

Histories = Mapping[str, Sequence[Sequence[EpochResult]]]
"""For each arm, one history per seed, in the order of the seeds."""


@dataclass(frozen=True)
class Outcome:
    """What a study knows of a finished run.

    Attributes
    ----------
    history
        One result per epoch, of the weights as they then were and one view: the curve.
    auc, accuracy, log_loss
        On the holdout, of the model that the run keeps, predicts with and submits: with averaged
        weights where the recipe has them, and with the recipe's views.
    """

    history: tuple[EpochResult, ...]
    auc: float
    accuracy: float
    log_loss: float


Outcomes = Mapping[str, Sequence[Outcome]]
"""For each arm, one outcome per seed, in the order of the seeds."""


def read_outcome(folder: Path) -> Outcome:
    """Read the outcome of a finished run from its folder.

    Raises
    ------
    KitError
        If the run is not finished, or its files are damaged, or one of its figures is no number.
    """
    try:
        history, final = runs.read_history(folder), runs.read_metrics(folder)
    except KitError as error:
        raise KitError(
            f"{error}. Remove {folder}, and the same command trains the run again"
        ) from error
    return check_outcome(Outcome(tuple(history), **kept_figures(final)), folder)


def kept_figures(final: Mapping[str, Any]) -> dict[str, float]:
    """Return an outcome's figures from those of a run's metrics.json."""
    return {
        "auc": final["auc"]["estimate"],
        "accuracy": final["accuracy"],
        "log_loss": final["log_loss"],
    }


def check_outcome(outcome: Outcome, folder: Path) -> Outcome:
    """Return the outcome of the run in a folder, if all its figures are numbers.

    Raises
    ------
    KitError
        If it has no epoch, or one of its figures is no finite number.
    """
    if not outcome.history:
        raise KitError(
            f"{folder}/history.jsonl holds no epoch: remove {folder}, and the same command trains "
            "the run again"
        )
    for name, value in run_figures(outcome).items():
        if not math.isfinite(value):
            raise KitError(
                f"the {name} of {folder} is {value}: that run diverged. Choose another --out and a "
                "smaller --lr, or --precision fp32"
            )
    return outcome


def run_figures(outcome: Outcome) -> dict[str, float]:
    """Return what a study compares of one run.

    The validation figures are those of the model that the run keeps. The training figures are the
    last epoch's. The spread is the standard deviation of the change of the curve from one epoch to
    the next: how much it jumps, whatever its trend; it takes three epochs. A network without
    BatchNorm has no running variance.
    """
    last = outcome.history[-1]
    accuracies = np.array([result.valid_accuracy for result in outcome.history])
    figures = {
        PRIMARY: outcome.auc,
        "validation accuracy": outcome.accuracy,
        "training accuracy": last.train_accuracy,
        "validation loss": outcome.log_loss,
        "training loss": last.train_loss,
        "generalisation gap (accuracy)": last.train_accuracy - outcome.accuracy,
    }
    if len(accuracies) > 2:
        figures["spread of validation accuracy"] = float(np.diff(accuracies).std())
    variances = [result.min_running_var for result in outcome.history]
    found = [variance for variance in variances if variance is not None]
    if found:
        figures["smallest running variance"] = min(found)
    return figures


def figures_by_run(outcomes: Outcomes) -> dict[str, pd.DataFrame]:
    """Return for each arm a table with a row per seed and a column per figure.

    A figure that one of the runs does not have is left out.
    """
    by_arm = {arm: [run_figures(outcome) for outcome in seeds] for arm, seeds in outcomes.items()}
    every = [figures.keys() for seeds in by_arm.values() for figures in seeds]
    common = [name for name in every[0] if all(name in names for names in every)]
    return {arm: pd.DataFrame(seeds)[common] for arm, seeds in by_arm.items()}


def histories(outcomes: Outcomes) -> Histories:
    """Return the curves of all runs."""
    return {arm: [outcome.history for outcome in seeds] for arm, seeds in outcomes.items()}
