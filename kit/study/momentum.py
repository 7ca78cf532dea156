"""A sweep of BatchNorm's momentum: one training, a set of running statistics for each momentum.

In training a BatchNorm normalises by its batch: momentum only decides how the running
statistics follow, which evaluation reads. So one training serves every momentum.

Momentum is given in Keras' sense, the share of a running statistic that is kept at each step;
PyTorch's is 1 minus it.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from kit.base import EpochResult, KitError, Recipe, atomic_path, write_text
from kit.data import Store
from kit.runs import Run
from kit.study.arms import Study, train_arms
from kit.study.figures import Histories
from kit.study.folder import claim
from kit.study.sharing import share_runs
from kit.study.statistics_bank import StatisticsBank
from kit.training import evaluate_each

RECALIBRATED = "recalibrated"
"""Name of the statistics computed over the training side after each epoch."""

RECALIBRATION_BATCHES = 4
"""About 1,000 tiles, where their statistics stop to change (arXiv:2105.07576, section 3). They
are what epochs before the last are recalibrated over; the last takes the whole training side."""


@dataclass(frozen=True)
class MomentumSweep:
    """Momenta to compare, and the seeds that pair them.

    Attributes
    ----------
    folder
        Holds study.json and the runs.
    recipe
        Its own momentum and seed are not used.
    momenta
        In Keras' sense; the others are compared with the first.
    """

    folder: Path
    recipe: Recipe
    momenta: tuple[float, ...]
    seeds: tuple[int, ...]


def sweep_momenta(
    sweep: MomentumSweep,
    store: Store,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Histories:
    """Train once per seed and evaluate every momentum, and recalibrated statistics, each epoch.

    A finished seed is kept; one that was cut short is trained again from its start. Machines
    that call this on one folder share the seeds, see `share_runs`.

    Returns
    -------
    Histories
        By the momentum's name, and `RECALIBRATED`.

    Raises
    ------
    KitError
        If the folder holds another study.
    """
    claim(sweep.folder, {"recipe": sweep.recipe, "momenta": list(sweep.momenta)}, store)
    folders = {f"sweep-{seed}": sweep.folder / "runs" / f"sweep-{seed}" for seed in sweep.seeds}
    seed_of = dict(zip(folders, sweep.seeds, strict=True))

    def train_one(name: str) -> Iterator[EpochResult]:
        shutil.rmtree(folders[name], ignore_errors=True)
        recipe = replace(sweep.recipe, seed=seed_of[name], bn_momentum=sweep.momenta[0])
        run = Run(recipe, store, folders[name], device=device, workers=workers)
        return _sweep_one(run, sweep.momenta)

    share_runs(
        list(folders),
        sweep.folder,
        train_one,
        is_done=lambda name: (folders[name] / "histories.json").exists(),
        storage=storage,
    )
    histories: dict[str, list[list[EpochResult]]] = {}
    for folder in folders.values():
        for name, history in _read_histories(folder).items():
            histories.setdefault(name, []).append(history)
    return histories


def train_momenta(
    sweep: MomentumSweep,
    store: Store,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Histories:
    """Train one run per momentum and seed, as the study's author did; return the histories.

    Raises
    ------
    KitError
        For a timm model, which has a momentum of its own.
    """
    recipe = sweep.recipe
    if recipe.is_backbone:
        raise KitError(f"{recipe.model} has a momentum of its own: leave out --independent")
    arms = {f"{momentum:g}": replace(recipe, bn_momentum=momentum) for momentum in sweep.momenta}
    return train_arms(
        Study(sweep.folder, arms, sweep.seeds),
        store,
        device=device,
        workers=workers,
        storage=storage,
    )


def _sweep_one(run: Run, momenta: Sequence[float]) -> Iterator[EpochResult]:
    """Train one seed, keeping every momentum's history and its last statistics."""
    bank = StatisticsBank(run.state.model, momenta)
    others = [momentum for momentum in momenta if not bank.is_own(momentum)]
    latest: dict[str, dict[str, Any]] = {}

    def evaluate(*data: Any) -> dict[str, Any]:
        own, *found = evaluate_each(_candidates(run, bank, others), *data)
        latest.update({f"{momentum:g}": own for momentum in momenta})
        latest.update(zip([*(f"{one:g}" for one in others), RECALIBRATED], found, strict=True))
        return own

    histories: dict[str, list[EpochResult]] = {}
    for result in run.train(progress=False, evaluate=evaluate):
        for name, figures in latest.items():
            histories.setdefault(name, []).append(replace(result, **figures))
        yield result
    _write_statistics(run.folder, bank, momenta)
    plain = {name: [asdict(one) for one in history] for name, history in histories.items()}
    write_text(run.folder / "histories.json", json.dumps(plain) + "\n")


def _candidates(run: Run, bank: StatisticsBank, momenta: Sequence[float]) -> Iterator[nn.Module]:
    """Yield the run's model with its own statistics, those of momenta, and recalibrated ones."""
    yield run.state.model
    for momentum in momenta:
        with bank.use(momentum):
            yield run.state.model
    is_last = run.state.epoch + 1 == run.recipe.epochs
    with bank.preserve():
        run.recalibrate(None if is_last else RECALIBRATION_BATCHES)
        yield run.state.model


def _read_histories(folder: Path) -> dict[str, list[EpochResult]]:
    plain = json.loads((folder / "histories.json").read_text("utf-8"))
    return {name: [EpochResult(**one) for one in history] for name, history in plain.items()}


def _write_statistics(folder: Path, bank: StatisticsBank, momenta: Sequence[float]) -> None:
    """Keep every momentum's running statistics under the names that the model gives its own."""
    tensors = {
        f"{momentum:g}/{name}.{kind}": tensor
        for momentum in momenta
        for name, pair in bank.statistics(momentum).items()
        for kind, tensor in zip(("running_mean", "running_var"), pair, strict=True)
    }
    with atomic_path(folder / "statistics.safetensors") as partial:
        partial.write_bytes(save(tensors))
