from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit.base import KitError, Recipe
from kit.data import (
    UNKNOWN,
    Store,
    TileSet,
    check_holdouts,
    holdout,
    write_split,
)

RNG = np.random.default_rng(0)
LABELS = (RNG.random(1000) < 0.4).astype(np.int64)
TABLE = Path("slides.csv")
SLIDES = np.array([f"S{number:02}" for number in RNG.integers(0, 20, 1000)])


def test_sides_are_balanced_stratified_and_disjoint() -> None:
    chosen = holdout(LABELS, Recipe(holdout=0.3, per_class=200, seed=0))
    assert len(chosen.train) == 280
    assert len(chosen.valid) == 120
    assert LABELS[chosen.train].mean() == LABELS[chosen.valid].mean() == 0.5
    assert not set(chosen.train) & set(chosen.valid)


def test_the_smaller_class_limits_the_draw() -> None:
    chosen = holdout(LABELS, Recipe(per_class=25_000))
    assert len(chosen.train) + len(chosen.valid) == 2 * LABELS.sum()


def test_without_a_limit_every_tile_is_taken() -> None:
    chosen = holdout(LABELS, Recipe(per_class=None))
    assert sorted([*chosen.train, *chosen.valid]) == list(range(1000))


def test_seed_decides_the_draw() -> None:
    first, again, other = (holdout(LABELS, Recipe(per_class=200, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train, again.train)
    assert set(first.train) != set(other.train)


@pytest.mark.parametrize("seed", range(5))
def test_no_slide_stands_on_both_sides(seed: int) -> None:
    chosen = holdout(LABELS, Recipe(holdout=0.3, seed=seed), SLIDES)
    assert not set(SLIDES[chosen.train]) & set(SLIDES[chosen.valid])
    assert 0.2 < len(chosen.valid) / len(LABELS) < 0.4


def test_named_slides_validate_with_all_their_tiles() -> None:
    chosen = holdout(
        LABELS, Recipe(per_class=100, slides=TABLE, validate_on=("S03", "S07")), SLIDES
    )
    assert set(chosen.valid) == set(np.flatnonzero(np.isin(SLIDES, ["S03", "S07"])))
    assert LABELS[chosen.train].mean() == 0.5
    assert len(chosen.train) == 200


@pytest.mark.parametrize(
    ("recipe", "slides", "message"),
    [
        (
            Recipe(slides=TABLE, validate_on=("S99",)),
            SLIDES,
            "no slide S99 in the table: there are S00",
        ),
        (Recipe(), np.full(1000, "S1"), "all tiles are of one slide"),
        (Recipe(holdout=0.0001), None, "cannot hold out"),
        (
            Recipe(slides=TABLE, validate_on=("A",)),
            np.where(LABELS == 1, "A", "B"),
            "no tile of class 1",
        ),
    ],
)
def test_impossible_holdout_is_refused(
    recipe: Recipe, slides: np.ndarray | None, message: str
) -> None:
    with pytest.raises(KitError, match=message):
        holdout(LABELS, recipe, slides)


def test_empty_class_is_refused() -> None:
    with pytest.raises(KitError, match=r"class 1|cannot hold out"):
        holdout(np.zeros(100, np.int64), Recipe(per_class=10))


def test_split_file_names_the_chosen_tiles(tmp_path: Path) -> None:
    ids = np.array([f"{number:040x}" for number in range(1000)])
    chosen = holdout(LABELS, Recipe(per_class=50))
    write_split(tmp_path / "split.csv", ids, chosen)
    table = pd.read_csv(tmp_path / "split.csv", dtype=str)
    assert list(table.columns) == ["id", "fold"]
    assert table["id"][table["fold"] == "train"].tolist() == ids[chosen.train].tolist()
    assert table["id"][table["fold"] == "valid"].tolist() == ids[chosen.valid].tolist()


def test_tiles_without_a_slide_are_on_neither_side() -> None:
    slides = np.where(np.arange(1000) < 700, SLIDES, UNKNOWN)
    chosen = holdout(LABELS, Recipe(per_class=None), slides)
    assert sorted([*chosen.train, *chosen.valid]) == list(range(700))


# One slide holds all positive tiles, so that only one fold of five can be held out.
LOPSIDED = np.where(LABELS == 1, "S", np.array([f"N{row % 9}" for row in range(1000)]))


@pytest.fixture
def lopsided(tmp_path: Path) -> tuple[Store, Path]:
    ids = np.array([f"{number:040x}" for number in range(1000)])
    table = tmp_path / "slides.csv"
    pd.DataFrame({"id": ids, "slide": LOPSIDED}).to_csv(table, index=False)
    tiles = np.zeros((1000, 1, 1, 3), np.uint8)
    train = TileSet(tiles, ids, LABELS)
    return Store(tmp_path, tmp_path / "store", train, train, "", is_standin=False), table


def test_all_folds_and_seeds_are_checked_before_the_first_is_trained(
    lopsided: tuple[Store, Path],
) -> None:
    store, table = lopsided
    recipes = [Recipe(seed=seed) for seed in range(3)]
    check_holdouts(store, recipes)
    by_slide = Recipe(slides=table, folds=5, batch_size=8)
    folds = [replace(by_slide, fold=fold) for fold in range(5)]
    with pytest.raises(
        KitError, match=r"^fold \d of 5, seed 0: the .* side has no tile of class 1"
    ):
        check_holdouts(store, folds)
    with pytest.raises(KitError, match=r"^seed 2: 7\d+ training tiles do not fill a batch of 999"):
        check_holdouts(store, [*recipes, Recipe(seed=2, batch_size=999, per_class=None)])
