"""What the tiles are like: one pass over all of them, and the page that tells it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from kit import __version__, stats
from kit.base import CLASS_NAMES, TILE_SIZE, competition, read_recipe
from kit.data import split
from kit.data.store import Store, TileSet, UInt8Array
from kit.report import plots, report
from kit.report.plots import Floats
from kit.report.report import Drawing, Page, Section, Slides, Table
from kit.stats import Interval

NEAR_BLACK = 10
"""A tile is near black if no value of any channel reaches this."""
NEAR_WHITE = 245
"""A tile is near white if no value of any channel is below this."""
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Optical density by red, green and blue of haematoxylin and of eosin (Ruifrok and Johnston,
Analytical and Quantitative Cytology and Histology 23 (2001) 291-299, table 1)."""
SHEET_TILES = 12
BALANCING_RECIPE = "notebook"

_BLOCK = 512
_QUANTITIES = {
    "brightness": "Brightness",
    "haematoxylin": "Haematoxylin",
    "eosin": "Eosin",
}
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


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
    histogram: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Exploration:
    """A store and what was found in it.

    Attributes
    ----------
    balanced
        Tiles that the recipe `notebook` draws: a row a class, a column a side.
    slides
        The slide of each training tile, where a table says.
    """

    store: Store
    train: Measures
    test: Measures
    balanced: pd.DataFrame
    slides: Slides | None = None


def explore(store: Store, slides: Slides | None = None, *, progress: bool = True) -> Exploration:
    """Measure every tile of a store, in one pass and in blocks.

    Parameters
    ----------
    slides
        The slide of each training tile, in the store's order.

    Raises
    ------
    KitError
        If the recipe `notebook` cannot draw its tiles, as from a store of one class.
    """
    return Exploration(
        store,
        measure(store.train, description="train" if progress else None),
        measure(store.test, description="test" if progress else None),
        _balance(store),
        slides,
    )


def measure(split: TileSet, *, description: str | None = None) -> Measures:
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
            stains = _mean(counts, optical_density) @ np.linalg.pinv(STAINS)
            blocks.append(
                pd.DataFrame(
                    {
                        "darkest": present.argmax(axis=1),
                        "brightest": 255 - present[:, ::-1].argmax(axis=1),
                        "brightness": _mean(counts, values / 255).mean(axis=1),
                        "haematoxylin": stains[:, 0],
                        "eosin": stains[:, 1],
                    }
                )
            )
            bar.update(len(block))
    tiles = pd.concat(blocks, ignore_index=True)
    tiles.insert(0, "id", split.ids)
    return Measures(tiles, histogram)


def numbers(found: Exploration) -> dict[str, Any]:
    """Return all that was found as plain values, as JSON holds them."""
    store = found.store
    return {
        "kit": __version__,
        "fingerprint": store.fingerprint,
        "is_standin": store.is_standin,
        "tiles": {"train": len(store.train), "test": len(store.test)},
        "classes": _class_counts(found)["tiles"].to_dict(),
        "balanced_by_notebook": found.balanced.to_dict(),
        "channels": _channels(found),
        "quantities": {
            quantity: {
                group: _summary(values) for group, values in _groups(found, quantity).items()
            }
            for quantity in _QUANTITIES
        },
        "auc_of_one_number": {
            quantity: asdict(interval) for quantity, interval in _separations(found).items()
        },
        "blank": _blank(found).to_dict("records"),
        "duplicates": duplicates(store),
        "slides": None if found.slides is None else _slide_table(found).to_dict("records"),
    }


