"""What fits into a time: formulas, without a clock."""

import itertools
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kit import report
from kit.base import (
    KitError,
    LateError,
    StoppedError,
    format_duration,
    handle_signals,
    parse_duration,
    read_recipe,
    stopped_after,
)
from kit.runs import Speed
from kit.stats import Interval
from kit.study.best import BestResult
from kit.study.best.parts import EncoderFile, list_parts
from kit.study.best.plan import (
    LEAST_SEEN,
    Candidate,
    Cost,
    Planned,
    Sides,
    affordable_epochs,
    candidate,
    cost_of,
    least_seconds,
    new_pace,
    plan_parts,
    shortened,
)
from kit.study.best.record import Clock, Entry, Journal, process_age, read_journal, write_journal

COMPACT = read_recipe("compact")
PROBE = read_recipe("probe")
SPEED = Speed(build=3.0, step=0.1, tile=0.002, fit=0.005)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("600", 600), ("0.5h", 1800)],
)
def test_durations_are_read_and_told(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(f"{seconds}s") == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "h", "-5m", "2 days", "5m2h", "1e3"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(KitError, match="is no duration above 0: write 2h, 90m"):
        parse_duration(text)


def test_a_duration_is_told_as_on_a_clock() -> None:
    assert [format_duration(s) for s in (0, 59.6, 61, 3600, 3725, -4)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "1:02:05",
        "0:00",
    ]


def test_a_run_costs_its_steps_its_holdout_and_its_end() -> None:
    """Written out: 4,810 tiles in batches of 32 are 150 steps, each epoch predicts the holdout."""
    recipe = replace(COMPACT, views=8)
    cost = cost_of(recipe, SPEED, Sides(train=4810, valid=1000, test=500))
    assert cost.epoch == pytest.approx(150 * 0.1 + 1000 * 0.002)
    # Built, recalibrated over the training tiles, and the holdout predicted in eight views.
    assert cost.fixed == pytest.approx(3 + 4810 * 0.002 + 8 * 1000 * 0.002)
    assert cost.test == pytest.approx(8 * 500 * 0.002)
    assert cost.seconds(6) == pytest.approx(cost.fixed + 6 * cost.epoch + cost.test)
    without = cost_of(replace(recipe, ema=0.0), SPEED, Sides(4810, 1000, 500))
    assert cost.fixed - without.fixed == pytest.approx(4810 * 0.002)


def test_folds_cost_their_number_and_a_probe_encodes_once_for_all() -> None:
    one, five = (Sides(4000, 1000, 500, runs) for runs in (1, 5))
    runs = [cost_of(COMPACT, SPEED, sides) for sides in (one, five)]
    assert runs[1].seconds(3) == pytest.approx(5 * runs[0].seconds(3))
    encoding = 5000 * 8 * 0.002
    for sides in (one, five):
        cost = cost_of(replace(PROBE, views=8), SPEED, sides)
        assert cost.fixed == pytest.approx(encoding + sides.runs * (3 + 4000 * 0.005))
        assert (cost.epoch, cost.test) == (0, pytest.approx(500 * 8 * 0.002))


@pytest.mark.parametrize(
    ("tiles", "epochs", "least"), [(4800, 24, 5), (4800, 16, 4), (176_000, 24, 1), (100, 8, 2)]
)
def test_the_least_epochs_show_enough_tiles_or_a_quarter_of_the_recipe(
    tiles: int, epochs: int, least: int
) -> None:
    found = candidate("part", replace(COMPACT, epochs=epochs), Cost(0, 1, 0), tiles)
    assert (found.least, found.most) == (least, epochs)
    assert least * tiles >= LEAST_SEEN or least * 4 >= epochs


def some(least: int = 4, most: int = 16, name: str = "part") -> Candidate:
    return Candidate(name, Cost(fixed=20, epoch=10, test=5), least, most)


def test_epochs_are_those_that_fit() -> None:
    for seconds, epochs in ((24.9, 0), (25, 0), (35, 1), (64.9, 3), (65, 4), (185, 16), (999, 16)):
        assert affordable_epochs(some(), seconds) == epochs
    frozen = Candidate("probe", Cost(20, 0, 5), 1, 1)
    assert [affordable_epochs(frozen, seconds) for seconds in (24.9, 25)] == [0, 1]


def test_the_first_take_what_they_can_use_and_what_does_not_fit_is_left_out() -> None:
    first, second, third = some(name="a"), some(name="b"), some(least=1, name="c")
    assert plan_parts([first, second, third], 64) == [Planned("c", 3, 55)]
    assert plan_parts([first, second, third], 185) == [Planned("a", 16, 185)]
    assert plan_parts([first, second, third], 230) == [Planned("a", 16, 185), Planned("c", 2, 45)]
    assert [one.name for one in plan_parts([first, second, third], 999)] == ["a", "b", "c"]
    assert plan_parts([], 100) == []


def test_no_plan_takes_longer_than_there_is() -> None:
    names = itertools.count()
    candidates = [
        Candidate(str(next(names)), Cost(fixed, epoch, test), least, 4 * least)
        for fixed, epoch, test, least in itertools.product((0, 7), (0.5, 30), (0, 11), (1, 5))
    ]
    for seconds in (1, 10, 33, 100, 470, 5000):
        plan = plan_parts(candidates, seconds)
        assert sum(one.seconds for one in plan) <= seconds
        by_name = {one.name: one for one in candidates}
        assert all(by_name[p.name].least <= p.epochs <= by_name[p.name].most for p in plan)
        # Nothing is left out that would still fit.
        rest = seconds - sum(one.seconds for one in plan)
        left_out = by_name.keys() - {one.name for one in plan}
        assert all(by_name[n].cost.seconds(by_name[n].least) > rest for n in left_out)


def test_the_least_time_is_the_quickest_part_s() -> None:
    assert least_seconds([some(), some(least=1), some(most=99)]) == 35


def test_the_pace_follows_what_parts_take_halfway() -> None:
    assert new_pace(1.0, expected=100, took=100) == 1
    assert new_pace(1.0, expected=100, took=400) == pytest.approx(2)
    assert new_pace(2.0, expected=100, took=25) == pytest.approx(1)
    # A single part may have met anything.
    assert new_pace(1.0, expected=100, took=10_000) == pytest.approx(2)
    assert new_pace(1.0, expected=100, took=1) == pytest.approx(0.5)
    assert Cost(1, 2, 3).times(2) == Cost(2, 4, 6)


def test_a_slow_training_is_shortened_to_what_is_left_and_never_lengthened() -> None:
    assert shortened(16, 4, pace=10, seconds=200) == 16
    assert shortened(16, 4, pace=10, seconds=59) == 9
    assert shortened(16, 4, pace=10, seconds=3) == 4
    assert shortened(16, 4, pace=10, seconds=-50) == 4
    assert shortened(16, 16, pace=10, seconds=0) == 16


def test_parts_are_a_probe_a_tuned_encoder_and_networks_of_other_kinds(tmp_path: Path) -> None:
    encoders = [
        EncoderFile(model, tmp_path) for model in ("tf_efficientnet_lite0", "tf_efficientnet_lite2")
    ]
    names = [part.name for part in list_parts(encoders, {})]
    assert names == [
        "probe-tf_efficientnet_lite0-96-1",
        "tuned-tf_efficientnet_lite0-0",
        "probe-tf_efficientnet_lite2-128-8",
        "compact-0",
        "tuned-tf_efficientnet_lite2-0",
        "probe-tf_efficientnet_lite0-128-8",
        "compact-plain-0",
    ]
    assert [part.name for part in list_parts([], {})] == ["compact-0", "compact-plain-0"]


def test_other_seeds_are_of_one_holdout(tmp_path: Path) -> None:
    """Only slides that are named stay those of the holdout whatever the seed."""
    named = {"slides": tmp_path / "slides.csv", "validate_on": ("A",), "seed": 7}
    parts = list_parts([], named)
    assert len({part.name for part in parts}) == len(parts)
    seeds = [part.recipe.seed for part in parts if part.name.startswith("compact-")]
    assert seeds == [7, 7, 8, 9, 10, 11]
    assert {part.recipe.validate_on for part in parts} == {("A",)}


def test_an_encoder_of_one_size_keeps_it_and_is_not_tuned(tmp_path: Path) -> None:
    parts = list_parts([EncoderFile("vit_tiny_patch16_224", tmp_path)], {})
    probes = {part.name: part.recipe.size for part in parts if part.recipe.is_probe}
    assert probes == {
        "probe-vit_tiny_patch16_224-224-1": 224,
        "probe-vit_tiny_patch16_224-224-8": 224,
    }
    assert not any(part.name.startswith("tuned") for part in parts)


def test_a_clock_counts_all_starts_and_nothing_between_them(tmp_path: Path) -> None:
    first = Clock(tmp_path, limit=100)
    assert first.used == pytest.approx(process_age(), abs=0.5)
    with first.ticking():
        time.sleep(0.05)
    used = first.used
    # Begun long ago, and left alone since.
    before, started = (tmp_path / "clock").read_text().split()
    (tmp_path / "clock").write_text(f"{before} {float(started) - 5000}\n")
    os.utime(tmp_path / "clock", (0, float(started) - 5000 + 60))
    second = Clock(tmp_path, limit=100)
    assert second.used == pytest.approx(60 + process_age(), abs=0.5)
    assert second.left == pytest.approx(40 - process_age(), abs=0.5)
    assert used < second.used


def test_a_damaged_clock_is_named(tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("half past nine\n")
    with pytest.raises(KitError, match="clock is damaged: choose another --out"):
        Clock(tmp_path, limit=100)


def test_a_journal_is_read_as_it_was_written_and_a_late_part_begins_again(tmp_path: Path) -> None:
    parts = {"a": Entry("finished", 3, 10.0, 1.0, 9.0), "b": Entry("late", 3, 10.0, 11.0)}
    journal = Journal(folds=0, precisions={"a": "fp32"}, speeds={"a": SPEED}, parts=parts)
    write_journal(tmp_path, journal)
    found = read_journal(tmp_path)
    assert found.parts["b"].state == "begun"
    found.parts["b"].state = "late"
    assert found == journal
    (tmp_path / "journal.json").write_text('{"folds": "five"}')
    with pytest.raises(KitError, match=r"journal.json is not the journal .* folds = 'five'"):
        read_journal(tmp_path)


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """0.7.0 kept the work of a step beside its time."""
    write_journal(tmp_path, Journal(speeds={"a": SPEED}))
    written = json.loads((tmp_path / "journal.json").read_text())
    written["speeds"]["a"]["work"] = 0.5
    (tmp_path / "journal.json").write_text(json.dumps(written))
    assert read_journal(tmp_path).speeds == {"a": SPEED}


def test_what_lasts_too_long_is_stopped_as_by_a_request_to_stop() -> None:
    start = time.monotonic()
    with pytest.raises(LateError), stopped_after(0.05):
        time.sleep(5)
    assert time.monotonic() - start < 4
    with pytest.raises(LateError), stopped_after(-1):
        time.sleep(5)
    asked = []

    def stop(number: int) -> None:
        asked.append(number)
        raise StoppedError("kept a checkpoint", by=number)

    with (
        pytest.raises(LateError, match="kept a checkpoint"),
        stopped_after(0.05),
        handle_signals(stop, signal.SIGTERM),
    ):
        time.sleep(5)
    assert asked == [signal.SIGTERM]


def test_a_request_to_stop_from_elsewhere_stays_one() -> None:
    with pytest.raises(StoppedError), stopped_after(5):
        # From here on, or on a busy machine it might come before there is anyone to take it.
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(4)
    # Nothing rings afterwards.
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_page_says_what_its_columns_are_of(tmp_path: Path) -> None:
    """A probe has no epochs; parts' intervals are over tiles, also where the mean's is by slide."""
    auc = Interval(0.9, 0.88, 0.92)
    found = Entry("finished", 1, 9.0, 0.0, 8.0, auc=auc, together=auc)
    parts = {"probe-a-96-1": found, "tuned-a-0": replace(found, epochs=7)}
    plan = [Planned("probe-b-96-1", 1, 9.0), Planned("compact-0", 12, 60.0)]
    result = BestResult(
        tmp_path, Clock(tmp_path, 60), 0, plan, parts, submission=tmp_path / "s.csv"
    )
    brought, to_come = report.best_page(result, "again", "submit").sections[1:3]
    for section, expected in ((brought, ["-", 7]), (to_come, ["-", 12])):
        (table,) = section.tables
        assert list(table.frame["epochs"].astype(object).fillna("-")) == expected
    assert "Intervals are for new tiles of these slides;" in brought.tables[0].caption
    (figure,) = [drawing.figure for drawing in brought.drawings]
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 <= figure.axes[0].get_window_extent().y0
