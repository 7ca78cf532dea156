"""Choose a mean of runs by their held-out predictions, and say what it gains.

The runs must have been validated on the same tiles: cross-validated ones (train.py --folds), or
runs with the same holdout. Runs are added greedily while the AUC rises; the gain over the best
single run is judged on tiles that the choice has not seen.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import tyro

from kit import stats
from kit.base import KitError, Strings, exit_on_error
from kit.data import UNKNOWN, read_slides
from kit.runs import (
    Ensemble,
    Gain,
    Mean,
    choose_ensemble,
    judge_gain,
    read_predictions,
    write_ensemble,
)


def main(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path = Path("ensembles/all"),
    mean: Mean = "probability",
    slides: Path | None = None,
) -> None:
    """Choose, judge and write.

    Parameters
    ----------
    runs
        Folders of finished runs, or of cross-validations.
    out
        Folder of the ensemble.json to write.
    mean
        Of the probabilities, or of the tiles' ranks.
    slides
        CSV of id,slide: the gain is judged by slides.
    """
    if len(runs) < 2:
        raise KitError("an ensemble needs two runs or more: ensemble.py runs/ONE runs/OTHER")
    tiles, predictions = read_predictions(runs)
    labels = tiles["label"].to_numpy()
    groups = slides_of(slides, tiles["id"].to_numpy(str)) if slides else None
    chosen = choose_ensemble(runs, labels, predictions, mean)
    judged = judge_gain(labels, predictions, mean, slides=groups)
    path = write_ensemble(out, chosen, asdict(judged))
    everything = Ensemble({str(run): 1 / len(runs) for run in runs}, mean)
    aucs = [stats.auc(labels, one) for one in [*predictions, everything.combine(predictions)]]
    print("\n".join(describe(runs, aucs, chosen, judged)))
    print(f"{path}\nnext: python kernels/predict.py --ensemble {path} --out submission.csv")


def slides_of(path: Path, ids: Strings) -> Strings:
    """Read the slide of each tile, all of which must be known: the gain is judged by slides."""
    slides = read_slides(path, ids)
    if missing := int((slides == UNKNOWN).sum()):
        raise KitError(
            f"{path} has no slide for {missing:,} of the {len(ids):,} held-out tiles, the first "
            f"{ids[slides == UNKNOWN][0]}: train with --slides {path}, which leaves them out, or "
            "judge without --slides"
        )
    return slides


def describe(
    folders: tuple[Path, ...], aucs: list[float], chosen: Ensemble, judged: Gain
) -> list[str]:
    """Tell each run's AUC and weight, that of the mean of all, and what choosing gains."""
    *singles, everything = aucs
    order = np.argsort(singles)[::-1]
    p = judged.comparison.p_value
    p_value = "" if p is None else f", p = {p:.3f}"
    lines = [
        f"{singles[index]:.4f}  weight {chosen.weights.get(str(folders[index]), 0.0):.2f}  "
        f"{folders[index]}"
        for index in order
    ]
    return [
        "held-out AUC by run:",
        *lines,
        f"{everything:.4f}  all {len(folders)}, weighted alike",
        f"chosen and judged on different tiles: the mean {judged.auc}, the best run "
        f"{judged.best_run}; gain {judged.comparison.difference}{p_value}",
    ]


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
