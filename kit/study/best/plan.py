"""What fits into the time: what a part costs on this machine, and which parts are trained.

Nothing here reads a clock or a file.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kit.base import Recipe
from kit.runs import Speed

LEAST_SEEN = 20_000
"""Tiles that a network sees at the very least, an epoch's each time: fewer teach it little."""
LEAST_SHARE = 0.25
"""Of a recipe's epochs, where that is less."""
OVERRUN = 1.5
"""Of its planned time what a slow part may take, before it is shortened, if there is so much."""


@dataclass(frozen=True)
class Sides:
    """Numbers of tiles, and how many runs share them out as folds."""

    train: int
    valid: int
    test: int
    runs: int = 1


@dataclass(frozen=True)
class Cost:
    """What a part takes, in seconds: its time is fixed + epochs * epoch + test."""

    fixed: float
    epoch: float
    test: float

    def seconds(self, epochs: int) -> float:
        """Return what so many epochs take, predicting the test tiles included."""
        return self.fixed + epochs * self.epoch + self.test

    def times(self, factor: float) -> "Cost":
        """Return the cost on a machine that takes so many times as long."""
        return Cost(self.fixed * factor, self.epoch * factor, self.test * factor)


@dataclass(frozen=True)
class Candidate:
    """A part that may be trained.

    Attributes
    ----------
    least, most
        Epochs that it is worth training for, and those of its recipe.
    """

    name: str
    cost: Cost
    least: int
    most: int


@dataclass(frozen=True)
class Planned:
    """A part that fits into the time, and what it takes."""

    name: str
    epochs: int
    seconds: float


def cost_of(recipe: Recipe, speed: Speed, sides: Sides) -> Cost:
    """Return what a recipe's run, or its runs over folds, cost at a speed.

    A network takes its steps and evaluates its holdout in each epoch; at the end it recalibrates an
    average of weights over the training tiles. A probe encodes all tiles in each view, once for
    all folds.
    """
    of_holdout = sides.valid * recipe.views * speed.tile
    test = sides.test * recipe.views * speed.tile
    if recipe.is_probe:
        encoding = (sides.train + sides.valid) * recipe.views * speed.tile
        fixed = encoding + sides.runs * (speed.build + sides.train * speed.fit)
        return Cost(fixed, 0.0, test)
    epoch = sides.train // recipe.batch_size * speed.step + sides.valid * speed.tile
    recalibration = sides.train * speed.tile if recipe.ema else 0.0
    fixed = speed.build + recalibration + of_holdout
    return Cost(sides.runs * fixed, sides.runs * epoch, sides.runs * test)


def candidate(name: str, recipe: Recipe, cost: Cost, train_tiles: int) -> Candidate:
    """Return a part with the epochs that it is worth training for."""
    least = min(math.ceil(LEAST_SHARE * recipe.epochs), math.ceil(LEAST_SEEN / train_tiles))
    return Candidate(name, cost, max(1, least), recipe.epochs)


def plan_parts(candidates: Iterable[Candidate], seconds: float) -> list[Planned]:
    """Choose what is trained in so many seconds, and for how many epochs.

    In their order candidates take what they can use of the time that those before them leave; those
    whose least epochs do not fit are left out.
    """
    chosen: list[Planned] = []
    for one in candidates:
        epochs = affordable_epochs(one, seconds)
        if epochs >= one.least:
            own = one.cost.seconds(epochs)
            chosen.append(Planned(one.name, epochs, own))
            seconds -= own
    return chosen


def affordable_epochs(one: Candidate, seconds: float) -> int:
    """Return how many epochs of a part fit into so many seconds; 0 where it does not fit."""
    room = seconds - one.cost.seconds(0)
    if room < 0:
        return 0
    return one.most if one.cost.epoch * one.most <= room else int(room / one.cost.epoch)


def least_seconds(candidates: Sequence[Candidate]) -> float:
    """Return the time that the quickest of some parts takes."""
    return min(one.cost.seconds(one.least) for one in candidates)


def new_pace(pace: float, expected: float, took: float) -> float:
    """Return how much longer parts take than measured, when one took what it was not to take.

    A machine gets busy, and is left alone again: half of the way, on a logarithmic scale, and no
    more than a factor of four.
    """
    ratio = min(4.0, max(0.25, took / expected)) if expected > 0 else 1.0
    return pace * math.sqrt(ratio)


def shortened(epochs: int, done: int, *, pace: float, seconds: float) -> int:
    """Return for how many epochs in all a training goes on that has so many seconds left.

    Parameters
    ----------
    epochs
        That it was to have.
    done
        Of them.
    pace
        Seconds that an epoch takes by now.
    seconds
        For what is left of its epochs.
    """
    return min(epochs, done + max(0, int(seconds / pace)))
