"""What the tiles are like: one pass over all of them, and the numbers it gives."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from kit import __version__, stats
from kit.base import CLASS_NAMES, Array, Floats, Indices, KitError, Pixels, competition, read_recipe
from kit.data import UNKNOWN, KnownSlides, Store, TileSet, recipe_holdout, stains
from kit.stats import Interval

NEAR_BLACK = 10
"""A tile is near black if no value of any channel reaches this."""
NEAR_WHITE = 245
"""A tile is near white if no value of any channel is below this."""
BALANCING_RECIPE = "notebook"

_BLOCK = 512
QUANTITIES = {
    "brightness": "Brightness",
    "haematoxylin": "Haematoxylin",
    "eosin": "Eosin",
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Measures:
    """What one pass over a split found.

    Attributes
    ----------
    tiles
        A row a tile: id, darkest and brightest (0 to 255, over all channels), brightness (mean
        of all channels, in [0, 1]), haematoxylin and eosin (mean optical density).
    histogram
        (3, 256): how often each value of red, green and blue occurs.
    """

    tiles: pd.DataFrame
    histogram: Indices


@dataclass(frozen=True)
class Exploration:
    """A store and what was found in it.

    Attributes
    ----------
    balanced
        Tiles that the recipe `notebook` draws: a row per class, a column per side; None if it
        cannot draw any.
    notes
        What could not be found out, and why.
    """

    store: Store
    train: Measures
    test: Measures
    balanced: pd.DataFrame | None
    slides: KnownSlides
    notes: tuple[str, ...] = ()


def explore_store(
    store: Store, slides: KnownSlides | None = None, *, progress: bool = True
) -> Exploration:
    """Measure every tile of a store, in one pass and in blocks.

    Parameters
    ----------
    slides
        From `find_slides`.
    """
    slides = slides or KnownSlides()
    balanced, notes = None, slides.notes
    try:
        balanced = _balance(store)
    except KitError as error:
        # Such as from a store of one class, which is worth looking at all the more.
        notes = [*notes, f"The recipe {BALANCING_RECIPE} cannot draw its tiles: {error}."]
    return Exploration(
        store,
        measure_tiles(store.train, description="train" if progress else None),
        measure_tiles(store.test, description="test" if progress else None),
        balanced,
        slides,
        tuple(notes),
    )


def measure_tiles(split: TileSet, *, description: str | None = None) -> Measures:
    """Measure every tile of a split; all follows from the histograms of its channels.

    The stains' densities are those of Ruifrok and Johnston's colour deconvolution, by least
    squares for two stains. It is linear in the optical density -log10(value / 255), zeros
    counting as one, so a tile's mean density follows from its mean optical density.

    Parameters
    ----------
    description
        Of a progress bar; none is drawn without it.
    """
    values = np.arange(256)
    optical_density = -np.log10(np.maximum(values, 1) / 255)
    histogram = np.zeros((competition.CHANNELS, 256), np.int64)
    blocks = []
    with tqdm(total=len(split), desc=description, unit=" tiles", disable=not description) as bar:
        for block in _blocks(split.tiles):
            counts = np.stack([_channel_histograms(tile) for tile in block])
            histogram += counts.sum(axis=0).astype(np.int64)
            present = counts.max(axis=1) > 0
            densities = _mean(counts, optical_density) @ np.linalg.pinv(stains.RUIFROK)
            blocks.append(
                pd.DataFrame(
                    {
                        "darkest": present.argmax(axis=1),
                        "brightest": 255 - present[:, ::-1].argmax(axis=1),
                        "brightness": _mean(counts, values / 255).mean(axis=1),
                        "haematoxylin": densities[:, 0],
                        "eosin": densities[:, 1],
                    }
                )
            )
            bar.update(len(block))
    tiles = pd.concat(blocks, ignore_index=True)
    tiles.insert(0, "id", split.ids)
    return Measures(tiles, histogram)


def exploration_numbers(found: Exploration) -> dict[str, Any]:
    """Return all that was found as plain values, as JSON holds them."""
    store = found.store
    return {
        "kit": __version__,
        "fingerprint": store.fingerprint,
        "is_standin": store.is_standin,
        "tiles": {"train": len(store.train), "test": len(store.test)},
        "classes": class_counts(found)["tiles"].to_dict(),
        "balanced_by_notebook": None if found.balanced is None else found.balanced.to_dict(),
        "channels": channels(found),
        "quantities": {
            quantity: {group: summary(values) for group, values in groups(found, quantity).items()}
            for quantity in QUANTITIES
        },
        "auc_of_one_number": {
            quantity: asdict(interval) for quantity, interval in separations(found).items()
        },
        "blank": blank_tiles(found).to_dict("records"),
        "duplicates": duplicates(store),
        "slides": None if found.slides.of_tiles is None else slide_table(found).to_dict("records"),
    }


def channel_statistics(histogram: Indices) -> tuple[Floats, Floats]:
    """Return the mean and the standard deviation of each channel, in [0, 1]."""
    values = np.arange(256) / 255
    mean = _mean(histogram, values)
    return mean, np.sqrt(_mean(histogram, values**2) - mean**2)


def duplicates(store: Store) -> dict[str, int]:
    """Count tiles that are there more than once: an id is the hash of its tile's pixels."""
    train, test = store.train.ids, store.test.ids
    return {
        "within train": len(train) - len(np.unique(train)),
        "within test": len(test) - len(np.unique(test)),
        "in train and test": len(np.intersect1d(train, test)),
    }


