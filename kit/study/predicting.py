"""Predictions of the test tiles by several models, shared by processes on several devices."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kit import runs
from kit.base import EpochResult, Floats, atomic_path
from kit.data import Store
from kit.runs import Manner
from kit.study.sharing import share_runs
from kit.training import TrainingBar


def predict_shared(
    models: Sequence[Path], tiles: Store, manner: Manner, folder: Path, *, device: str = "auto"
) -> dict[Path, Floats]:
    """Return what `runs.predict_each` does by model, together with all that call this.

    Parameters
    ----------
    folder
        Where they find each other and leave what they predict: a new one each time.

    Raises
    ------
    KitError
        As `predict_each`.
    """
    names = {str(model): model for model in models}
    places = {str(model): folder / f"{number}.npy" for number, model in enumerate(models)}

    def predict_one(name: str, _: TrainingBar) -> Iterator[EpochResult]:
        (values,) = runs.predict_each([names[name]], tiles, manner, device=device)
        with atomic_path(places[name]) as partial, partial.open("wb") as file:
            np.save(file, values)
        yield from ()

    share_runs(list(names), folder, predict_one, is_done=lambda name: places[name].exists())
    return {model: np.load(places[name]) for name, model in names.items()}
