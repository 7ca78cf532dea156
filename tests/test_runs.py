import json
import os
import time
from dataclasses import replace
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import (
    RECIPE,
    Forked,
    contents,
    edit_config,
    finished_epochs,
    kernel,
    start_kernel,
    train,
)
from safetensors.torch import load_file, save_file

from kit import models, runs, stats
from kit.base import KitError, Precision, Recipe, read_recipe, recipe_names
from kit.data import Store, TileSet, eval_loader, open_store, recipe_dataset
from kit.runs import Run

ROOT = Path(__file__).parents[1]


def test_folder_holds_the_run(tiles: Store, tmp_path: Path) -> None:
    run = train(RECIPE, tiles, tmp_path / "run")
    assert {path.name for path in run.folder.iterdir()} == {
        "config.json",
        "split.csv",
        "history.jsonl",
        "last.pt",
        "model.safetensors",
        "valid.csv",
        "metrics.json",
        ".lock",
    }
    split = pd.read_csv(run.folder / "split.csv")
    assert split["fold"].value_counts().to_dict() == {"train": 56, "valid": 24}
    valid = runs.read_valid(run.folder)
    assert valid["id"].tolist() == split["id"][split["fold"] == "valid"].tolist()
    final = runs.read_metrics(run.folder)
    expected = stats.auc(valid["label"].to_numpy(), valid["probability"].to_numpy())
    assert final["auc"]["estimate"] == pytest.approx(expected, abs=1e-12)
    assert final["auc"]["low"] < final["auc"]["estimate"] < final["auc"]["high"]
    last = runs.read_history(run.folder)[-1]
    assert last.valid_auc == pytest.approx(expected, abs=1e-12)
    assert last.epoch == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", recipe_names())
def test_two_threads_train_the_same_run_bit_for_bit(
    tiles: Store, tmp_path: Path, name: str, precision: Precision
) -> None:
    short = replace(read_recipe(name), precision=precision, epochs=1, batch_size=11, size=32)
    tiny = replace(short, model="test_resnet", pretrained=False) if short.is_backbone else short
    first, again = (train(tiny, tiles, tmp_path / folder) for folder in "ab")
    assert contents(first.folder) == contents(again.folder)


