"""What is measured of a recipe is what a training of it then takes."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RECIPE, train

from kit import runs
from kit.base import KitError, read_recipe
from kit.data import Store

PROBE = replace(read_recipe("probe"), model="test_efficientnet", pretrained=False, size=96, views=8)


def test_a_training_is_measured_without_a_trace(tiles: Store) -> None:
    before = sorted(tiles.folder.parent.rglob("*"))
    speed = runs.measure_speed(RECIPE, tiles, device="cpu")
    assert min(speed.build, speed.step, speed.tile) > 0
    assert speed.fit == 0
    assert sorted(tiles.folder.parent.rglob("*")) == before
    # Also where an epoch has a single step.
    few = runs.measure_speed(replace(RECIPE, batch_size=50), tiles, device="cpu")
    assert few.step > 0


def test_a_measured_training_takes_about_that_long(tiles: Store, tmp_path: Path) -> None:
    """Within a factor of ten, beside whatever else runs: no unit is mistaken."""
    recipe = replace(RECIPE, epochs=6)
    speed = runs.measure_speed(recipe, tiles, device="cpu")
    run = train(recipe, tiles, tmp_path / "run")
    took = sum(epoch.seconds for epoch in run.history) / len(run.history)
    steps = len(run.holdout.train) // recipe.batch_size
    expected = steps * speed.step + len(run.holdout.valid) * speed.tile
    assert expected / 10 < took < expected * 10


def test_a_student_is_measured_with_its_teacher(trained: Path, tiles: Store) -> None:
    taught = replace(RECIPE, teacher=(trained,))
    assert runs.measure_speed(taught, tiles, device="cpu").step > 0
    with pytest.raises(KitError, match="gone holds no run"):
        runs.measure_speed(replace(RECIPE, teacher=(Path("gone"),)), tiles, device="cpu")


def test_features_that_are_there_cost_nothing(tiles: Store, tmp_path: Path) -> None:
    first = runs.measure_speed(PROBE, tiles, device="cpu")
    assert min(first.tile, first.fit, first.build) > 0
    assert first.step == 0
    train(PROBE, tiles, tmp_path / "run")
    runs.predict_each([tmp_path / "run"], tiles, runs.Manner(), device="cpu")
    assert runs.measure_speed(PROBE, tiles, device="cpu").tile == 0


def test_what_cannot_be_trained_is_told(tiles: Store) -> None:
    with pytest.raises(KitError, match="do not fill a batch"):
        runs.measure_speed(replace(RECIPE, batch_size=500), tiles, device="cpu")
