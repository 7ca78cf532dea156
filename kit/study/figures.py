"""What a study compares of a run: the last epoch counts, never the best of noisy ones."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kit.base import EpochResult

Histories = Mapping[str, Sequence[Sequence[EpochResult]]]
"""For each arm, one history per seed, in the order of the seeds."""

PRIMARY = "validation AUC"
"""The figure that the verdict rests on; the competition is scored by it."""


def run_figures(history: Sequence[EpochResult]) -> dict[str, float]:
    """Return what a study compares of one run; the last epoch's figures where not said otherwise.

    The spread is the standard deviation of the change from one epoch to the next, over all
    epochs: how much a validation curve jumps, whatever its trend.
    """
    last = history[-1]
    accuracies = np.array([result.valid_accuracy for result in history])
    return {
        PRIMARY: last.valid_auc,
        "validation accuracy": last.valid_accuracy,
        "training accuracy": last.train_accuracy,
        "validation loss": last.valid_loss,
        "training loss": last.train_loss,
        "generalisation gap (accuracy)": last.train_accuracy - last.valid_accuracy,
        "spread of validation accuracy": float(np.diff(accuracies).std())
        if len(history) > 2
        else 0.0,
        "smallest running variance": min(result.min_running_var for result in history),
    }


def figures_by_run(histories: Histories) -> dict[str, pd.DataFrame]:
    """Return for each arm a table with a row a seed and a column a figure."""
    return {
        arm: pd.DataFrame([run_figures(history) for history in seeds])
        for arm, seeds in histories.items()
    }
