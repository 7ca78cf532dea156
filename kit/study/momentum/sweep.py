"""A sweep of BatchNorm's momentum: one training, a set of running statistics for each momentum.

In training a BatchNorm normalises by its batch: momentum only decides how the running
statistics follow, which evaluation reads. So one training serves every momentum.

Momentum is given in Keras' sense, the share of a running statistic that is kept at each step;
PyTorch's is 1 minus it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from kit import models, runs, training
from kit.base import EpochResult, KitError, Recipe, atomic_path, read_json, write_json
from kit.data import Store
from kit.runs import Run
from kit.study.arms import Study, train_arms
from kit.study.checks import check_kept, check_recipes
from kit.study.figures import Outcome, Outcomes, check_outcome, kept_figures
from kit.study.folder import claim_folder, settle_precision, surroundings
from kit.study.momentum.statistics_bank import StatisticsBank
from kit.study.opening import clear_folder
from kit.study.sharing import share_runs
from kit.training import TrainingBar

RECALIBRATED = "recalibrated"
"""Name of the statistics computed over the training side, which know no momentum."""

RECALIBRATION_BATCHES = 4
"""About 1,000 tiles, where their statistics stop to change (arXiv:2105.07576, section 3). They
are what the curve's epochs are recalibrated over; what is judged takes the whole training side."""

_OUTCOMES = "outcomes.json"


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

    def recipes(self) -> dict[Path, Recipe]:
        """Return each seed's recipe by its training's folder."""
        own = replace(self.recipe, bn_momentum=self.momenta[0])
        return {
            self.folder / "runs" / f"sweep-{seed}": replace(own, seed=seed) for seed in self.seeds
        }

    def as_arms(self) -> Study:
        """Return the study of one run per momentum and seed."""
        arms = {_name(one): replace(self.recipe, bn_momentum=one) for one in self.momenta}
        return Study(self.folder, arms, self.seeds)


