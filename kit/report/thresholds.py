"""What a run's probabilities become at a threshold: the part of its page for a classroom."""

import pandas as pd

from kit import stats
from kit.report import plots
from kit.report.page import Drawing, Section, Table
from kit.stats import Confusion


def threshold_section(valid: pd.DataFrame) -> Section:
    """Show the confusion matrix and what is read from it, at 0.5 and at a chosen threshold.

    Parameters
    ----------
    valid
        label,probability of the held-out tiles.
    """
    labels, probabilities = valid["label"].to_numpy(), valid["probability"].to_numpy()
    chosen = stats.best_threshold(labels, probabilities)
    half, best = (stats.confusion(labels, probabilities, value) for value in (0.5, chosen))
    return Section(
        "At a threshold",
        text=[
            "A tile is called positive if its probability is above the threshold. 0.5 was fixed "
            f"in advance. {chosen:.4f} is the threshold with the largest sum of sensitivity and "
            "specificity (Youden's J) on these same held-out tiles, so its figures are optimistic: "
            "judge it on other tiles before you use it. The competition's AUC needs no threshold.",
        ],
        tables=[_figures(half, best)],
        drawings=[
            Drawing(
                plots.confusion_matrix(counts, title=f"Threshold {counts.threshold:.4g}"),
                "Tiles by their label (rows) and by what they were called (columns), with shares "
                f"of the row. {note}",
            )
            for counts, note in ((half, ""), (best, "Chosen on these tiles: optimistic."))
        ],
    )


def _figures(half: Confusion, best: Confusion) -> Table:
    meanings = {
        "sensitivity": "recall: share of the positive tiles that are called positive",
        "specificity": "share of the negative tiles that are called negative",
        "precision": "share of the tiles called positive that are positive",
        "F1": "harmonic mean of precision and sensitivity",
        "accuracy": "share of all tiles called what they are",
    }
    columns = {
        f"at {counts.threshold:.4g} (95 % interval)": _figures_at(counts) for counts in (half, best)
    }
    frame = pd.DataFrame({"figure": meanings.keys(), **columns, "meaning": meanings.values()})
    return Table(frame, "Intervals are Wilson's, over tiles.")


def _figures_at(counts: Confusion) -> list[str]:
    shares = (counts.sensitivity, counts.specificity, counts.precision)
    return [*map(str, shares), f"{counts.f1:.4f}", str(counts.accuracy)]
