"""Comparisons that can be trusted: two arms, paired by seed.

A seed varies the split, the initial tensors, the data order and the augmentation, identically
in both arms. The last epoch is what counts, never the best of noisy ones.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kit import runs, stats
from kit.base import (
    EpochResult,
    FolderLock,
    KitError,
    Recipe,
    plain_values,
    read_recipe,
    write_text,
)
from kit.data.store import Store
from kit.runs import Run
from kit.study import sharing

Histories = Mapping[str, Sequence[Sequence[EpochResult]]]
"""For each arm, one history a seed, in the order of the seeds."""

PRIMARY = "validation AUC"
"""The figure that the verdict rests on; the competition is scored by it."""

# Arms whose holdouts differ cannot be paired.
_SAME_IN_BOTH = ("per_class", "holdout", "slides", "validate_on")


@dataclass(frozen=True)
class Study:
    """Two arms and the seeds that pair them.

    Attributes
    ----------
    folder
        Holds study.json and runs/ARM-SEED.
    arms
        Two recipes by name. Their own seeds are not used.
    """

    folder: Path
    arms: dict[str, Recipe]
    seeds: tuple[int, ...]

    def run_folder(self, arm: str, seed: int) -> Path:
        """Return where the run of an arm and a seed lies."""
        return self.folder / "runs" / f"{arm}-{seed}"


def parse_arms(specifications: Sequence[str], base: Recipe, given: set[str]) -> dict[str, Recipe]:
    """Read arms from NAME=RECIPE, a recipe's name or file; by default the two places of BatchNorm.

    Parameters
    ----------
    base
        The recipe of the command line.
    given
        Options named on the command line: they hold for both arms.

    Raises
    ------
    KitError
        If there are not two arms of different names, or their holdouts would differ, or the
        model has no place of BatchNorm to choose.
    """
    if not specifications:
        if base.is_backbone:
            raise KitError(
                f"the place of BatchNorm is fixed in {base.model}: name two recipes with --arm"
            )
        return {bn: dataclasses.replace(base, bn=bn) for bn in ("before", "after")}
    named = [specification.partition("=") for specification in specifications]
    if len({name for name, _, _ in named}) != 2 or len(named) != 2:
        raise KitError("a comparison has two arms: --arm NAME=RECIPE --arm OTHER=RECIPE")
    overrides = {name: getattr(base, name) for name in given if hasattr(base, name)}
    arms = {
        name: dataclasses.replace(read_recipe(recipe), **overrides) for name, _, recipe in named
    }
    first, second = arms.values()
    different = [key for key in _SAME_IN_BOTH if getattr(first, key) != getattr(second, key)]
    if different:
        raise KitError(f"the arms cannot be paired: their {different[0]} differs")
    return arms


def train(
    study: Study,
    store: Store,
    *,
    device: str = "auto",
    workers: int = 0,
    storage: str | None = None,
) -> Histories:
    """Train what is not trained yet, one run a seed and arm, and return all histories.

    Finished runs are kept and unfinished ones resumed, so that a stopped study goes on where
    it was. Machines that call this on one folder share the runs, see `sharing.train`.

    Raises
    ------
    KitError
        If the folder holds a study of other arms or other data.
    """
    claim(study.folder, {"arms": study.arms}, store)
    pairs = {
        study.run_folder(arm, seed).name: (arm, seed) for seed in study.seeds for arm in study.arms
    }

    def train_one(name: str) -> Iterable[EpochResult]:
        arm, seed = pairs[name]
        seeded = dataclasses.replace(study.arms[arm], seed=seed)
        return _train_one(seeded, store, study.run_folder(arm, seed), device, workers)

    sharing.train(
        list(pairs),
        study.folder,
        train_one,
        is_done=lambda name: (study.run_folder(*pairs[name]) / "metrics.json").exists(),
        storage=storage,
    )
    return {
        arm: [runs.read_history(study.run_folder(arm, seed)) for seed in study.seeds]
        for arm in study.arms
    }


def claim(folder: Path, recipes: Mapping[str, Any], store: Store) -> None:
    """Write what a study is about into its folder, or check that it is what is there.

    Raises
    ------
    KitError
        If the folder holds a study of something else.
    """
    plain = plain_values({**recipes, "data": store.fingerprint})
    path = folder / "study.json"
    with FolderLock(folder, wait=True):
        if path.exists() and json.loads(path.read_text("utf-8")) != plain:
            raise KitError(
                f"{folder} holds a study of other arms, options or data: choose another --out"
            )
        write_text(path, json.dumps(plain, indent=2) + "\n")


def run_figures(history: Sequence[EpochResult]) -> dict[str, float]:
    """Return what a study compares of one run; the last epoch's figures where not said otherwise.

    The spread is the standard deviation of the change from one epoch to the next, over all
    epochs: how much a validation curve jumps, whatever its trend.
    """
    last = history[-1]
    accuracies = np.array([result.valid_accuracy for result in history])
    return {
        PRIMARY: last.valid_auc,
        "validation accuracy": last.valid_accuracy,
        "training accuracy": last.train_accuracy,
        "validation loss": last.valid_loss,
        "training loss": last.train_loss,
        "generalisation gap (accuracy)": last.train_accuracy - last.valid_accuracy,
        "spread of validation accuracy": float(np.diff(accuracies).std())
        if len(history) > 2
        else 0.0,
        "smallest running variance": min(result.min_running_var for result in history),
    }


def figures_by_run(histories: Histories) -> dict[str, pd.DataFrame]:
    """Return for each arm a table with a row a seed and a column a figure."""
    return {
        arm: pd.DataFrame([run_figures(history) for history in seeds])
        for arm, seeds in histories.items()
    }


def paired_table(histories: Histories, first: str, second: str) -> pd.DataFrame:
    """Return each figure's mean and spread in two arms, and their difference paired by seed.

    The difference is the first arm less the second. `interval` goes with `p` (both from sign
    flips); the BCa bootstrap's interval stands beside it and is too narrow for few seeds.
    """
    tables = figures_by_run({arm: histories[arm] for arm in (first, second)})
    rows = {}
    for figure in tables[first].columns:
        pair = [tables[arm][figure] for arm in (first, second)]
        difference = stats.paired_difference(*pair)
        rows[figure] = {
            f"{first} mean": pair[0].mean(),
            f"{first} sd": pair[0].std(),
            f"{second} mean": pair[1].mean(),
            f"{second} sd": pair[1].std(),
            "n": difference.n,
            "difference": difference.difference.estimate,
            "interval": _bounds(difference.difference),
            "BCa interval": _bounds(difference.bca),
            "p": difference.p_value,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("figure")


def verdict(histories: Histories, first: str, second: str) -> str:
    """Say in one sentence which arm is better, by how much, how sure; or that none is shown."""
    values = {arm: table[PRIMARY] for arm, table in figures_by_run(histories).items()}
    swap = values[first].mean() < values[second].mean()
    better, worse = (second, first) if swap else (first, second)
    pair = stats.paired_difference(values[better], values[worse])
    if pair.p_value is None:
        return f"No conclusion is possible about {first} and {second}: {pair.difference.note}."
    size = f"{pair.difference.estimate:.4f} {PRIMARY}"
    how_sure = (
        f"95 % interval {_bounds(pair.difference)}, sign-flip p = {pair.p_value:.3f}, "
        f"{pair.n} seeds"
    )
    if pair.p_value > 1 - stats.CONFIDENCE:
        return (
            f"Not shown: {better} is ahead of {worse} by {size}, within what seeds alone may do "
            f"({how_sure})."
        )
    return f"{better} is better than {worse} by {size} ({how_sure})."


def pooled_predictions(study: Study) -> pd.DataFrame:
    """Return seed,id,label and each arm's rank for all seeds' held-out tiles.

    A rank is a probability's place among those of its run, from 0 to 1: two runs' probabilities
    are not calibrated to each other, and pooled as they are they would be compared.

    Raises
    ------
    KitError
        If the arms of a seed hold out different tiles.
    """
    tables = []
    for seed in study.seeds:
        valid = {arm: runs.read_valid(study.run_folder(arm, seed)) for arm in study.arms}
        first, second = valid.values()
        if not first[["id", "label"]].equals(second[["id", "label"]]):
            raise KitError(f"the arms of seed {seed} hold out different tiles")
        columns = {arm: table["probability"].rank(pct=True) for arm, table in valid.items()}
        tables.append(first[["id", "label"]].assign(seed=seed, **columns))
    return pd.concat(tables, ignore_index=True)


def delong_table(predictions: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Compare the two runs of each seed on their held-out tiles (DeLong et al. 1988)."""
    rows = []
    for seed, table in predictions.groupby("seed"):
        labels, one, two = (table[column].to_numpy() for column in ("label", first, second))
        test = stats.delong_test(labels, one, two)
        rows.append(
            {
                "seed": seed,
                f"{first} AUC": stats.auc(labels, one),
                f"{second} AUC": stats.auc(labels, two),
                "difference": test.difference.estimate,
                "interval": _bounds(test.difference),
                "p": test.p_value,
            }
        )
    return pd.DataFrame(rows).set_index("seed")


