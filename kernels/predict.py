"""Predict the test tiles and write a submission.

Several runs are averaged, and so are the folds of a cross-validation. Their own preprocessing is
used; nothing needs to be repeated.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from kit import kaggle, runs, stats
from kit.base import KitError, Views, exit_on_error
from kit.data import open_store
from kit.runs import Ensemble


def main(
    run: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = (),
    ensemble_file: Annotated[Path | None, tyro.conf.arg(name="ensemble")] = None,
    data: Path = Path("data"),
    out: Path = Path("submission.csv"),
    views: Views | None = None,
    adapt_bn: bool = False,
    calibrate: bool = False,
    labels: Literal["probability", "hard"] = "probability",
    device: str = "auto",
) -> None:
    """Predict and write.

    Parameters
    ----------
    run
        Folder of a finished run or cross-validation; may be given several times.
    ensemble_file
        An ensemble.json of kernels/ensemble.py, in place of runs.
    data
        Folder of the competition's data.
    out
        The submission to write.
    views
        8 averages the eight symmetries of the square, at eight times the cost; by default what
        each run's recipe says.
    adapt_bn
        Give BatchNorm the statistics of the unlabelled test tiles, whose slides are stained
        otherwise. It does not help every network.
    calibrate
        Scale logits by the temperature of each run's holdout, for people who need
        probabilities; a single run's AUC stays as it is.
    labels
        hard writes 0 or 1, as the study did; it costs AUC, and the command says how much.
    device
        auto takes a GPU where there is one.
    """
    if bool(run) == (ensemble_file is not None):
        raise KitError("name runs (--run runs/NAME, several times) or one --ensemble FILE")
    chosen = runs.read_ensemble(ensemble_file) if ensemble_file else even(run)
    tiles = open_store(data)
    predictions = [
        np.mean(
            [
                runs.load(member, device=device).predict(
                    tiles.test, views=views, adapt_bn=adapt_bn, calibrate=calibrate
                )
                for member in runs.members(Path(folder))
            ],
            axis=0,
        )
        for folder in chosen.weights
    ]
    probabilities = chosen.combine(np.stack(predictions))
    if labels == "hard":
        for folder in chosen.weights:
            print(cost_of_hard_labels(Path(folder)))
        probabilities = (probabilities > 0.5).astype(float)
    ids = tiles.test.ids.tolist()
    kaggle.write_submission(out, ids, probabilities)
    kaggle.validate_submission(out, ids)
    print(f"{out}: {len(probabilities):,} tiles, mean {probabilities.mean():.4f}; it is valid")
    if not tiles.is_standin:
        print(f"next: python kernels/submit.py --file {out} --data {data} --message TEXT")


def even(folders: tuple[Path, ...]) -> Ensemble:
    """Return the plain mean of runs."""
    return Ensemble({str(folder): 1 / len(folders) for folder in folders}, "probability")


def cost_of_hard_labels(folder: Path) -> str:
    """Say what 0 and 1 in place of probabilities cost in AUC on a run's holdout."""
    valid = runs.read_valid(folder)
    labels, probabilities = valid["label"].to_numpy(), valid["probability"].to_numpy()
    soft = stats.auc(labels, probabilities)
    hard = stats.auc(labels, (probabilities > 0.5).astype(float))
    return f"{folder}: hard labels lower the holdout's AUC from {soft:.4f} to {hard:.4f}"


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
