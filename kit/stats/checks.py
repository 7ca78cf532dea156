"""What labels, scores and pairs must be before anything is computed from them."""

import numpy as np
import numpy.typing as npt

from kit.base import Array, Bools, Floats, KitError


def scored(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Return which tiles are positive, and the scores; insist on finite ones."""
    given, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if given.ndim != 1 or given.shape != scores.shape:
        raise KitError(
            f"labels of shape {given.shape} and predictions of shape {scores.shape} do not"
            " match: give one label and one prediction per tile"
        )
    if not len(given):
        raise KitError("there are no tiles to score: the holdout is empty, make a larger one")
    refuse((given != 0) & (given != 1), given, "label {} at position {} is neither 0 nor 1")
    message = (
        "prediction {} at position {} is not a finite number, as when training has diverged: try"
        " a smaller --lr, or --precision fp32"
    )
    refuse(~np.isfinite(scores), scores, message)
    return given == 1, scores


def both_classes(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Return which tiles are positive, and the scores; insist on tiles of both classes."""
    positive, scores = scored(labels, scores)
    if positive.all() or not positive.any():
        raise KitError(
            f"all {len(positive)} tiles are {'positive' if positive[0] else 'negative'}, and an"
            " AUC needs both classes: make a larger or a stratified holdout"
        )
    return positive, scores


def probable(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Return which tiles are positive, and the probabilities; insist on [0, 1]."""
    positive, probabilities = scored(labels, probabilities)
    message = "prediction {} at position {} is no probability: apply the sigmoid to logits first"
    refuse((probabilities < 0) | (probabilities > 1), probabilities, message)
    return positive, probabilities


def refuse(wrong: Bools, values: Array, message: str) -> None:
    """Raise the message with the first wrong value and its position, if there is one."""
    if wrong.any():
        position = int(wrong.argmax())
        raise KitError(message.format(values[position], position))
