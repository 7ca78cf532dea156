"""Learning curves: how good recipes get with so many labelled tiles.

A point is a number of tiles, and each of its draws a run: the seed decides which tiles are drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from kit.base import KitError, Recipe
from kit.data import UNKNOWN, Store, find_slides
from kit.runs import check_run, check_trainable, read_metrics, still_taught
from kit.stats import CONFIDENCE
from kit.study.folder import settle_precision
from kit.study.opening import open_run
from kit.training import TrainingBar


@dataclass(frozen=True)
class LearningCurve:
    """Recipes, numbers of tiles, and draws of each number.

    Attributes
    ----------
    folder
        Holds runs/RECIPE-TILES-SEED.
    recipes
        By name. Their own seeds and numbers of tiles are not used.
    tiles
        None stands for all.
    """

    folder: Path
    recipes: dict[str, Recipe]
    tiles: tuple[int | None, ...]
    seeds: tuple[int, ...]

    def run_folder(self, name: str, tiles: int | None, seed: int) -> Path:
        """Return where a run lies."""
        return self.folder / "runs" / f"{name}-{tiles or 'all'}-{seed}"

    def runs(self) -> dict[Path, Recipe]:
        """Return the recipes of all runs by their folders, those of few tiles first."""
        return {
            self.run_folder(name, tiles, seed): replace(recipe, train_tiles=tiles, seed=seed)
            for tiles in self.tiles
            for name, recipe in self.recipes.items()
            for seed in self.seeds
        }


def train_curve(
    curve: LearningCurve, store: Store, *, device: str = "auto", bar: TrainingBar
) -> None:
    """Train the runs that are not finished, and go on with those that were begun.

    Raises
    ------
    KitError
        If one cannot be trained, before the first is; or a finished run is another one.
    """
    asked = [still_taught(recipe, folder) for folder, recipe in curve.runs().items()]
    check_trainable(asked, store, device=device)
    settled = settle_precision(curve.folder, curve.recipes, device)
    runs = replace(curve, recipes=settled).runs()
    finished = {folder for folder in runs if (folder / "metrics.json").is_file()}
    for folder in finished:
        check_run(folder, runs[folder], store, device=device)
    bar.skip(len(finished))
    for folder, recipe in runs.items():
        if folder not in finished:
            bar.label = folder.name
            run = open_run(recipe, store, folder, device=device, workers=0)
            for _ in run.train(progress=bar):
                pass
            auc = read_metrics(folder)["auc"]["estimate"]
            bar.say(f"{folder.name}: AUC {auc:.4f} on {len(run.holdout.valid):,} held-out tiles")


def curve_table(curve: LearningCurve, store: Store) -> pd.DataFrame:
    """Tabulate finished runs: a row per recipe and number of tiles.

    Returns
    -------
    DataFrame
        recipe, tiles, slides (that the drawn tiles are from, the mean over draws; missing where
        they are not known), draws, auc (their mean), low, high (the 95 % interval of that mean
        over draws, Student's t; missing for a single draw), aucs (of each draw).
    """
    return pd.DataFrame(list(_rows(curve, store)))


def _rows(curve: LearningCurve, store: Store) -> Iterator[dict[str, object]]:
    for name, recipe in curve.recipes.items():
        slides = find_slides(store, recipe.slides).of_tiles
        for tiles in curve.tiles:
            folders = [curve.run_folder(name, tiles, seed) for seed in curve.seeds]
            drawn = [_train_ids(folder) for folder in folders]
            aucs = [read_metrics(folder)["auc"]["estimate"] for folder in folders]
            low, high = _interval(aucs)
            yield {
                "recipe": name,
                "tiles": round(np.mean([len(ids) for ids in drawn])),
                "slides": None
                if slides is None
                else float(np.mean([_count(slides, store, ids) for ids in drawn])),
                "draws": len(aucs),
                "auc": float(np.mean(aucs)),
                "low": low,
                "high": high,
                "aucs": " ".join(f"{auc:.4f}" for auc in aucs),
            }


def _train_ids(folder: Path) -> list[str]:
    table = pd.read_csv(folder / "split.csv", dtype=str)
    ids: list[str] = table["id"][table["fold"] == "train"].tolist()
    return ids


def _count(slides: np.ndarray, store: Store, ids: Sequence[str]) -> int:
    own = slides[pd.Index(store.train.ids).get_indexer(pd.Index(ids))]
    return len(set(own) - {UNKNOWN})


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the bounds of the mean of draws."""
    if len(values) < 2:
        return None, None
    error = np.std(values, ddof=1) / len(values) ** 0.5
    margin = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error)
    mean = float(np.mean(values))
    return mean - margin, min(1.0, mean + margin)


def parse_tiles(words: Sequence[str]) -> tuple[int | None, ...]:
    """Read numbers of tiles, of which one may be "all".

    Raises
    ------
    KitError
        If a word is neither, or given twice.
    """
    numbers: list[int | None] = []
    for word in words:
        if word != "all" and not (word.isdecimal() and int(word) >= 2):
            raise KitError(f"--tiles {word}: give numbers of tiles from 2 on, and all")
        numbers.append(None if word == "all" else int(word))
    if len(set(numbers)) < len(numbers):
        raise KitError("--tiles names a number twice: name it once")
    return tuple(sorted(numbers, key=lambda number: number or 10**12))