def channel_statistics(histogram: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
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


def figures(found: Exploration) -> dict[str, Drawing]:
    """Draw what was found, each figure under the name of its file."""
    drawn = {
        "chart-1-classes": Drawing(
            plots.class_counts(
                _class_counts(found), title="Chart 1: classes of the training tiles"
            ),
            "All training tiles.",
        ),
        "chart-2-balanced": Drawing(
            plots.class_counts(found.balanced, title="Chart 2: classes after balancing"),
            f"What the recipe {BALANCING_RECIPE} draws with seed 0, to train and to validate on.",
        ),
        **_sheets(found),
        "channels": Drawing(
            plots.channel_histogram(found.train.histogram, title="Channels of the training tiles"),
            "Every pixel counted. Thin upright lines are the competition's means.",
        ),
        **{quantity: _distribution(found, quantity) for quantity in _QUANTITIES},
    }
    if found.slides is not None:
        counts = _slide_table(found).set_index("slide")
        drawn["slides"] = Drawing(
            plots.classes_by_slide(counts, title="Classes by slide"), "All training tiles."
        )
    return drawn


def page(found: Exploration, drawn: Mapping[str, Drawing], command: str) -> Page:
    """Tell what was found.

    Parameters
    ----------
    drawn
        From `figures`.
    command
        What was typed to explore.
    """
    store, blank = found.store, _blank(found)
    positive = float(np.mean(store.labels))
    copies = sum(duplicates(store).values())
    return Page(
        title="The tiles",
        verdict=f"{len(store.train):,} training tiles, {100 * positive:.1f} % of them positive, "
        f"and {len(store.test):,} test tiles; {len(blank):,} blank, {copies:,} exact duplicates.",
        sections=[
            _classes_section(drawn),
            _sheets_section(drawn),
            _channels_section(found, drawn),
            _stains_section(found, drawn),
            _blank_section(blank, drawn),
            _duplicates_section(store),
            _slides_section(found, drawn),
            _rebuild_section(store, command),
        ],
        is_standin=store.is_standin,
    )


def _blocks(tiles: UInt8Array) -> Iterator[UInt8Array]:
    for start in range(0, len(tiles), _BLOCK):
        yield tiles[start : start + _BLOCK]


def _channel_histograms(tile: UInt8Array) -> npt.NDArray[np.float32]:
    """Count the values of each channel: (3, 256)."""
    channels = range(competition.CHANNELS)
    return np.stack(
        [cv2.calcHist([tile], [channel], None, [256], [0, 256]).ravel() for channel in channels]
    )


def _mean(counts: npt.NDArray[Any], values: npt.NDArray[Any]) -> Floats:
    """Return the mean of `values` as often as `counts`, along the last axis, says."""
    return np.asarray(counts @ values / counts.sum(axis=-1), np.float64)


def _balance(store: Store) -> pd.DataFrame:
    holdout = split.choose_holdout(read_recipe(BALANCING_RECIPE), store)
    sides = {"to train on": holdout.train, "to validate on": holdout.valid}
    counts = {side: np.bincount(store.labels[rows], minlength=2) for side, rows in sides.items()}
    return pd.DataFrame(counts, index=list(CLASS_NAMES))


def _class_counts(found: Exploration) -> pd.DataFrame:
    counts = np.bincount(found.store.labels, minlength=2)
    return pd.DataFrame({"tiles": counts}, index=list(CLASS_NAMES))


def _groups(found: Exploration, quantity: str) -> dict[str, Floats]:
    """Return one quantity of the negative, the positive and the test tiles."""
    values = found.train.tiles[quantity].to_numpy()
    groups = {name: values[found.store.labels == label] for label, name in enumerate(CLASS_NAMES)}
    return groups | {"test": found.test.tiles[quantity].to_numpy()}


def _summary(values: Floats) -> dict[str, float]:
    quantiles = {f"{100 * share:.0f} %": float(np.quantile(values, share)) for share in _QUANTILES}
    return {"mean": float(values.mean()), "std": float(values.std()), **quantiles}


def _channels(found: Exploration) -> dict[str, dict[str, list[float]]]:
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


def _separations(found: Exploration) -> dict[str, Interval]:
    """Return the AUC of telling the classes apart by one quantity alone."""
    labels = found.store.labels
    return {
        quantity: stats.auc_interval(labels, found.train.tiles[quantity])
        for quantity in _QUANTITIES
    }


def _blank(found: Exploration) -> pd.DataFrame:
    """Return the near-black and near-white tiles, a row a tile; test tiles have no label."""
    labels = [CLASS_NAMES[label] for label in found.store.labels]
    train = found.train.tiles.assign(split="train", label=labels)
    test = found.test.tiles.assign(split="test", label="")
    tiles = pd.concat([train, test], ignore_index=True)
    black, white = tiles["brightest"] < NEAR_BLACK, tiles["darkest"] >= NEAR_WHITE
    tiles["kind"] = np.where(black, "near black", "near white")
    columns = ["id", "split", "label", "kind", "darkest", "brightest"]
    return tiles.loc[black | white, columns].reset_index(drop=True)


def _slide_table(found: Exploration) -> pd.DataFrame:
    """Return a row a slide, the largest first."""
    tiles = found.train.tiles.assign(slide=found.slides, positive=found.store.labels)
    by_slide = tiles.groupby("slide")
    table = pd.DataFrame({"tiles": by_slide.size(), "positive": by_slide["positive"].sum()})
    table.insert(1, "negative", table["tiles"] - table["positive"])
    table["share positive"] = table["positive"] / table["tiles"]
    means = by_slide[list(_QUANTITIES)].mean()
    order = table["tiles"].sort_values(ascending=False, kind="stable").index
    return table.join(means).loc[order].reset_index()


def _sheets(found: Exploration) -> dict[str, Drawing]:
    """Draw a random sheet of each class, and one of the blank training tiles if there are any."""
    rng = np.random.default_rng(0)
    sheets = {}
    for number, name in enumerate(CLASS_NAMES):
        members = np.flatnonzero(found.store.labels == number)
        rows = np.sort(rng.choice(members, min(SHEET_TILES, len(members)), replace=False))
        sheets[f"image-{number + 1}-{name}"] = _sheet(
            found, rows, f"Image {number + 1}: {name} tiles", "Drawn at random."
        )
    blank = found.train.tiles["id"].isin(_blank(found)["id"])
    if blank.any():
        rows = np.flatnonzero(blank)[:SHEET_TILES]
        sheets["blank"] = _sheet(found, rows, "Blank training tiles", f"The first {len(rows)}.")
    return sheets


def _sheet(found: Exploration, rows: npt.NDArray[np.intp], title: str, caption: str) -> Drawing:
    return Drawing(plots.tile_sheet(found.store.train.tiles[rows], title=title), caption)


def _distribution(found: Exploration, quantity: str) -> Drawing:
    xlabel, caption = {
        "brightness": ("mean of all channels", "1 is white."),
        "haematoxylin": ("mean optical density", "It stains nuclei blue."),
        "eosin": ("mean optical density", "It stains the tissue between nuclei pink."),
    }[quantity]
    title = f"{_QUANTITIES[quantity]} of a tile"
    groups = _groups(found, quantity)
    return Drawing(plots.distributions(groups, xlabel=xlabel, title=title), caption)


def _classes_section(drawn: Mapping[str, Drawing]) -> Section:
    return Section(
        "Classes",
        text=[
            "A network trained on unequal classes leans to the larger one. The study draws the "
            "same number of tiles of each class, and keeps a part of them for validation."
        ],
        drawings=[drawn["chart-1-classes"], drawn["chart-2-balanced"]],
    )


def _sheets_section(drawn: Mapping[str, Drawing]) -> Section:
    return Section(
        "Tiles",
        text=[
            f"A tile is {TILE_SIZE} pixels square. Its label speaks of the outlined square of "
            f"{competition.CENTRE_SIZE} pixels alone: positive if any of it is tumour."
        ],
        drawings=[drawing for name, drawing in drawn.items() if name.startswith("image-")],
    )


def _channels_section(found: Exploration, drawn: Mapping[str, Drawing]) -> Section:
    rows = [
        (source, statistic, *values)
        for source, statistics in _channels(found).items()
        for statistic, values in statistics.items()
    ]
    frame = pd.DataFrame(rows, columns=["tiles", "statistic", "red", "green", "blue"])
    return Section(
        "Channels",
        tables=[Table(frame, "Statistics of all pixels, in [0, 1].")],
        drawings=[drawn["channels"]],
    )


def _stains_section(found: Exploration, drawn: Mapping[str, Drawing]) -> Section:
    rows = [
        (quantity, group, *_summary(values).values())
        for quantity in _QUANTITIES
        for group, values in _groups(found, quantity).items()
    ]
    quantiles = [f"{100 * share:.0f} %" for share in _QUANTILES]
    frame = pd.DataFrame(rows, columns=["quantity", "tiles", "mean", "std", *quantiles])
    alone = [
        (name, interval.estimate, report.bounds(interval))
        for name, interval in _separations(found).items()
    ]
    return Section(
        "Brightness and stain",
        text=[
            "Haematoxylin and eosin are unmixed by colour deconvolution (Ruifrok and Johnston "
            "2001) with their published colours, not with those of each laboratory. A network may "
            "learn these numbers in place of tumour: where train and test differ in them, or "
            "where one of them alone tells the classes apart, a holdout of single tiles flatters.",
        ],
        tables=[
            Table(frame, "Mean, standard deviation and quantiles over tiles."),
            Table(
                pd.DataFrame(alone, columns=["quantity", "AUC", "95 % interval"]),
                "How well one number alone tells positive from negative training tiles: 0.5 is "
                "not at all, below 0.5 the lower number is the positive one.",
            ),
        ],
        drawings=[drawn[quantity] for quantity in _QUANTITIES],
    )


def _blank_section(blank: pd.DataFrame, drawn: Mapping[str, Drawing]) -> Section:
    rule = (
        f"Near black: no value of any channel reaches {NEAR_BLACK} of 255. Near white: no value is "
        f"below {NEAR_WHITE}. They stay in training unless you leave them out."
    )
    return Section(
        "Blank tiles",
        text=[rule, *([] if len(blank) else ["There are none."])],
        tables=[Table(blank, "Blank tiles by id.")] if len(blank) else [],
        drawings=[drawn["blank"]] if "blank" in drawn else [],
    )


def _duplicates_section(store: Store) -> Section:
    frame = pd.DataFrame(duplicates(store).items(), columns=["where", "tiles too many"])
    return Section(
        "Exact duplicates",
        text=[
            "An id is the SHA-1 of its tile's pixels, proved when the tiles were packed: equal "
            "tiles have equal ids. Tiles that overlap or almost agree are not found this way."
        ],
        tables=[Table(frame, "Tiles that are there more than once.")],
    )


def _slides_section(found: Exploration, drawn: Mapping[str, Drawing]) -> Section:
    if found.slides is None:
        return Section(
            "Slides",
            text=["No table of slides: give a CSV of id,slide with --slides to see them."],
        )
    return Section(
        "Slides",
        text=["Tiles of one slide look alike: keep slides apart when you validate (--slides)."],
        tables=[Table(_slide_table(found), "Classes by slide, and the means of its tiles.")],
        drawings=[drawn["slides"]],
    )


def _rebuild_section(store: Store, command: str) -> Section:
    facts = [("data, SHA-256 of ids and labels", store.fingerprint), ("kit", __version__)]
    return Section(
        "How to rebuild this",
        code=command,
        tables=[Table(pd.DataFrame(facts, columns=["fingerprint", "value"]), "Made from.")],
    )
