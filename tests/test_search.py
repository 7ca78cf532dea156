import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Barrier

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from conftest import FORKSERVER, Forked, competition_files, write_zip
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, TrialState

from kit import models, report, runs
from kit.base import (
    KitError,
    Recipe,
    StoppedError,
    exit_on_error,
    parse_recipe,
    read_recipe,
    recipe_values,
)
from kit.data import LostWorkerError, Store, open_store, pack_tiles
from kit.study import (
    IMPORTANCE_TRIALS,
    Search,
    SearchResult,
    run_search,
    search_space,
    sharing,
)
from kit.study.search import space as spaces
from kit.study.search import trials, worker
from kit.training import TrainingBar

RECIPE = Recipe(epochs=2, batch_size=16, widths=(4, 8, 8), seed=3)
FIXED = ("widths", "size", "augment")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("data")
    write_zip(data, competition_files(train=120, test=9))
    return pack_tiles(data)


def find(tiles: Store, out: Path, recipe: Recipe = RECIPE, **options: object) -> SearchResult:
    options = {"trials": 3, "fixed": FIXED, "device": "cpu", "progress": False} | options
    parts = {name: options.pop(name) for name in ("trials", "seeds", "fixed") if name in options}
    one = Search(folder=out, recipe=recipe, **parts)  # type: ignore[arg-type]
    return run_search(one, tiles, **options)  # type: ignore[arg-type]


def finished(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "trials.csv", dtype={"trial": str})


def open_study(out: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(out / "search.journal")))
    return optuna.load_study(study_name="search", storage=storage)


