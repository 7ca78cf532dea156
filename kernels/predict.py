"""Predict the test tiles and write a submission.

Several runs are averaged. Their own preprocessing is used; nothing needs to be repeated.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from kit import metrics, runs, store, submission
from kit.config import Views
from kit.errors import KitError, exit_on_error


def main(
    run: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction],
    data: Path = Path("data"),
    out: Path = Path("submission.csv"),
    views: Views | None = None,
    labels: Literal["probability", "hard"] = "probability",
    device: str = "auto",
) -> None:
    """Predict and write.

    Parameters
    ----------
    run
        Folder of a finished run; may be given several times.
    data
        Folder of the competition's data.
    out
        The submission to write.
    views
        8 averages the eight symmetries of the square, at eight times the cost; by default what
        each run's recipe says.
    labels
        hard writes 0 or 1, as the study did; it costs AUC, and the command says how much.
    device
        auto takes a GPU where there is one.
    """
    if not run:
        raise KitError("name at least one run: --run runs/NAME")
    models = [runs.load(folder, device=device) for folder in run]
    tiles = store.open_store(data)
    probabilities = np.mean([model.predict(tiles.test, views=views) for model in models], axis=0)
    if labels == "hard":
        for folder in run:
            print(cost_of_hard_labels(folder))
        probabilities = (probabilities > 0.5).astype(float)
    ids = tiles.test.ids.tolist()
    submission.write(out, ids, probabilities)
    submission.validate(out, ids)
    print(f"{out}: {len(probabilities):,} tiles, mean {probabilities.mean():.4f}; it is valid")
    if not tiles.is_standin:
        print(f"next: python kernels/submit.py --file {out} --data {data} --message TEXT")


def cost_of_hard_labels(folder: Path) -> str:
    """Say what 0 and 1 in place of probabilities cost in AUC on a run's holdout."""
    valid = runs.read_valid(folder)
    labels, probabilities = valid["label"].to_numpy(), valid["probability"].to_numpy()
    soft = metrics.auc(labels, probabilities)
    hard = metrics.auc(labels, (probabilities > 0.5).astype(float))
    return f"{folder}: hard labels lower the holdout's AUC from {soft:.4f} to {hard:.4f}"


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