def test_folder_alone_rebuilds_the_model(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(
        RECIPE, bn="after", size=40, crop=80, normalize="competition", widths=(4, 8, 8)
    )
    run = train(recipe, tiles, tmp_path / "run")
    valid = runs.read_valid(run.folder)
    rows = [tiles.train.ids.tolist().index(tile) for tile in valid["id"]]
    held_out = TileSet(tiles.train.tiles[rows], tiles.train.ids[rows])
    probabilities = runs.load(run.folder, device="cpu").predict(held_out, progress=False)
    np.testing.assert_array_equal(probabilities, valid["probability"])


# Rates that make the curve jump, so that the last epoch is not the best.
JUMPY = replace(RECIPE, epochs=6, lr=0.03, keep="best")


@pytest.mark.parametrize(
    "options", [{}, {"ema": 0.5, "schedule": "one-cycle"}, {"views": 8}], ids=["plain", "ema", "8"]
)
def test_the_best_epoch_is_kept_and_is_what_was_judged(
    tiles: Store, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Epoch by epoch it is the run that ends there; training itself is not touched."""
    recipe = replace(JUMPY, **options)
    best = train(recipe, tiles, tmp_path / "best")
    last = train(replace(recipe, keep="last"), tiles, tmp_path / "last")
    assert contents(best.folder)["history"] == contents(last.folder)["history"]
    kept = runs.read_metrics(best.folder)["kept_epoch"]
    assert runs.read_metrics(last.folder)["kept_epoch"] == recipe.epochs
    weights = load_file(best.folder / "model.safetensors")
    aucs = []
    for epoch in range(1, recipe.epochs + 1):
        # One-cycle is planned for all epochs: the run is stopped, not shortened.
        short = Run(replace(recipe, keep="last"), tiles, tmp_path / f"{epoch}", device="cpu")
        list(islice(short.train(progress=False), epoch))
        short._finish()
        aucs.append(runs.read_metrics(short.folder)["auc"]["estimate"])
        same = load_file(short.folder / "model.safetensors")
        assert all(torch.equal(weights[name], same[name]) for name in same) == (epoch == kept)
    assert kept == 1 + int(np.argmax(aucs))
    assert runs.read_metrics(best.folder)["auc"]["estimate"] == max(aucs)


def test_a_resumed_run_knows_its_best_epoch(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(JUMPY, ema=0.5)
    whole = train(recipe, tiles, tmp_path / "whole")
    begun = Run(recipe, tiles, tmp_path / "run", device="cpu")
    kept = runs.read_metrics(whole.folder)["kept_epoch"]
    list(islice(begun.train(progress=False), kept + 1))
    del begun
    resumed = train(recipe, tiles, tmp_path / "run", resume=True)
    assert contents(resumed.folder) == contents(whole.folder)


def test_the_last_step_of_a_run_is_repeated_when_it_failed(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(JUMPY, ema=0.5)
    whole = train(recipe, tiles, tmp_path / "whole")
    broken = Run(recipe, tiles, tmp_path / "run", device="cpu")
    (tmp_path / "run" / "valid.csv").mkdir()
    with pytest.raises((KitError, OSError), match=r"valid\.csv"):
        list(broken.train(progress=False))
    del broken
    assert not (tmp_path / "run" / "metrics.json").exists()
    (tmp_path / "run" / "valid.csv").rmdir()
    resumed = train(recipe, tiles, tmp_path / "run", resume=True)
    assert contents(resumed.folder) == contents(whole.folder)


def test_the_same_seed_gives_the_same_folder(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(RECIPE, augment="stain")
    first, second = (train(recipe, tiles, tmp_path / name) for name in ("one", "two"))
    assert contents(first.folder) == contents(second.folder)
    other = train(replace(recipe, seed=1), tiles, tmp_path / "three")
    assert contents(first.folder)["split.csv"] != contents(other.folder)["split.csv"]


def test_a_cross_validation_is_no_run_but_names_its_runs(tmp_path: Path) -> None:
    for fold in ("fold-1", "fold-2"):
        (tmp_path / "cv" / fold).mkdir(parents=True)
    with pytest.raises(KitError, match="cross-validation: name one of its runs, fold-1, fold-2"):
        runs.read_config(tmp_path / "cv")


def test_batch_larger_than_the_training_side_is_refused(tiles: Store, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="56 training tiles do not fill a batch of 64"):
        train(replace(RECIPE, batch_size=64), tiles, tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("preprocessing", "mean"), [0.5, 0.5, 0.5], "mean is not what this kit would"),
        (("preprocessing", "size"), 48, "size is not what this kit would"),
        (("class_names",), ["positive", "negative"], "class_names is not"),
        (("recipe", "widths"), [16, 64, 128], "does not fit"),
        (("recipe", "colour"), 1, "unknown key colour"),
    ],
)
def test_predicting_with_another_preprocessing_is_refused(
    tiles: Store, tmp_path: Path, keys: tuple[str, ...], value: object, message: str
) -> None:
    run = train(replace(RECIPE, epochs=1), tiles, tmp_path / "run")
    edit_config(run.folder, *keys, value=value)
    with pytest.raises(KitError, match=message):
        runs.load(run.folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "is not a run's configuration"),
        ("config.json", b"[]", "is not a run's configuration"),
        ("model.safetensors", b"\x80\x04N.", "is damaged"),
    ],
)
def test_damaged_folder_is_refused(
    tiles: Store, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    run = train(replace(RECIPE, epochs=1), tiles, tmp_path / "run")
    (run.folder / name).write_bytes(content)
    with pytest.raises(KitError, match=message):
        runs.load(run.folder)


def test_unfinished_run_does_not_predict(tiles: Store, tmp_path: Path) -> None:
    Run(RECIPE, tiles, tmp_path / "run")
    with pytest.raises(KitError, match=r"is not a finished run.*/train\.py --resume --out "):
        runs.load(tmp_path / "run")


# The long form kills longer trainings, more often, and in all combinations.
KILLS = int(os.environ.get("KIT_KILLS", "4"))
EPOCHS = 20 if KILLS > 4 else 6
CASES = [("notebook", 0), ("all", 2)] + [("notebook", 2), ("all", 0)] * (KILLS > 4)
RECIPES = {
    "notebook": replace(RECIPE, epochs=EPOCHS),
    "all": replace(
        RECIPE,
        epochs=EPOCHS,
        augment="stain",
        ema=0.9,
        schedule="one-cycle",
        weight_decay=0.05,
        label_smoothing=0.1,
        precision="bf16",
    ),
}


def train_in_process(recipe: Recipe, data: Path, folder: Path, workers: int) -> None:
    torch.set_num_threads(1)
    resume = (folder / "config.json").exists()
    run = Run(
        recipe,
        open_store(data),
        folder,
        device="cpu",
        workers=workers,
        resume=resume,
        checkpoint_steps=2,
    )
    list(run.train(progress=False))


def spawn(*arguments: object) -> "BaseProcess":
    """Start a training in a process of its own, forked from one that has imported torch."""
    process = Forked(target=train_in_process, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize(("recipe", "workers"), CASES)
def test_killed_at_any_instant_and_resumed_is_uninterrupted(
    tiles: Store, tmp_path: Path, recipe: str, workers: int
) -> None:
    """SIGKILL at random instants, from before the first file to after the last epoch."""
    data, whole = tiles.folder.parent, tmp_path / "whole"
    # The first process waits for the server that the others are forked from.
    spawn(RECIPE, data, tmp_path / "first", 0).join()
    began = time.perf_counter()
    process = spawn(RECIPES[recipe], data, whole, workers)
    process.join()
    assert process.exitcode == 0
    length = time.perf_counter() - began
    instants = np.random.default_rng(0)
    kills = 0
    while kills < KILLS:
        killed = tmp_path / f"killed-{kills}"
        process = spawn(RECIPES[recipe], data, killed, workers)
        while process.exitcode is None:
            process.join(instants.uniform(0.05, 0.7) * length)
            if process.exitcode is None and kills < KILLS:
                process.kill()
                process.join()
                kills += 1
                process = spawn(RECIPES[recipe], data, killed, workers)
        assert process.exitcode == 0
        assert contents(killed) == contents(whole)
    print(f"{recipe}, {workers} workers: survived {kills} kills")


def test_two_processes_in_one_folder_are_one_too_many(tiles: Store, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    log.mkdir()
    options = ("--data", tiles.folder.parent, "--out", folder, "--batch-size", 8, "--epochs", 2000)
    first = start_kernel("train", *options, log=log)
    while first.is_alive() and finished_epochs(folder) < 1:
        time.sleep(0.01)
    second = kernel("train", *options, "--resume")
    assert "another process is at work in" in second.stderr
    assert second.returncode == 1
    assert first.is_alive()
    first.terminate()
    first.join()
    assert first.exitcode == 143


def test_a_loss_that_is_no_number_names_the_tiles_and_the_checkpoint(
    tiles: Store, tmp_path: Path
) -> None:
    run = Run(replace(RECIPE, lr=1e30), tiles, tmp_path / "run", checkpoint_steps=1)
    with pytest.raises(KitError, match=r"the loss of epoch 1, step 2 is") as raised:
        list(run.train(progress=False))
    message = str(raised.value)
    batch = np.random.default_rng([0, 1]).permutation(56)[8:16]
    assert all(tiles.train.ids[run.holdout.train[index]] in message for index in batch)
    assert f"the last good checkpoint is {run.folder / 'last.pt'}" in message


def test_averaged_weights_are_recalibrated_and_kept(tiles: Store, tmp_path: Path) -> None:
    run = train(replace(RECIPE, ema=0.9), tiles, tmp_path / "run")
    kept = load_file(run.folder / "model.safetensors")
    averaged = torch.load(run.folder / "last.pt", weights_only=True)["averaged"]
    weights = dict(run.state.model.named_parameters())
    for name, tensor in kept.items():
        # Statistics that the average only borrowed are measured again.
        assert torch.equal(tensor, averaged[f"module.{name}"]) == (name in weights)
    last = runs.read_history(run.folder)[-1]
    assert last.valid_auc != runs.read_metrics(run.folder)["auc"]["estimate"]


def test_eight_views_of_a_recipe_are_used_by_the_run_and_its_predictions(
    tiles: Store, tmp_path: Path
) -> None:
    run = train(replace(RECIPE, views=8), tiles, tmp_path / "run")
    valid = runs.read_valid(run.folder)
    held_out = TileSet(tiles.train.tiles[run.holdout.valid], tiles.train.ids[run.holdout.valid])
    model = runs.load(run.folder, device="cpu")
    np.testing.assert_array_equal(model.predict(held_out, progress=False), valid["probability"])
    assert not np.array_equal(
        model.predict(held_out, views=1, progress=False), valid["probability"]
    )


def test_a_checkpoint_without_its_results_is_damaged(tiles: Store, tmp_path: Path) -> None:
    run = train(RECIPE, tiles, tmp_path / "run")
    path = run.folder / "last.pt"
    torch.save(torch.load(path, weights_only=True) | {"history": []}, path)
    del run
    with pytest.raises(KitError, match=r"last\.pt is damaged: .* the results of 0 of 2 epochs"):
        Run(RECIPE, tiles, tmp_path / "run", device="cpu", resume=True)


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_values(
    tiles: Store, tmp_path: Path
) -> None:
    run = train(RECIPE, tiles, tmp_path / "run")
    state = torch.load(run.folder / "last.pt", weights_only=True)
    assert state["progress"]["epoch"] == 2
    assert len(state["history"]) == 2


def test_backbone_recipe_runs_from_a_local_file_of_weights(tiles: Store, tmp_path: Path) -> None:
    """Classifier first, then all, slower towards the input; without any network."""
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), weights)
    recipe = replace(
        read_recipe("backbone"),
        model="test_resnet",
        pretrained=False,
        weights=weights,
        size=64,
        epochs=2,
        batch_size=8,
    )
    run = Run(recipe, tiles, tmp_path / "run", device="cpu")
    before = {name: w.clone() for name, w in run.state.model.named_parameters()}
    rates = [group["initial_lr"] for group in run.state.optimizer.param_groups]
    assert min(rates) < max(rates)
    results = run.train(progress=False)
    next(results)
    moved = {n for n, w in run.state.model.named_parameters() if not torch.equal(w, before[n])}
    assert moved == {"fc.weight", "fc.bias"}
    list(results)
    moved = {n for n, w in run.state.model.named_parameters() if not torch.equal(w, before[n])}
    assert moved == before.keys()
    assert runs.load(run.folder, device="cpu").recipe == recipe


def test_compact_recipe_runs_as_it_is(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(read_recipe("compact"), epochs=2, batch_size=16)
    run = train(recipe, tiles, tmp_path / "run")
    assert runs.read_metrics(run.folder)["tiles"] == len(run.holdout.valid)
    assert isinstance(run.state.model, models.CompactCNN)


def test_statistics_that_a_model_does_not_have_are_not_adapted(
    tiles: Store, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, model="test_efficientnet_gn", size=32, epochs=1)
    model = runs.load(train(recipe, tiles, tmp_path / "run").folder, device="cpu")
    with pytest.raises(KitError, match="run has no BatchNorm to adapt"):
        model.predict(tiles.test, adapt_bn=True, progress=False)


def test_adapted_statistics_are_those_of_the_tiles_that_are_predicted(
    tiles: Store, tmp_path: Path
) -> None:
    run = train(replace(RECIPE, precision="fp32"), tiles, tmp_path / "run")
    model = runs.load(run.folder, device="cpu")
    plain = model.predict(tiles.test, progress=False)
    adapted = model.predict(tiles.test, adapt_bn=True, progress=False)
    assert not np.array_equal(plain, adapted)
    assert isinstance(run.state.model, models.SmallCNN)
    first = run.state.model.features[0].layer
    loader = eval_loader(recipe_dataset(tiles.test.tiles, RECIPE))
    maps = torch.cat([first(run.state.normalize(batch)) for batch, _ in loader])
    mean = model.model.state_dict()["features.0.norm.running_mean"]
    torch.testing.assert_close(mean, maps.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_calibrated_probabilities_keep_their_order_and_lower_the_log_loss(
    tiles: Store, tmp_path: Path
) -> None:
    run = train(RECIPE, tiles, tmp_path / "run")
    valid = runs.read_valid(run.folder)
    held_out = TileSet(tiles.train.tiles[run.holdout.valid], tiles.train.ids[run.holdout.valid])
    calibrated = runs.load(run.folder, device="cpu").predict(
        held_out, calibrate=True, progress=False
    )
    plain, labels = valid["probability"].to_numpy(), valid["label"].to_numpy()
    assert stats.auc(labels, calibrated) == pytest.approx(stats.auc(labels, plain))
    assert stats.log_loss(labels, calibrated) <= stats.log_loss(labels, plain)


def test_a_run_without_a_temperature_predicts_and_says_that_it_cannot_calibrate(
    tiles: Store, tmp_path: Path
) -> None:
    """As runs of version 0.1.0 are."""
    run = train(RECIPE, tiles, tmp_path / "run")
    final = runs.read_metrics(run.folder)
    del final["temperature"]
    (run.folder / "metrics.json").write_text(json.dumps(final))
    model = runs.load(run.folder, device="cpu")
    assert len(model.predict(tiles.test, progress=False)) == len(tiles.test)
    with pytest.raises(KitError, match="recorded no temperature: predict without --calibrate"):
        model.predict(tiles.test, calibrate=True, progress=False)


def test_held_tiles_give_the_same_run(
    tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, augment="d4")
    plain = train(recipe, tiles, tmp_path / "plain")
    # As on a GPU with room; symmetries alone are not rounded.
    monkeypatch.setattr("kit.runs.loaders.fits_on_device", lambda *_: True)
    held = train(recipe, tiles, tmp_path / "held")
    assert contents(held.folder) == contents(plain.folder)
    with_workers = Run(recipe, tiles, tmp_path / "workers", device="cpu", workers=1)
    flags = [run.loaders.holds_tiles for run in (plain, held, with_workers)]
    assert flags == [False, True, False]
    assert runs.read_config(held.folder)["holds_tiles"]


def test_full_memory_is_an_error_that_says_what_to_do(
    tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that a GPU raises; tests/test_memory.py has the CPU's own."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    full = "memory of cpu is full while training: choose a smaller --batch-size"
    for folder, remedy in (("a", f"{full}$"), ("b", f"{full}, or --workers 1, which holds no")):
        run = Run(RECIPE, tiles, tmp_path / folder, device="cpu")
        run.state.model.register_forward_pre_hook(fail)
        with pytest.raises(KitError, match=remedy):
            next(run.train(progress=False))
        monkeypatch.setattr("kit.runs.loaders.fits_on_device", lambda *_: True)
