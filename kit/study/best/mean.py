"""The mean of a search's finished parts: chosen on the holdout, judged beside it, submitted."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit import runs
from kit.base import Floats, KitError, Strings, atomic_path, stopped_after
from kit.data import UNKNOWN, Store, find_slides
from kit.runs import Ensemble, Gain, Manner


@dataclass(frozen=True)
class Judgement:
    """What is known of a mean on tiles that did not choose it.

    Attributes
    ----------
    gain
        None where it has one part, or too few tiles to say.
    by_slide
        Whether its intervals are for new slides.
    """

    gain: Gain | None = None
    by_slide: bool = False


def choose_mean(folders: Sequence[Path]) -> Ensemble:
    """Choose a mean of finished runs or cross-validations on their holdout."""
    tiles, predictions = runs.read_predictions(folders)
    return runs.choose_ensemble(folders, tiles["label"].to_numpy(), predictions, "probability")


def judge_mean(folders: Sequence[Path], store: Store, slides: Path | None) -> Judgement:
    """Judge the choosing on tiles that it has not seen; by slides where these allow it.

    Parameters
    ----------
    slides
        The table by which the holdout was chosen.
    """
    if len(folders) < 2:
        return Judgement()
    tiles, predictions = runs.read_predictions(folders)
    labels, of_tiles = tiles["label"].to_numpy(), _slides_of(tiles["id"], store, slides)
    for known in [None] if of_tiles is None else [of_tiles, None]:
        try:
            gain = runs.judge_gain(labels, predictions, "probability", slides=known)
        except KitError:
            # Too few slides, or tiles, hold one of the classes.
            continue
        if gain.auc.low is not None:
            return Judgement(gain, known is not None)
    return Judgement()


def predict_mean(
    chosen: Ensemble, store: Store, folder: Path, *, device: str, seconds: float
) -> dict[Path, Floats]:
    """Return what each model of a mean predicts of the test tiles.

    It is kept in the folder's `predicted`, and what is there is read, also where no time is left.

    Raises
    ------
    LateError
        If predicting what is not there lasts longer than so many seconds.
    """
    end = time.monotonic() + seconds
    predicted: dict[Path, Floats] = {}
    for run in chosen.weights:
        for model in runs.members(Path(run)):
            name = "-".join(model.parts[len(folder.parts) + 1 :])
            place = folder / "predicted" / f"{name}.npy"
            if not place.exists():
                with stopped_after(end - time.monotonic()):
                    (values,) = runs.predict_each([model], store, Manner(), device=device)
                with atomic_path(place) as partial, partial.open("wb") as file:
                    np.save(file, values)
            predicted[model] = np.load(place)
    return predicted


def submit_mean(
    chosen: Ensemble, judged: Judgement, store: Store, folder: Path, predicted: dict[Path, Floats]
) -> Path:
    """Write a mean's ensemble.json and submission.csv into a folder, and return the latter."""
    runs.write_ensemble(folder, chosen, {} if judged.gain is None else asdict(judged.gain))
    path = runs.submission_place(folder)
    runs.predict_submission(path, chosen, store, Manner(), predicted=predicted)
    return path


def _slides_of(ids: pd.Series, store: Store, table: Path | None) -> Strings | None:
    known = None if table is None else find_slides(store, table).of_tiles
    if known is None:
        return None
    own: Strings = known[pd.Index(store.train.ids).get_indexer(pd.Index(ids))]
    return None if (own == UNKNOWN).any() else own
