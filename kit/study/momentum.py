"""A sweep of BatchNorm's momentum: one training, a set of running statistics for each momentum.

In training a BatchNorm normalises by its batch: momentum only decides how the running
statistics follow, which evaluation reads. So one training serves every momentum.

Momentum is given in Keras' sense, the share of a running statistic that is kept at each step;
PyTorch's is 1 minus it.
"""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor, nn

from kit import models, stats
from kit.base import EpochResult, KitError, Recipe, atomic_path, write_text
from kit.data.store import Store
from kit.runs import Run
from kit.study import sharing, study
from kit.study.study import Histories
from kit.training import training

RECALIBRATED = "recalibrated"
"""Name of the statistics computed over the training side after each epoch."""

RECALIBRATION_BATCHES = 4
"""About 1,000 tiles, where their statistics stop to change (arXiv:2105.07576, section 3). They
are what epochs before the last are recalibrated over; the last takes the whole training side."""

NOTEBOOK = {
    "0.99": (0.8409, 0.7505),
    "0.75": (0.8375, 0.8374),
    "0.5": (0.8431, 0.8449),
    "0.25": (0.8379, 0.8389),
}
"""Training and validation accuracy in the study's own table 2, from one run each."""

Statistics = dict[str, tuple[Tensor, Tensor]]


class StatisticsBank:
    """Sets of running statistics of one model, one a momentum, all updated by its training.

    Parameters
    ----------
    model
        Its BatchNorm layers' own statistics follow their own momentum, as without a bank.
    momenta
        In Keras' sense.
    """

    def __init__(self, model: nn.Module, momenta: Sequence[float]) -> None:
        self.model = model
        self.momenta = list(momenta)
        norms = models.batch_norms(model)
        self._own = {norm.momentum for norm in norms.values()}
        self._sets = {name: _Sets(norm, momenta) for name, norm in norms.items()}
        for name, norm in norms.items():
            norm.register_forward_hook(partial(self._follow, name))

    def is_own(self, momentum: float) -> bool:
        """Whether a momentum is the model's own, and so are its statistics."""
        return self._own <= {1 - momentum}

    @contextmanager
    def use(self, momentum: float) -> Iterator[None]:
        """Let the model evaluate with the statistics of a momentum."""
        with self.preserve():
            for name, (mean, var) in self.statistics(momentum).items():
                self._sets[name].write(mean, var)
            yield

    def statistics(self, momentum: float) -> Statistics:
        """Return the statistics of a momentum."""
        row = 1 + self.momenta.index(momentum)
        return {name: (*sets.rows[row].clone(),) for name, sets in self._sets.items()}

    @contextmanager
    def preserve(self) -> Iterator[None]:
        """Give the model its own statistics back at the end."""
        try:
            yield
        finally:
            for sets in self._sets.values():
                sets.write(*sets.rows[0])

    def _follow(self, name: str, *_: object) -> None:
        # Recalibrating puts the norms alone into training mode, and is no training.
        if self.model.training:
            self._sets[name].follow()


class _Sets:
    """The running statistics of one norm, a row a set: its own, then one a momentum.

    The norm itself is left to take in the whole of a batch's statistics, which are computed only
    once; from there each set follows as in PyTorch, whose momentum is the share that is new.
    """

    def __init__(self, norm: models.BatchNorm, momenta: Sequence[float]) -> None:
        assert norm.momentum is not None
        # In training the gradient does not read them, though autograd would think so.
        self.mean, self.var = _mean(norm).data, _var(norm).data
        new = [norm.momentum, *(1 - momentum for momentum in momenta)]
        self.new = self.mean.new_tensor(new).view(-1, 1, 1)
        self.old = self.mean.new_tensor([1 - share for share in new]).view(-1, 1, 1)
        self.rows = torch.stack([self.mean, self.var]).repeat(len(new), 1, 1)
        norm.momentum = 1.0

    def follow(self) -> None:
        """Let all sets follow a batch, and give the norm its own again."""
        batch = torch.stack([self.mean, self.var])
        self.rows.mul_(self.old).add_(batch * self.new)
        self.write(*self.rows[0])

    def write(self, mean: Tensor, var: Tensor) -> None:
        """Give the norm these statistics."""
        self.mean.copy_(mean)
        self.var.copy_(var)


