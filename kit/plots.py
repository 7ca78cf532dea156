"""Figures, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kit.files import atomic_path
from kit.training import EpochResult


def curves(history: Sequence[EpochResult], path: Path, *, title: str) -> None:
    """Draw accuracy and loss by epoch, training beside validation, into a PNG file."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    _draw_pair(left, history, "accuracy")
    _draw_pair(right, history, "loss")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _draw_pair(axes: Axes, history: Sequence[EpochResult], quantity: str) -> None:
    """Draw one quantity of both sides by epoch."""
    epochs = [result.epoch for result in history]
    for side, label in (("train", "training"), ("valid", "validation")):
        values = [getattr(result, f"{side}_{quantity}") for result in history]
        axes.plot(epochs, values, marker=".", label=label)
    axes.set(xlabel="epoch", ylabel=quantity)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