def _blocks(tiles: Pixels) -> Iterator[Pixels]:
    for start in range(0, len(tiles), _BLOCK):
        yield tiles[start : start + _BLOCK]


def _channel_histograms(tile: Pixels) -> npt.NDArray[np.float32]:
    """Count the values of each channel: (3, 256)."""
    channels = range(competition.CHANNELS)
    return np.stack(
        [cv2.calcHist([tile], [channel], None, [256], [0, 256]).ravel() for channel in channels]
    )


def _mean(counts: Array, values: Array) -> Floats:
    """Return the mean of `values` as often as `counts`, along the last axis, says."""
    return np.asarray(counts @ values / counts.sum(axis=-1), np.float64)


def _balance(store: Store) -> pd.DataFrame:
    holdout = recipe_holdout(store, read_recipe(BALANCING_RECIPE))
    sides = {"to train on": holdout.train, "to validate on": holdout.valid}
    counts = {side: np.bincount(store.labels[rows], minlength=2) for side, rows in sides.items()}
    return pd.DataFrame(counts, index=list(CLASS_NAMES))


def class_counts(found: Exploration) -> pd.DataFrame:
    counts = np.bincount(found.store.labels, minlength=2)
    return pd.DataFrame({"tiles": counts}, index=list(CLASS_NAMES))


def groups(found: Exploration, quantity: str) -> dict[str, Floats]:
    """Return one quantity of the negative, the positive and the test tiles, where there are any."""
    values = found.train.tiles[quantity].to_numpy()
    named = {name: values[found.store.labels == label] for label, name in enumerate(CLASS_NAMES)}
    named["test"] = found.test.tiles[quantity].to_numpy()
    return {name: group for name, group in named.items() if len(group)}


def summary(values: Floats) -> dict[str, float]:
    quantiles = {f"{100 * share:.0f} %": float(np.quantile(values, share)) for share in QUANTILES}
    return {"mean": float(values.mean()), "std": float(values.std()), **quantiles}


def channels(found: Exploration) -> dict[str, dict[str, list[float]]]:
    """Return the channels' mean and standard deviation, the published ones first."""
    sources = {
        "competition, as published": (competition.CHANNEL_MEAN, competition.CHANNEL_STD),
        "training tiles": channel_statistics(found.train.histogram),
        "test tiles": channel_statistics(found.test.histogram),
    }
    return {
        source: {"mean": np.array(mean).tolist(), "std": np.array(std).tolist()}
        for source, (mean, std) in sources.items()
    }


def separations(found: Exploration) -> dict[str, Interval]:
    """Return the AUC of telling the classes apart by one quantity alone, if there are two."""
    labels = found.store.labels
    if len(np.unique(labels)) < 2:
        return {}
    return {
        quantity: stats.auc_interval(labels, found.train.tiles[quantity]) for quantity in QUANTITIES
    }


def blank_tiles(found: Exploration) -> pd.DataFrame:
    """Return the near-black and near-white tiles, a row per tile; test tiles have no label."""
    labels = [CLASS_NAMES[label] for label in found.store.labels]
    train = found.train.tiles.assign(split="train", label=labels)
    test = found.test.tiles.assign(split="test", label="")
    tiles = pd.concat([train, test], ignore_index=True)
    black, white = tiles["brightest"] < NEAR_BLACK, tiles["darkest"] >= NEAR_WHITE
    tiles["kind"] = np.where(black, "near black", "near white")
    columns = ["id", "split", "label", "kind", "darkest", "brightest"]
    return tiles.loc[black | white, columns].reset_index(drop=True)


def slide_table(found: Exploration) -> pd.DataFrame:
    """Return a row per slide, the largest first."""
    tiles = found.train.tiles.assign(slide=found.slides.of_tiles, positive=found.store.labels)
    by_slide = tiles[tiles["slide"] != UNKNOWN].groupby("slide")
    table = pd.DataFrame({"tiles": by_slide.size(), "positive": by_slide["positive"].sum()})
    table.insert(1, "negative", table["tiles"] - table["positive"])
    table["share positive"] = table["positive"] / table["tiles"]
    means = by_slide[list(QUANTITIES)].mean()
    order = table["tiles"].sort_values(ascending=False, kind="stable").index
    return table.join(means).loc[order].reset_index()