def sweep(
    recipe: Recipe,
    momenta: Sequence[float],
    seeds: Sequence[int],
    store: Store,
    folder: Path,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Histories:
    """Train once a seed and evaluate every momentum, and the recalibrated statistics, each epoch.

    A finished seed is kept; one that was cut short is trained again from its start. Machines
    that call this on one folder share the seeds, see `sharing.train`.

    Returns
    -------
    Histories
        By the momentum's name, and `RECALIBRATED`.
    """
    study.claim(folder, {"recipe": recipe, "momenta": list(momenta)}, store)
    folders = {f"sweep-{seed}": folder / "runs" / f"sweep-{seed}" for seed in seeds}
    seed_of = dict(zip(folders, seeds, strict=True))

    def train_one(name: str) -> Iterator[EpochResult]:
        shutil.rmtree(folders[name], ignore_errors=True)
        seeded = dataclasses.replace(recipe, seed=seed_of[name], bn_momentum=momenta[0])
        return _sweep_one(
            Run(seeded, store, folders[name], device=device, workers=workers), momenta
        )

    sharing.train(
        list(folders),
        folder,
        train_one,
        is_done=lambda name: (folders[name] / "histories.json").exists(),
        storage=storage,
    )
    histories: dict[str, list[list[EpochResult]]] = {}
    for place in folders.values():
        for name, history in _read_histories(place).items():
            histories.setdefault(name, []).append(history)
    return histories


def independent(
    recipe: Recipe,
    momenta: Sequence[float],
    seeds: Sequence[int],
    store: Store,
    folder: Path,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Histories:
    """Train one run a momentum and seed, as the study's author did; return the histories.

    Raises
    ------
    KitError
        For a timm model, which has a momentum of its own.
    """
    if recipe.is_backbone:
        raise KitError(f"{recipe.model} has a momentum of its own: leave out --independent")
    arms = {
        f"{momentum:g}": dataclasses.replace(recipe, bn_momentum=momentum) for momentum in momenta
    }
    return study.train(
        study.Study(folder, arms, tuple(seeds)),
        store,
        device=device,
        workers=workers,
        storage=storage,
    )


def momentum_table(histories: Histories) -> pd.DataFrame:
    """Return each momentum's figures, and what each gains over the first, paired by seed."""
    tables = study.figures_by_run(histories)
    first = next(iter(histories))
    rows = {}
    for name, table in tables.items():
        row: dict[str, object] = {"n": len(table)}
        for figure in (
            "training accuracy",
            "validation accuracy",
            study.PRIMARY,
            "validation loss",
        ):
            row[figure] = table[figure].mean()
            row[f"{figure} sd"] = table[figure].std()
        row["spread of validation accuracy"] = table["spread of validation accuracy"].mean()
        if name != first:
            pair = stats.paired_difference(
                table["validation accuracy"], tables[first]["validation accuracy"]
            )
            row[f"accuracy gained over {first}"] = str(pair.difference)
            row["p"] = pair.p_value
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("momentum (Keras)")


def notebook_table(histories: Histories) -> pd.DataFrame:
    """Hold the notebook's differences of one run each against those of many seeds.

    `seed noise` is how far two single runs of one momentum lie apart by their seeds alone in
    95 of 100 cases: 1.96 times the root of two times the standard deviation between seeds.
    """
    tables = study.figures_by_run(histories)
    known = [name for name in NOTEBOOK if name in tables]
    rows = {}
    for name in known[1:]:
        for column, figure in enumerate(("training accuracy", "validation accuracy")):
            one, other = (tables[key][figure] for key in (name, known[0]))
            pair = stats.paired_difference(one, other)
            noise = 1.96 * 2**0.5 * max(one.std(), other.std())
            claimed = NOTEBOOK[name][column] - NOTEBOOK[known[0]][column]
            same = one.equals(other)
            rows[f"{name} against {known[0]}, {figure}"] = {
                "notebook": claimed,
                "here": "0, being the same training" if same else str(pair.difference),
                "p": pair.p_value,
                "seed noise": noise,
                "notebook's difference": (
                    "the seed's alone" if same else _explain(claimed, noise, pair)
                ),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("difference")


def verdict(histories: Histories) -> str:
    """Say in one sentence which momenta differ from the first, or that none is shown.

    Each is tested against the first; Bonferroni's correction keeps the chance of any false
    finding at 5 %.
    """
    table = momentum_table(histories)
    reference, seeds, comparisons = table.index[0], table["n"].iloc[0], len(table) - 1
    level = (1 - stats.CONFIDENCE) / comparisons
    about = f"{comparisons} comparisons with momentum {reference} in validation accuracy"
    if 2 / 2**seeds > level:
        needed = next(n for n in itertools.count(stats.MIN_SEEDS) if 2 / 2**n <= level)
        return (
            f"No conclusion is possible from {about}: {seeds} seeds cannot give a p of "
            f"{level:.3f} or less, {needed} could."
        )
    shown = table[table["p"] <= level]
    how_sure = f"sign-flip p at most {level:.3f} each, {seeds} seeds"
    if shown.empty:
        smallest = table["p"].min()
        return f"Not shown: {about} find none ({how_sure} is asked, the least is {smallest:.3f})."
    column = f"accuracy gained over {reference}"
    gains = ", ".join(f"{name} gains {row[column]}" for name, row in shown.iterrows())
    return f"In {about}, {gains} ({how_sure})."


def _sweep_one(run: Run, momenta: Sequence[float]) -> Iterator[EpochResult]:
    """Train one seed, keeping every momentum's history and its last statistics."""
    bank = StatisticsBank(run.state.model, momenta)
    others = [momentum for momentum in momenta if not bank.is_own(momentum)]
    latest: dict[str, dict[str, Any]] = {}

    def evaluate(*data: Any) -> dict[str, Any]:
        own, *found = training.evaluate_each(_candidates(run, bank, others), *data)
        latest.update({f"{momentum:g}": own for momentum in momenta})
        latest.update(zip([*(f"{one:g}" for one in others), RECALIBRATED], found, strict=True))
        return own

    histories: dict[str, list[EpochResult]] = {}
    for result in run.train(progress=False, evaluate=evaluate):
        for name, figures in latest.items():
            histories.setdefault(name, []).append(dataclasses.replace(result, **figures))
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


def _explain(claimed: float, noise: float, pair: stats.PairedDifference) -> str:
    if pair.p_value is not None and pair.p_value <= 1 - stats.CONFIDENCE:
        same = (claimed > 0) == (pair.difference.estimate > 0)
        return "shown" if same else "shown the other way round"
    return "within the seed's noise" if abs(claimed) <= noise else "not shown"


def _mean(norm: models.BatchNorm) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _var(norm: models.BatchNorm) -> Tensor:
    assert norm.running_var is not None
    return norm.running_var