def sweep_momenta(
    sweep: MomentumSweep,
    store: Store,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Outcomes:
    """Train once per seed and evaluate every momentum, and recalibrated statistics, each epoch.

    A finished seed is kept; one that was cut short is trained again from its start. Machines
    that call this on one folder share the seeds, see `share_runs`.

    Returns
    -------
    Outcomes
        By the momentum's name, and `RECALIBRATED`.

    Raises
    ------
    KitError
        If momentum does not matter to what the recipe keeps, a training cannot be, or the folder
        holds another study; or if a figure of a finished training is no number.
    """
    check_sweep(sweep)
    check_recipes(sweep.recipes().values(), store, device=device)
    settled = settle_precision(sweep.folder, {"sweep": sweep.recipe}, device)
    sweep = replace(sweep, recipe=settled["sweep"])
    recipes = sweep.recipes()
    _claim(sweep, store, device)
    check_kept(recipes, store, device=device)
    folders = {folder.name: folder for folder in recipes}

    def train_one(name: str, bar: TrainingBar) -> Iterator[EpochResult]:
        folder = folders[name]
        clear_folder(folder)
        run = Run(recipes[folder], store, folder, device=device, workers=workers)
        yield from _sweep_one(run, sweep.momenta, bar)
        # A figure that is no number is told after the first training, not after the last.
        _read_outcomes(folder)

    share_runs(
        list(folders),
        sweep.folder,
        train_one,
        is_done=lambda name: (folders[name] / _OUTCOMES).exists(),
        storage=storage,
    )
    outcomes = [_read_outcomes(folder) for folder in recipes]
    return {name: [one[name] for one in outcomes] for name in outcomes[0]}


def _claim(sweep: MomentumSweep, store: Store, device: str) -> None:
    shared = surroundings([sweep.recipe], store, device)
    what = {"recipe": sweep.recipe, "momenta": list(sweep.momenta)}
    claim_folder(sweep.folder, {"kind": "momentum sweep", **shared, **what})


def train_momenta(
    sweep: MomentumSweep,
    store: Store,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Outcomes:
    """Train one run per momentum and seed, as the notebook's author did; return the outcomes.

    Raises
    ------
    KitError
        As `sweep_momenta`; also for a model that is not the kit's, which has a momentum of its own.
    """
    check_sweep(sweep, independent=True)
    return train_arms(sweep.as_arms(), store, device=device, workers=workers, storage=storage)


def check_sweep(sweep: MomentumSweep, *, independent: bool = False) -> None:
    """Refuse momenta that have one name, and models that do not depend on them.

    Parameters
    ----------
    independent
        Whether a run is trained per momentum, see `train_momenta`.

    Raises
    ------
    KitError
        Also for a model that cannot be built.
    """
    recipe = sweep.recipe
    if independent and not recipe.is_built_in:
        raise KitError(f"{recipe.model} has a momentum of its own: leave out --independent")
    names = {_name(momentum) for momentum in sweep.momenta}
    if len(names) < 2 or len(names) < len(sweep.momenta):
        raise KitError(
            "a sweep takes two or more momenta that differ in their first six digits, not "
            f"{', '.join(map(str, sweep.momenta))}"
        )
    if recipe.ema:
        raise KitError(
            "momentum does not matter to what this recipe keeps: its averaged weights (--ema "
            f"{recipe.ema:g}) are evaluated with recalibrated statistics. --ema 0 keeps the last "
            "weights and sweeps their statistics"
        )
    model = models.create_model(replace(recipe, pretrained=False, weights=None))
    if not models.batch_norms(model):
        raise KitError(f"{recipe.model} has no BatchNorm, and so no momentum to sweep")


def _sweep_one(run: Run, momenta: Sequence[float], bar: TrainingBar) -> Iterator[EpochResult]:
    """Train one seed, keeping every momentum's outcome and its last statistics."""
    bank = StatisticsBank(run.state.model, momenta)
    others = [momentum for momentum in momenta if not bank.is_own(momentum)]
    names = [_name(momentum) for momentum in momenta] + [RECALIBRATED]
    histories: dict[str, list[EpochResult]] = {name: [] for name in names}
    latest: dict[str, dict[str, Any]] = {}

    def by_name(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        own = dict.fromkeys(names, found[0])
        return own | dict(zip([*map(_name, others), RECALIBRATED], found[1:], strict=True))

    def evaluate(*data: Any) -> dict[str, Any]:
        candidates = _candidates(run, bank, others, batches=RECALIBRATION_BATCHES)
        found = training.evaluate_each(candidates, *data)
        latest.update(by_name(found))
        return found[0]

    for result in run.train(progress=bar, evaluate=evaluate):
        for name, history in histories.items():
            history.append(replace(result, **latest[name]))
        yield result
    _write_statistics(run.folder, bank, momenta)
    kept = by_name(_kept_figures(run, _candidates(run, bank, others, batches=None)))
    outcomes = {name: Outcome(tuple(histories[name]), **kept[name]) for name in names}
    plain = {name: asdict(outcome) for name, outcome in outcomes.items()}
    write_json(run.folder / _OUTCOMES, plain)


def _candidates(
    run: Run, bank: StatisticsBank, momenta: Sequence[float], *, batches: int | None
) -> Iterator[nn.Module]:
    """Yield the run's model with its own statistics, those of momenta, and recalibrated ones."""
    yield run.state.model
    for momentum in momenta:
        with bank.use(momentum):
            yield run.state.model
    with bank.preserve():
        run.recalibrate(batches)
        yield run.state.model


def _kept_figures(run: Run, candidates: Iterable[nn.Module]) -> list[dict[str, float]]:
    """Return what a finished run's metrics.json would say of each of several models."""
    logits = training.predict_logits_each(
        [models.fuse_norms(model.eval()) for model in candidates],
        run.loaders.valid,
        run.state.normalize,
        views=run.recipe.views,
        device=run.device,
        dtype=run.dtype,
    )
    labels = run.store.labels[run.holdout.valid]
    return [kept_figures(runs.final_metrics(labels, one)) for one in logits]


def _read_outcomes(folder: Path) -> dict[str, Outcome]:
    """Read the outcome of every momentum from a training's folder."""
    try:
        outcomes = read_json(folder / _OUTCOMES, dict[str, Outcome], what="a sweep's outcomes")
    except KitError as error:
        raise KitError(f"{error}. Remove {folder}, and the same command trains it again") from error
    return {name: check_outcome(outcome, folder) for name, outcome in outcomes.items()}


def _write_statistics(folder: Path, bank: StatisticsBank, momenta: Sequence[float]) -> None:
    """Keep every momentum's running statistics under the names that the model gives its own."""
    tensors = {
        f"{_name(momentum)}/{name}.{kind}": tensor
        for momentum in momenta
        for name, pair in bank.statistics(momentum).items()
        for kind, tensor in zip(("running_mean", "running_var"), pair, strict=True)
    }
    with atomic_path(folder / "statistics.safetensors") as partial:
        partial.write_bytes(save(tensors))


def curve_name(name: str) -> str:
    """Return what a momentum's curve is called; recalibrated statistics know no momentum."""
    return name if name == RECALIBRATED else f"momentum {name}"


def _name(momentum: float) -> str:
    return f"{momentum:g}"
