from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit.base import KitError, Recipe
from kit.data import holdout, read_slides, write_split

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


IDS = np.array(["a" * 40, "b" * 40])


def test_slides_are_read_in_the_order_of_the_ids(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(f"slide,id\nB,{IDS[1]}\nA,{IDS[0]}\nC,{'c' * 40}\n")
    assert read_slides(tmp_path / "s.csv", IDS).tolist() == ["A", "B"]


def test_a_missing_slide_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"cannot read id,slide from .*none\.csv: No such file"):
        read_slides(tmp_path / "none.csv", IDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"id,slide\n{IDS[0]},A\n", f"no slide for 1 tiles, first {IDS[1]}"),
        (f"id,slide\n{IDS[0]},A\n{IDS[0]},B\n", "line 3: id 'a+' stands there twice"),
        (f"id,patient\n{IDS[0]},A\n", "line 1: the header is 'id,patient', not 'id,slide'"),
        ("", "line 1: the header is '', not 'id,slide'"),
        (f"id,slide\n{IDS[0]},\n{IDS[1]},A\n", "line 2: slide '' is empty"),
    ],
)
def test_bad_slide_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(KitError, match=message):
        read_slides(tmp_path / "s.csv", IDS)
