"""The page of an exploration, and its figures."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kit import __version__
from kit.base import CLASS_NAMES, TILE_SIZE, Indices, competition
from kit.data import Store
from kit.report import tile_plots
from kit.report.exploration import (
    BALANCING_RECIPE,
    NEAR_BLACK,
    NEAR_WHITE,
    QUANTILES,
    QUANTITIES,
    Exploration,
    blank_tiles,
    channels,
    class_counts,
    duplicates,
    groups,
    separations,
    slide_table,
    summary,
)
from kit.report.page import Drawing, Page, Section, Table, bounds

SHEET_TILES = 12


def exploration_figures(found: Exploration) -> dict[str, Drawing]:
    """Draw what was found, each figure under the name of its file."""
    drawn = {
        "chart-1-classes": Drawing(
            tile_plots.class_counts(
                class_counts(found), title="Chart 1: classes of the training tiles"
            ),
            "All training tiles.",
        ),
        **_sheets(found),
        "channels": Drawing(
            tile_plots.channel_histogram(
                found.train.histogram, title="Channels of the training tiles"
            ),
            "Every pixel counted. Thin upright lines are the competition's means.",
        ),
        **{quantity: _distribution(found, quantity) for quantity in QUANTITIES},
    }
    if found.balanced is not None:
        drawn["chart-2-balanced"] = Drawing(
            tile_plots.class_counts(found.balanced, title="Chart 2: classes after balancing"),
            f"What the recipe {BALANCING_RECIPE} draws with seed 0, to train and to validate on.",
        )
    if found.slides.of_tiles is not None:
        counts = slide_table(found).set_index("slide")
        drawn["slides"] = Drawing(
            tile_plots.classes_by_slide(counts, title="Classes by slide"), "All training tiles."
        )
    return drawn


def exploration_page(found: Exploration, drawn: Mapping[str, Drawing], command: str) -> Page:
    """Tell what was found.

    Parameters
    ----------
    drawn
        From `figures`.
    command
        What was typed to explore.
    """
    store, blank = found.store, blank_tiles(found)
    positive = float(np.mean(store.labels))
    copies = sum(duplicates(store).values())
    return Page(
        title="The tiles",
        verdict=f"{len(store.train):,} training tiles, {100 * positive:.1f} % of them positive, "
        f"and {len(store.test):,} test tiles; {len(blank):,} blank, {copies:,} exact duplicates.",
        limits=found.notes,
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


def _sheets(found: Exploration) -> dict[str, Drawing]:
    """Draw a random sheet of each class, and one of the blank training tiles if there are any."""
    rng = np.random.default_rng(0)
    sheets = {}
    for number, name in enumerate(CLASS_NAMES):
        members = np.flatnonzero(found.store.labels == number)
        if not len(members):
            continue
        rows = np.sort(rng.choice(members, min(SHEET_TILES, len(members)), replace=False))
        sheets[f"image-{number + 1}-{name}"] = _sheet(
            found, rows, f"Image {number + 1}: {name} tiles", "Drawn at random."
        )
    blank = found.train.tiles["id"].isin(blank_tiles(found)["id"])
    if blank.any():
        rows = np.flatnonzero(blank)[:SHEET_TILES]
        caption = "All of them." if len(rows) == blank.sum() else f"The first {len(rows)}."
        sheets["blank"] = _sheet(found, rows, "Blank training tiles", caption)
    return sheets


def _sheet(found: Exploration, rows: Indices, title: str, caption: str) -> Drawing:
    return Drawing(tile_plots.tile_sheet(found.store.train.tiles[rows], title=title), caption)


def _distribution(found: Exploration, quantity: str) -> Drawing:
    xlabel, caption = {
        "brightness": ("mean of all channels", "1 is white."),
        "haematoxylin": ("mean optical density", "It stains nuclei blue."),
        "eosin": ("mean optical density", "It stains the tissue between nuclei pink."),
    }[quantity]
    title = f"{QUANTITIES[quantity]} of a tile"
    figure = tile_plots.distributions(groups(found, quantity), xlabel=xlabel, title=title)
    return Drawing(figure, caption)


def _classes_section(drawn: Mapping[str, Drawing]) -> Section:
    return Section(
        "Classes",
        text=[
            "A network trained on unequal classes leans to the larger one. The study draws the "
            "same number of tiles of each class, and keeps a part of them for validation."
        ],
        drawings=[drawing for name, drawing in drawn.items() if name.startswith("chart-")],
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
        for source, statistics in channels(found).items()
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
        (quantity, group, *summary(values).values())
        for quantity in QUANTITIES
        for group, values in groups(found, quantity).items()
    ]
    quantiles = [f"{100 * share:.0f} %" for share in QUANTILES]
    frame = pd.DataFrame(rows, columns=["quantity", "tiles", "mean", "std", *quantiles])
    alone = [
        (name, interval.estimate, bounds(interval)) for name, interval in separations(found).items()
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
                "not at all; below 0.5 positive tiles have the lower number.",
            ),
        ],
        drawings=[drawn[quantity] for quantity in QUANTITIES],
    )


def _blank_section(blank: pd.DataFrame, drawn: Mapping[str, Drawing]) -> Section:
    rule = (
        f"Near black: no value of any channel reaches {NEAR_BLACK} of 255. Near white: no value is "
        f"below {NEAR_WHITE}. They stay in training."
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
    if found.slides.of_tiles is None:
        return Section(
            "Slides",
            text=[
                found.slides.note
                or "No table of slides: give a CSV of id,slide with --slides to see them."
            ],
        )
    return Section(
        "Slides",
        text=["Tiles of one slide look alike: keep slides apart when you validate (--slides)."],
        tables=[Table(slide_table(found), "Classes by slide, and the means of its tiles.")],
        drawings=[drawn["slides"]],
    )


def _rebuild_section(store: Store, command: str) -> Section:
    facts = [("data, SHA-256 of ids and labels", store.fingerprint), ("kit", __version__)]
    return Section(
        "How to rebuild this",
        code=command,
        tables=[Table(pd.DataFrame(facts, columns=["fingerprint", "value"]), "Made from.")],
    )