@pytest.fixture(scope="module")
def whole(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that nothing interrupted."""
    out = tmp_path_factory.mktemp("searches") / "whole"
    find(tiles, out, trials=12)
    return out


# --- The space ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "fixed"),
    [
        (Recipe(), ()),
        (Recipe(augment="stain"), ("augment",)),
        (Recipe(size=64, widths=(8, 8, 8, 8)), ("widths",)),
        (Recipe(size=192, widths=(4, 4, 4, 4, 4)), ("widths",)),
        *((Recipe(size=size, widths=(4, 4)), ("size",)) for size in (5, 16, 17, 52, 53, 161)),
    ],
)
def test_every_recipe_that_is_drawn_can_be_built(
    tiles: Store, recipe: Recipe, fixed: tuple[str, ...]
) -> None:
    space = search_space(recipe, tiles, fixed=fixed)
    study = optuna.create_study(sampler=RandomSampler(0))
    with torch.device("meta"):
        for _ in range(40):
            drawn = space.suggest(study.ask())
            assert parse_recipe(recipe_values(drawn), source="drawn") == drawn
            models.create_model(drawn)
            assert all(getattr(drawn, name) == getattr(recipe, name) for name in fixed)
            assert replace(drawn, **{name: getattr(recipe, name) for name in space.free}) == recipe


@pytest.mark.parametrize(
    "recipe",
    [
        read_recipe("notebook"),
        read_recipe("compact"),
        replace(read_recipe("backbone"), model="test_resnet", pretrained=False),
        # None of its values lies on the usual steps.
        Recipe(size=37, crop=70, batch_size=10, weight_decay=0.5, bn_momentum=0.1, widths=(5, 7)),
        Recipe(augment="full", stain_strength=3, bn_momentum=0),
    ],
)
def test_a_space_holds_its_recipe_and_lies_around_it(tiles: Store, recipe: Recipe) -> None:
    recipe = replace(recipe, batch_size=min(recipe.batch_size, 32))
    space = search_space(recipe, tiles)
    assert space.suggest(FixedTrial(space.own_parameters())) == recipe
    study = optuna.create_study(sampler=RandomSampler(0))
    drawn = [space.suggest(study.ask()) for _ in range(60)]
    assert {one.augment for one in drawn} == {"none", "d4", "stain", "colour", "full"}
    if not recipe.is_backbone:
        widths = np.array([one.widths[0] / recipe.widths[0] for one in drawn])
        assert 0.4 < widths.min() < 0.7
        assert 1.5 < widths.max() <= 2
    averaged = {"bn_momentum"} if recipe.ema or recipe.is_backbone else set()
    assert {"bn_momentum"} - space.free == averaged


@pytest.mark.parametrize(("size", "deepest"), [(5, 1), (16, 1), (17, 2), (53, 2)])
def test_a_deeper_network_is_tried_where_an_input_allows_it(
    tiles: Store, size: int, deepest: int
) -> None:
    space = search_space(Recipe(size=size, widths=(4, 4)), tiles, fixed=["size"])
    study = optuna.create_study(sampler=RandomSampler(0))
    drawn = [space.suggest(study.ask()).widths for _ in range(20)]
    assert max(len(widths) - 1 for widths in drawn) == deepest
    if deepest == 1:
        with pytest.raises(KitError, match="too small"):
            models.SmallCNN(size=size, widths=(4, 4, 4))


def test_only_what_a_backbone_uses_is_searched(tiles: Store) -> None:
    space = search_space(Recipe(model="test_resnet", size=96), tiles)
    assert space.free == {
        *("lr", "batch_size", "weight_decay", "crop", "size", "augment", "stain_strength")
    }
    study = optuna.create_study(sampler=RandomSampler(0))
    assert {space.suggest(study.ask()).size for _ in range(40)} == {96, 128, 160, 192, 224}
    fixed_size = search_space(Recipe(model="test_vit", size=160), tiles)
    assert fixed_size.free == space.free - {"size"}


def test_batches_fit_the_training_tiles(tiles: Store) -> None:
    assert search_space(Recipe(), tiles).batch_sizes == (32, 64)
    few = Recipe(per_class=20)
    assert "batch_size" not in search_space(few, tiles).free


def test_nothing_left_to_search_is_refused(tiles: Store) -> None:
    with pytest.raises(KitError, match="nothing is left to search"):
        search_space(Recipe(), tiles, fixed=(*spaces.SEARCHED, *spaces.SEARCHED_OWN))


# --- What a search leaves ----------------------------------------------------------------


def test_best_recipe_is_the_best_trials_and_reads_back(tiles: Store, whole: Path) -> None:
    result = find(tiles, whole, trials=12)
    table = finished(whole)
    complete = table[table["state"] == "complete"]
    assert (result.complete, result.pruned) == (len(complete), 12 - len(complete))
    assert 5 <= result.complete < 12
    best = complete.loc[complete["auc"].idxmax()]
    assert (result.auc, result.folder) == (best["auc"], whole / "trials" / best["trial"])
    assert runs.read_metrics(result.folder)["auc"]["estimate"] == pytest.approx(best["auc"])
    recipe = read_recipe(str(whole / "best.toml"))
    assert recipe == result.recipe == runs.load(result.folder, device="cpu").recipe
    assert (recipe.lr, recipe.epochs, recipe.widths) == (best["lr"], 2, (4, 8, 8))
    header = (whole / "best.toml").read_text().splitlines()[:2]
    assert f"best of 12 trials of the search in {whole}" in header[0]
    assert f"AUC {best['auc']:.4f} in trials/{best['trial']}" in header[0]
    assert "optimistic" in header[1]


def test_the_best_trial_is_judged_where_it_was_not_picked(
    tiles: Store, whole: Path, tmp_path: Path
) -> None:
    result = find(tiles, whole, trials=12)
    table, predictions = runs.read_predictions([folder for (folder,) in result.trials])
    judged = runs.judge_best(table["label"].to_numpy(), predictions)
    said = report.search_verdict(result, tiles)
    assert f"Picked on other tiles than it is judged on, the best has {judged}." in said
    assert f"which nothing picked, has {result.median:.4f}" in said
    away = replace(result, trials=((tmp_path / "away",), *result.trials))
    assert f"is not known: {tmp_path / 'away'} is not here" in report.search_verdict(away, tiles)


def test_each_seed_judges_the_trial_that_the_others_pick(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    result = find(tiles, tmp_path / "search", recipe, trials=2, seeds=2)
    aucs = np.array(
        [[runs.read_metrics(one)["auc"]["estimate"] for one in trial] for trial in result.trials]
    )
    expected = (aucs[aucs[:, 1].argmax(), 0] + aucs[aucs[:, 0].argmax(), 1]) / 2
    said = report.search_verdict(result, tiles)
    assert f"Picked by other seeds than it is judged with, the best has {expected:.4f}." in said


def test_a_pruned_trial_was_below_the_median_of_the_finished(whole: Path) -> None:
    trials = open_study(whole).trials
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.last_step == 1
        before = [
            other.intermediate_values[1]
            for other in trials[: trial.number]
            if other.state == TrialState.COMPLETE
        ]
        assert len(before) >= 5
        assert trial.intermediate_values[1] < pd.Series(before).median()
        folder = whole / "trials" / f"{trial.number:04d}"
        assert len(runs.read_history(folder)) == 1
    assert not list(whole.rglob("last.pt"))


def test_one_worker_and_one_seed_give_one_search(tiles: Store, whole: Path, tmp_path: Path) -> None:
    find(tiles, tmp_path / "again", trials=7)
    assert finished(tmp_path / "again").equals(finished(whole)[:7])
    find(tiles, tmp_path / "again", trials=12)
    assert finished(tmp_path / "again").equals(finished(whole))
    find(tiles, tmp_path / "other", replace(RECIPE, seed=4), trials=2)
    assert finished(tmp_path / "other")["lr"][0] == finished(whole)["lr"][0] == RECIPE.lr
    assert finished(tmp_path / "other")["lr"][1] != finished(whole)["lr"][1]


def test_importances_need_enough_trials(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    few = find(tiles, tmp_path / "search", recipe, trials=IMPORTANCE_TRIALS - 1)
    assert few.importances == {}
    enough = find(tiles, tmp_path / "search", recipe, trials=IMPORTANCE_TRIALS)
    parameters = {"lr", "batch_size", "weight_decay", "crop", "bn", "bn_momentum_in_pytorch"}
    assert enough.importances.keys() == parameters
    assert sum(enough.importances.values()) == pytest.approx(1)
    assert list(enough.importances.values()) == sorted(enough.importances.values(), reverse=True)
    written = json.loads((tmp_path / "search" / "importance.json").read_text())
    assert written == {"complete": 10, "needed": 10, "importances": enough.importances}


def test_a_trial_counts_by_what_it_keeps(tiles: Store, tmp_path: Path) -> None:
    """With averaged weights and eight views, which the curve that prunes has not."""
    result = find(tiles, tmp_path / "search", replace(RECIPE, ema=0.9, views=8), trials=1)
    assert result.auc == runs.read_metrics(result.folder)["auc"]["estimate"]
    assert result.auc != runs.read_history(result.folder)[-1].valid_auc


def test_the_page_of_several_seeds_reads_the_first_ones_run(tiles: Store, tmp_path: Path) -> None:
    result = find(tiles, tmp_path / "search", replace(RECIPE, epochs=1), trials=1, seeds=2)
    assert [folder.name for folder in result.runs] == ["seed-3", "seed-4"]
    verdict = report.search_verdict(result, tiles)
    assert "One finished trial leaves nothing to pick." in verdict
    assert verdict.startswith("The best of 1 finished trial reached")
    page = report.search_page(result, tmp_path / "search", tiles, verdict=verdict, command="search")
    assert page.title == "Search, 1 trial"
    assert "The best recipe" in [section.heading for section in page.sections]


def test_several_seeds_count_by_their_mean(tiles: Store, tmp_path: Path) -> None:
    result = find(tiles, tmp_path / "search", trials=1, seeds=2)
    folders = sorted(result.folder.iterdir())
    assert [folder.name for folder in folders] == ["seed-3", "seed-4"]
    aucs = [runs.read_metrics(folder)["auc"]["estimate"] for folder in folders]
    assert aucs[0] != aucs[1]
    assert result.auc == pytest.approx(sum(aucs) / 2, abs=1e-12)
    assert result.recipe.seed == 3


# --- Workers that die, and workers side by side ------------------------------------------


def work(
    data: Path, out: Path, recipe: Recipe, options: dict[str, object], start: Barrier, errors: Path
) -> None:
    torch.set_num_threads(1)
    sys.stderr = errors.open("w")
    start.wait()
    with exit_on_error():
        find(open_store(data), out, recipe, **options)


def start_workers(
    tiles: Store, out: Path, recipe: Recipe, *, count: int = 1, **options: object
) -> list[BaseProcess]:
    start = FORKSERVER.Barrier(count + 1)
    workers = []
    for number in range(count):
        errors = out.with_name(f"errors-{number}.txt")
        arguments = (tiles.folder.parent, out, recipe, options, start, errors)
        workers.append(Forked(target=work, args=arguments))
        workers[-1].start()
    start.wait()
    return workers


def stop_in_third_trial(worker: BaseProcess, out: Path, stop: signal.Signals) -> None:
    while worker.is_alive() and not (out / "trials" / "0002" / "history.jsonl").exists():
        time.sleep(0.002)
    assert worker.pid is not None
    os.kill(worker.pid, stop)
    worker.join()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_search_goes_on_as_if_never_stopped(
    tiles: Store, whole: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    out = tmp_path / "search"
    (worker,) = start_workers(tiles, out, RECIPE, trials=7)
    stop_in_third_trial(worker, out, stop)
    assert worker.exitcode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in (tmp_path / "errors-0.txt").read_text()
    assert open_study(out).trials[-1].state == TrialState.RUNNING
    trained = runs.read_history(out / "trials" / "0002")[0]

    find(tiles, out, trials=7)
    table = finished(out)
    assert runs.read_history(out / "trials" / "0002")[0].seconds == trained.seconds
    # A trial was begun twice, and kept its folder: those after it have later numbers.
    assert table["trial"].is_unique
    assert table.drop(columns="trial").equals(finished(whole)[:7].drop(columns="trial"))
    assert sorted(path.name for path in (out / "trials").iterdir()) == sorted(table["trial"])


def test_a_database_gives_up_workers_that_fall_silent(
    tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, url = tmp_path / "search", f"sqlite:///{tmp_path}/searches.db"
    (worker,) = start_workers(tiles, out, RECIPE, trials=4, storage=url)
    stop_in_third_trial(worker, out, signal.SIGKILL)
    assert worker.exitcode == -signal.SIGKILL
    monkeypatch.setattr(sharing, "GRACE", 2)
    find(tiles, out, trials=4, storage=url)
    assert sorted(finished(out)["trial"])[:3] == ["0000", "0001", "0002"]
    assert len(finished(out)) == 4
    assert not list(out.rglob("last.pt"))


def test_workers_side_by_side_do_each_trial_once(tiles: Store, tmp_path: Path) -> None:
    out = tmp_path / "search"
    recipe = replace(RECIPE, epochs=4)
    workers = start_workers(tiles, out, recipe, trials=6, count=2)
    for one in workers:
        one.join()
    assert [one.exitcode for one in workers] == [0, 0]
    table = finished(out)
    assert len(table) == 6
    assert sorted(path.name for path in (out / "trials").iterdir()) == sorted(table["trial"])
    assert table["lr"].is_unique
    assert all("folder" not in trial.user_attrs for trial in open_study(out).trials)
    reports = [
        operation["worker_id"]
        for operation in map(json.loads, (out / "search.journal").read_text().splitlines())
        if "step" in operation
    ]
    assert len(set(reports)) == 2


def test_a_trial_too_many_is_not_trained(tiles: Store, tmp_path: Path) -> None:
    """Two workers may both find room for the last trial: the second to begin one steps back."""
    space = search_space(RECIPE, tiles, fixed=FIXED)
    one = Search(folder=tmp_path, recipe=RECIPE, trials=1, fixed=FIXED)
    alone = worker._Worker(one, space, tiles, "cpu", 0, TrainingBar(shown=False))
    study = optuna.create_study(direction="maximize")
    first, second = study.ask(), study.ask()
    with pytest.raises(sharing.SurplusTrial):
        alone._objective(second)
    assert not (tmp_path / "trials").exists()
    assert 0 <= alone._objective(first) <= 1
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["0000"]


def test_a_trial_that_never_ends_an_epoch_is_given_up(tiles: Store, tmp_path: Path) -> None:
    out = tmp_path / "search"
    find(tiles, out, trials=1)
    study = open_study(out)
    for attempt in range(1, trials.ATTEMPTS + 1):
        dead = study.ask()
        assert dead.user_attrs.get("attempt", 1) == attempt
        sharing.give_up_dead(study, out / "trials.lock", trials.begin_again)
    assert [trial.state for trial in study.trials].count(TrialState.WAITING) == 0
    find(tiles, out, trials=2)
    assert finished(out)["trial"].tolist() == ["0000", f"{trials.ATTEMPTS + 1:04d}"]


def test_what_stops_a_worker_keeps_its_trial(tiles: Store, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "search"
    (out / "trials" / "0001" / "mine").mkdir(parents=True)
    with pytest.raises(KitError, match="0001 exists"):
        find(tiles, out)
    assert finished(out)["trial"].tolist() == ["0000"]
    (out / "trials" / "0001" / "mine").rmdir()
    find(tiles, out)
    assert finished(out)["lr"].tolist() == finished(whole)["lr"][:3].tolist()


# --- What can go wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"lr": 0.1}, {}, "its lr is 0.001, not 0.1"),
        ({"epochs": 3}, {}, "its epochs is 2, not 3"),
        ({}, {"seeds": 2}, "its seeds is 1, not 2"),
        ({}, {"fixed": ("widths", "size")}, "its searched is"),
        ({}, {"storage": "sqlite:///other.db"}, "its storage is 'search.journal', not 'sqlite"),
    ],
)
def test_another_search_is_refused(
    tiles: Store, whole: Path, change: dict[str, float], options: dict[str, object], message: str
) -> None:
    before = (whole / "search.journal").read_bytes()
    with pytest.raises(KitError, match=f"holds another search: {message}"):
        find(tiles, whole, replace(RECIPE, **change), **options)  # type: ignore[arg-type]
    assert (whole / "search.journal").read_bytes() == before


def test_other_data_is_refused(tiles: Store, whole: Path) -> None:
    with pytest.raises(KitError, match=f"its data is '{tiles.fingerprint}', not '0000"):
        find(replace(tiles, fingerprint="0" * 64), whole)


def test_a_database_is_shared_by_folders_of_one_name(tiles: Store, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/searches.db"
    here, there = tmp_path / "here" / "search", tmp_path / "there" / "search"
    find(tiles, here, trials=2, storage=url)
    result = find(tiles, there, trials=3, storage=url)
    assert finished(there)[:2].equals(finished(here))
    assert sorted(path.name for path in (there / "trials").iterdir()) == ["0002"]
    assert result.complete == 3
    find(tiles, tmp_path / "another", trials=1, storage=url)
    with pytest.raises(KitError, match="holds another search: its lr"):
        find(tiles, tmp_path / "elsewhere" / "search", replace(RECIPE, lr=0.1), storage=url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/search.db", "cannot keep the search in sqlite:////nowhere/search.db"),
        ("postgresql+none://me:secret@host/db", "cannot keep the search in host/db"),
        ("search.db", "--storage search.db is no address of a database"),
    ],
)
def test_unusable_storage_is_named(tiles: Store, tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(KitError, match=message) as caught:
        find(tiles, tmp_path / "search", storage=url)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "search" / "search.json").exists()


def test_damaged_journal_is_named(tiles: Store, tmp_path: Path) -> None:
    out = tmp_path / "search"
    find(tiles, out, trials=1)
    with (out / "search.journal").open("a") as journal:
        journal.write('{"op_code":\n{}\n')
    with pytest.raises(KitError, match=r"search\.journal is damaged"):
        find(tiles, out)


@pytest.mark.parametrize("left", [0.1, 0.9])
@pytest.mark.parametrize("tail", [b"", b"\0" * 20])
def test_a_search_goes_on_after_a_last_line_that_was_cut(
    tiles: Store, whole: Path, tmp_path: Path, left: float, tail: bytes
) -> None:
    out = tmp_path / "search"
    find(tiles, out, trials=1)
    journal = out / "search.journal"
    *lines, last = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines) + last[: int(left * len(last))] + tail)
    find(tiles, out, trials=2)
    find(tiles, out, trials=3)
    assert finished(out)["lr"].tolist() == finished(whole)["lr"][:3].tolist()


def test_a_search_that_only_diverges_says_so(tiles: Store, tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"none of 3 trials reached its last epoch: .*not a finite"):
        find(tiles, tmp_path / "search", replace(RECIPE, lr=1e30))
    assert not (tmp_path / "search" / "best.toml").exists()


def test_only_what_the_recipe_is_to_blame_for_is_pruned(
    tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception, cause: Exception | None = None) -> None:
        def train(*_: object, **__: object) -> Iterator[object]:
            raise error from cause
            yield

        monkeypatch.setattr(runs.Run, "train", train)

    fail(torch.OutOfMemoryError("no room"))
    with pytest.raises(KitError, match="none of 2 trials reached its last epoch: out of memory"):
        find(tiles, tmp_path / "memory", trials=2)
    fail(StoppedError("stopped"))
    with pytest.raises(StoppedError):
        find(tiles, tmp_path / "stopped", trials=2)
    fail(KitError("cannot write last.pt: No space left"), OSError())
    with pytest.raises(KitError, match="No space left"):
        find(tiles, tmp_path / "disk", trials=2)
    fail(LostWorkerError("a loader worker was killed"))
    with pytest.raises(LostWorkerError):
        find(tiles, tmp_path / "worker", trials=2)
    for name in ("disk", "stopped", "worker"):
        states = [trial.state for trial in open_study(tmp_path / name).trials]
        assert states == [TrialState.RUNNING]


@pytest.mark.parametrize("numbers", [{"trials": 0}, {"seeds": 0}])
def test_numbers_below_one_are_refused(
    tiles: Store, tmp_path: Path, numbers: dict[str, int]
) -> None:
    with pytest.raises(KitError, match="needs one or more of both"):
        find(tiles, tmp_path / "search", **numbers)


def test_a_recipe_without_a_limit_reads_back(tiles: Store, tmp_path: Path) -> None:
    result = find(tiles, tmp_path / "search", replace(RECIPE, per_class=None))
    best = read_recipe(str(tmp_path / "search" / "best.toml"))
    assert best == result.recipe
    assert best.per_class is None