def pooled_table(
    predictions: pd.DataFrame, first: str, second: str, slides: Mapping[str, str] | None
) -> pd.DataFrame:
    """Compare the arms on all seeds' held-out tiles together, by bootstraps over tiles and slides.

    Tiles of one slide look alike, and one tile may be held out by several seeds: the naive
    interval over tiles takes them for independent, and flatters.

    Parameters
    ----------
    slides
        The slide of each id, where it is known.
    """
    units: dict[str, npt.NDArray[Any] | None] = {
        "tiles, as if independent (naive)": None,
        "tiles, each with all its seeds": predictions["id"].to_numpy(str),
    }
    if slides is not None:
        units["slides"] = predictions["id"].map(slides).to_numpy(str)
    labels, one, two = (predictions[column].to_numpy() for column in ("label", first, second))
    rows = {}
    for name, groups in units.items():
        test = stats.bootstrap_test(labels, one, two, groups)
        rows[name] = {
            "units": len(labels) if groups is None else len(np.unique(groups)),
            "difference": test.difference.estimate,
            "interval": _bounds(test.difference),
            "p": test.p_value,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("bootstrap over")


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame], verdict: str) -> None:
    """Write each table as NAME.csv, and the verdict as verdict.txt."""
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(lineterminator="\n"))
    write_text(folder / "verdict.txt", verdict + "\n")


def _train_one(
    recipe: Recipe, store: Store, folder: Path, device: str, workers: int
) -> Iterator[EpochResult]:
    """Yield each epoch's result, those of a resumed run from where it stands."""
    if not (folder / "config.json").exists():
        # Nothing was begun here but a write that a kill cut short.
        shutil.rmtree(folder, ignore_errors=True)
    run = Run(recipe, store, folder, device=device, workers=workers, resume=folder.exists())
    yield from run.train(progress=False)


def _bounds(interval: stats.Interval) -> str:
    if interval.low is None or interval.high is None:
        return interval.note
    return f"{interval.low:+.4f} to {interval.high:+.4f}"
