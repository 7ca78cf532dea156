"""The best submission within a time: real searches on few tiles, also killed and slow ones."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import RECIPE, competition_files, contents, kernel, start_kernel, write_zip
from safetensors.torch import save_model

from kit import runs
from kit.base import KitError, LateError, Recipe
from kit.data import Store, pack_tiles
from kit.kaggle import validate_submission
from kit.models import cached_weights
from kit.study import BestSearch, Clock, find_encoders, seek_best
from kit.study.best.costs import Portfolio
from kit.study.best.mean import predict_mean
from kit.study.best.parts import Part
from kit.study.best.plan import Cost
from kit.study.best.record import Journal, process_age
from kit.study.best.training import PartTraining
from kit.training import TrainingBar, choose_precision

MODEL = "test_efficientnet"
_BUSY = "import sys, time\nend = time.time() + float(sys.argv[1])\nwhile time.time() < end: pass"
# Seconds for what a killed search still does; ten are kept for its end.
MORE = 14


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """So few tiles that a part takes moments."""
    folder = tmp_path_factory.mktemp("data")
    write_zip(folder, competition_files(train=48, test=4))
    return pack_tiles(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of a few thousand parameters, so that its parts take moments."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(timm.create_model(MODEL), str(path))
    return path


def options(tiles: Store, out: Path, weights: Path, limit: str) -> list[object]:
    where = ("--data", tiles.data, "--out", out, "--device", "cpu")
    return [*where, "--encoder", f"{MODEL}={weights}", "--time-limit", limit]


def journal(out: Path) -> dict[str, dict[str, object]]:
    path = out / "journal.json"
    parts: dict[str, dict[str, object]] = json.loads(path.read_text())["parts"]
    return parts


def test_a_part_is_planned_in_the_faster_precision_for_all_its_seeds(
    tiles: Store, tmp_path: Path
) -> None:
    recipes = {
        "open-0": RECIPE,
        "open-1": replace(RECIPE, seed=1),
        "fixed": replace(RECIPE, precision="fp32"),
    }
    parts = [Part(name, recipe) for name, recipe in recipes.items()]
    portfolio = Portfolio(tmp_path, parts, tiles, "cpu", Journal(folds=0))
    assert portfolio.cost("open-0").epoch > 0
    found = portfolio.journal.precisions
    has_bf16 = choose_precision("auto", torch.device("cpu")) == torch.bfloat16
    assert found["open-0"] in (("fp32", "bf16") if has_bf16 else ("auto",))
    assert found == dict.fromkeys(("open-0", "open-1"), found["open-0"])
    assert portfolio.recipe("open-1").precision == found["open-0"]
    assert portfolio.recipe("fixed") == recipes["fixed"]


def test_a_killed_search_goes_on_within_its_limit_and_ends_with_a_submission(
    few: Store, weights: Path, tmp_path: Path
) -> None:
    """Killed in its second part; what it had used counts, and its parts are not trained again."""
    out, log = tmp_path / "best", tmp_path / "log"
    log.mkdir()
    process = start_kernel("best", *options(few, out, weights, "20m"), log=log)
    while not (out / "journal.json").exists() or len(journal(out)) < 2:
        assert process.is_alive(), (log / "stderr").read_text()
        time.sleep(0.02)
    first = out / "parts" / next(iter(journal(out))) / "metrics.json"
    kept = first.stat().st_mtime_ns
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    used = Clock(out, limit=0).used - process_age()
    limit = int(used) + MORE
    words, start = options(few, out, weights, f"{limit}s"), time.monotonic()
    done = kernel("best", *words)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < MORE + 2
    assert first.stat().st_mtime_ns == kept
    validate_submission(out / "submission.csv", list(few.test.ids))
    check_ensemble(out, done.stdout)
    page = (out / "report.html").read_text()
    assert "What each part brought" in page
    assert f"submit.py --file {out}/submission.csv" in page
    # There is no time left: it only tells what there is.
    before = (out / "submission.csv").read_bytes()
    again = kernel("best", *options(few, out, weights, "1s"))
    assert again.returncode == 0, again.stderr
    assert (out / "submission.csv").read_bytes() == before


def test_what_was_predicted_counts_where_no_time_is_left(
    tiles: Store, trained: Path, tmp_path: Path
) -> None:
    part = shutil.copytree(trained, tmp_path / "parts/one")
    chosen = runs.Ensemble({str(part): 1.0}, "probability")
    with pytest.raises(LateError):
        predict_mean(chosen, tiles, tmp_path, device="cpu", seconds=0)
    first, again = (
        predict_mean(chosen, tiles, tmp_path, device="cpu", seconds=seconds) for seconds in (600, 0)
    )
    np.testing.assert_array_equal(first[part], again[part])


def check_ensemble(out: Path, said: str) -> None:
    """The mean is of finished parts, and its figure that of tiles which did not choose it."""
    chosen = runs.read_ensemble(out / "ensemble.json")
    assert all((Path(run) / "metrics.json").exists() for run in chosen.weights)
    submitted = runs.read_submission(out / "submission.csv")
    assert submitted is not None
    figures = json.loads((out / "ensemble.json").read_text())["figures"]
    if figures:
        assert f"AUC {figures['auc']['estimate']:.4f}" in said
        folders = [Path(run) for run in sorted((out / "parts").glob("*")) if runs_there(run)]
        assert len(folders) >= 2


def runs_there(folder: Path) -> bool:
    return (folder / "metrics.json").exists() and not folder.name.endswith("-refit")


def test_a_limit_that_is_too_short_names_the_least_one(
    tiles: Store, weights: Path, tmp_path: Path
) -> None:
    done = kernel("best", *options(tiles, tmp_path / "best", weights, "3s"))
    assert done.returncode == 1
    message = r"error: --time-limit 0:03 is too short for any part: give (\d+)m or more, and the"
    assert re.match(message, done.stderr.splitlines()[-1]), done.stderr
    assert not (tmp_path / "best/submission.csv").exists()


def training(tiles: Store, folder: Path, recipe: Recipe, seconds: float) -> PartTraining:
    return PartTraining(
        recipe=recipe,
        store=tiles,
        folder=folder,
        device="cpu",
        cost=Cost(0, 0, 0),
        end=time.monotonic() + seconds,
        label=lambda: "a part",
    )


@pytest.mark.parametrize("folds", [None, 2])
def test_a_machine_that_is_slower_than_measured_gets_fewer_epochs(
    tiles: Store, tmp_path: Path, folds: int | None
) -> None:
    """It ends as a run of so many epochs, each fold with its share of the time."""
    recipe = replace(RECIPE, epochs=100_000, schedule="one-cycle", folds=folds)
    with TrainingBar() as bar:
        training(tiles, tmp_path / "part", recipe, 2).train(bar)
    for run in runs.members(tmp_path / "part"):
        config = runs.read_config(run)
        assert config["recipe"]["epochs"] == len(runs.read_history(run)) < recipe.epochs
        # It may have been slow more than once.
        while "resumed_from" in config:
            config = config["resumed_from"]
        assert config["recipe"]["epochs"] == recipe.epochs
    assert runs.read_metrics(tmp_path / "part")["tiles"] > 0


def test_a_part_goes_on_with_the_epochs_that_it_has_by_now(tiles: Store, tmp_path: Path) -> None:
    """It was shortened before, and is finished as one that never was stopped."""
    with TrainingBar() as bar:
        training(tiles, tmp_path / "whole", RECIPE, 600).train(bar)
        run = runs.begin_run(RECIPE, tiles, tmp_path / "part", device="cpu")
        next(run.train(progress=False))
        run.close()
        training(tiles, tmp_path / "part", replace(RECIPE, epochs=9), 600).train(bar)
    whole, part = (contents(tmp_path / name) for name in ("whole", "part"))
    assert part == whole


def test_the_end_is_in_time_where_speeds_are_far_from_true(tiles: Store, tmp_path: Path) -> None:
    """A journal that holds speeds no machine has: the plan is wrong, and the end in time."""
    names = ["compact-0", "compact-plain-0"]
    speed = {"build": 0.0, "step": 1e-5, "tile": 1e-6, "fit": 0.0}
    record = {
        "folds": 0,
        "precisions": dict.fromkeys(names, "auto"),
        "speeds": dict.fromkeys(names, speed),
        "parts": {},
    }
    (tmp_path / "journal.json").write_text(json.dumps(record))
    search = BestSearch(folder=tmp_path, sides={"slides": None, "seed": 0}, refit=False)
    clock = Clock(tmp_path, limit=0)
    clock.limit = clock.used + 18
    try:
        (*_, result) = seek_best(search, tiles, clock, device="cpu", say=lambda _: None)
    except KitError as error:
        # Another program had the machine: not even one epoch was over.
        assert "too short" in str(error)
    else:
        assert result.submission is not None
    assert clock.left > 0


@pytest.mark.soak
def test_limits_are_kept_beside_other_programs(tiles: Store, weights: Path, tmp_path: Path) -> None:
    """Of 20 searches, of 20 to 60 seconds, beside programs that come and go, one may be late."""
    rng, late = np.random.default_rng(0), 0
    for number in range(20):
        limit = int(rng.integers(20, 60))
        others = [
            subprocess.Popen([sys.executable, "-c", _BUSY, str(rng.uniform(0, limit))])
            for _ in range(rng.integers(0, 6))
        ]
        start = time.monotonic()
        done = kernel("best", *options(tiles, tmp_path / str(number), weights, f"{limit}s"))
        late += time.monotonic() - start > limit
        assert done.returncode == 0 or "too short" in done.stderr, done.stderr
        for other in others:
            other.wait()
    assert late <= 1


def test_another_search_in_the_folder_is_refused(
    tiles: Store, weights: Path, tmp_path: Path
) -> None:
    (encoder,) = find_encoders([f"{MODEL}={weights}"])
    for seed, encoders in ((0, [encoder]), (1, [encoder]), (0, [])):
        search = BestSearch(
            folder=tmp_path, sides={"slides": None, "seed": seed}, encoders=encoders
        )
        results = seek_best(search, tiles, Clock(tmp_path, limit=1), device="cpu")
        if encoders and not seed:
            assert next(results).plan == []
            results.close()
        else:
            with pytest.raises(KitError, match="holds another study: its"):
                next(results)


def test_encoders_are_those_named_or_cached(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("kit.study.best.parts.cached_weights", lambda: {"resnet18": weights})
    assert [one.model for one in find_encoders(["resnet18"])] == ["resnet18"]
    # What a cache holds may be anything; what is named is not passed over.
    assert find_encoders([]) == []
    assert "resnet18, which a cache holds, is left out" in capsys.readouterr().err
    monkeypatch.setattr("kit.study.best.parts.cached_weights", lambda: {MODEL: weights})
    assert [one.model for one in find_encoders([])] == [MODEL]
    monkeypatch.setattr("kit.study.best.parts.cached_weights", lambda: {"resnet18": weights})
    with pytest.raises(KitError, match=r"resnet34: its weights are not in a cache .*resnet18"):
        find_encoders(["resnet34"])
    with pytest.raises(KitError, match="no weights at"):
        find_encoders([f"resnet34={tmp_path / 'missing.pth'}"])
    with pytest.raises(KitError, match="no model resnet_34"):
        find_encoders([f"resnet_34={weights}"])


def test_weights_in_the_caches_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders as the hub's client and PyTorch lay them out."""
    hub = tmp_path / "hub"
    for repository in ("timm--resnet18.a1_in1k", "MahmoodLab--UNI", "somebody--else"):
        snapshot = hub / f"models--{repository}" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(b"weights")
        (hub / f"models--{repository}" / "refs").mkdir()
        (hub / f"models--{repository}" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    assert sorted(cached_weights()) == ["resnet18.a1_in1k", "uni"]
