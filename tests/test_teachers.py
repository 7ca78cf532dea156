"""Teachers: the loss is the formula, both see the same pixels, and no teacher knows the holdout."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    RECIPE,
    contents,
    edit_config,
    kernel,
    run_kernel,
    train,
    train_folds,
    write_zip,
)
from conftest import competition_files as competition
from scipy.special import expit
from torch import Tensor

from kit import models, runs, study
from kit.base import KitError, Recipe
from kit.data import Resize, Store, TileDataset, eval_loader, open_store, train_loader
from kit.training import Normalize, Teacher, TrainingState, compute_gradients, fit, predict_logits

UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PLAIN = Resize(32, 32, "nearest")
RNG = np.random.default_rng(0)


def teacher(model: torch.nn.Module, view: Resize = PLAIN) -> Teacher:
    return Teacher(model.eval(), view, Normalize(*UNIT), torch.float32)


@pytest.fixture
def student(trained: Path) -> Recipe:
    """Of another network than `RECIPE`, whose run teaches it."""
    return replace(RECIPE, widths=(4, 8, 16), augment="full", teacher=(trained,))


def refused(recipe: Recipe, tiles: Store, folder: Path) -> str:
    """Return why a run is refused, which writes nothing."""
    with pytest.raises(KitError) as error:
        runs.begin_run(recipe, tiles, folder, device="cpu")
    assert not folder.exists()
    return str(error.value)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_written_out_formula(smoothing: float) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8))
    labels = torch.arange(8.0) % 2
    recipe = Recipe(
        teacher=(Path("a"), Path("b")),
        teacher_weight=0.3,
        teacher_temperature=2.5,
        label_smoothing=smoothing,
    )
    networks = [models.create_model(Recipe(seed=seed)) for seed in (1, 2)]
    state = TrainingState(
        models.create_model(recipe), recipe, teachers=[teacher(one) for one in networks]
    )
    loss, _ = compute_gradients(state, state.model.eval(), images, labels)

    with torch.no_grad():
        s, *ts = (one(images / 255)[:, 0].double().numpy() for one in [state.model, *networks])
    soft = expit(np.mean(ts, axis=0) / 2.5)
    own = expit(s / 2.5)
    of_teachers = -(soft * np.log(own) + (1 - soft) * np.log(1 - own))
    truth = (1 - smoothing) * labels.numpy() + smoothing / 2
    of_labels = -(truth * np.log(expit(s)) + (1 - truth) * np.log(1 - expit(s)))
    expected = 0.7 * of_labels.mean() + 0.3 * 2.5**2 * of_teachers.mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert all(one.grad is None for network in networks for one in network.parameters())


@pytest.mark.parametrize("workers", [0, 2])
def test_both_see_the_very_same_augmented_pixels(
    student: Recipe, tiles: Store, tmp_path: Path, workers: int
) -> None:
    recipe = replace(student, normalize="competition", epochs=1)
    run = runs.Run(recipe, tiles, tmp_path / "run", device="cpu", workers=workers)
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, part in (("student", run.state), ("teacher", run.teachers[0])):
        part.normalize.register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(inputs[0].clone())
        )
    next(run.train(progress=False))
    assert len(seen["teacher"]) == 56 // 8
    # After them come the held-out ones.
    assert all(map(torch.equal, seen["student"], seen["teacher"]))
    run.close()


def test_a_teacher_sees_its_own_crop_at_its_own_size_and_answers_as_it_predicts(
    tiles: Store, tmp_path: Path
) -> None:
    """Of tiles that are not augmented, what it says is what its run predicts for them."""
    theirs = replace(RECIPE, model="test_resnet", crop=64, size=112, interpolation="bicubic")
    theirs = replace(theirs, epochs=1, normalize="imagenet", precision="fp32")
    train(theirs, tiles, tmp_path / "theirs")
    recipe = replace(RECIPE, size=96, teacher=(tmp_path / "theirs",))
    run = runs.Run(recipe, tiles, tmp_path / "run", device="cpu")
    images = torch.from_numpy(tiles.train.tiles[:9].copy()).permute(0, 3, 1, 2)
    expected = runs.load(tmp_path / "theirs", device="cpu").predict_logits(
        tiles.train, views=1, progress=False
    )
    np.testing.assert_allclose(run.teachers[0](images).numpy(), expected[:9], atol=1e-4)
    run.close()


def test_a_probe_teaches(tiles: Store, tmp_path: Path) -> None:
    probe = replace(RECIPE, model="test_resnet", probe="linear", normalize="imagenet")
    train(probe, tiles, tmp_path / "probe")
    run = train(replace(RECIPE, teacher=(tmp_path / "probe",)), tiles, tmp_path / "run")
    assert run.history[-1].train_loss > 0
    with pytest.raises(KitError, match="a probe is fitted to labels alone: leave out teacher"):
        replace(probe, teacher=(tmp_path / "run",))


def kernel_error(*options: object) -> str:
    done = kernel("train", *options)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_student_of_a_good_teacher_learns_though_its_labels_are_wrong() -> None:
    labels = np.arange(160) % 2
    # Positive tiles are brighter.
    tiles = RNG.integers(0, 150, (160, 32, 32, 3)).astype(np.uint8)
    tiles += (60 * labels).astype(np.uint8)[:, None, None, None]
    valid = eval_loader(TileDataset(tiles[100:], labels[100:]))

    def learn(recipe: Recipe, labels: np.ndarray, *teachers: Teacher) -> tuple[float, Any]:
        state = TrainingState(models.create_model(recipe), recipe, teachers=teachers)
        loader = train_loader(TileDataset(tiles[:100], labels[:100]), batch_size=20)
        *_, last = fit(state, loader, valid, progress=False)
        return last.valid_auc, state.model

    recipe = Recipe(epochs=8, bn_momentum=0.5)
    auc, good = learn(recipe, labels)
    assert auc > 0.99
    taught = replace(recipe, seed=1, teacher=(Path("good"),))
    auc, pupil = learn(taught, 1 - labels, teacher(good))
    assert auc > 0.99
    said = [predict_logits(one, valid, Normalize(*UNIT)) for one in (good, pupil)]
    assert np.corrcoef(said)[0, 1] > 0.95


def test_a_teacher_of_no_weight_changes_no_bit(
    student: Recipe, tiles: Store, tmp_path: Path
) -> None:
    train(replace(student, teacher=()), tiles, tmp_path / "alone")
    train(replace(student, teacher_weight=0), tiles, tmp_path / "taught")
    assert contents(tmp_path / "taught") == contents(tmp_path / "alone")
    train(replace(student, teacher_weight=0.5), tiles, tmp_path / "heard")
    assert contents(tmp_path / "heard") != contents(tmp_path / "alone")


def test_a_teacher_that_knows_held_out_tiles_is_refused(tiles: Store, tmp_path: Path) -> None:
    train(replace(RECIPE, seed=3, epochs=1), tiles, tmp_path / "other")
    split = pd.read_csv(tmp_path / "other/split.csv", index_col="id")["fold"]
    train(RECIPE, tiles, tmp_path / "mine")
    own = pd.read_csv(tmp_path / "mine/split.csv", index_col="id")["fold"]
    known = ((split == "train") & (own == "valid")).sum()
    assert known > 0
    taught = replace(RECIPE, teacher=(tmp_path / "mine", tmp_path / "other"))
    said = refused(taught, tiles, tmp_path / "run")
    assert f"other was trained on {known} of the 24 tiles that this run holds out" in said
    assert "train the teacher with the same --slides, --validate-on" in said
    with pytest.raises(KitError, match=f"trained on {known} of the 24 tiles"):
        runs.check_trainable([taught], tiles, device="cpu")


def test_a_split_that_was_made_to_fit_is_refused(run: Path, tiles: Store, tmp_path: Path) -> None:
    table = pd.read_csv(run / "split.csv")
    table[table["fold"] == "valid"].to_csv(run / "split.csv", index=False)
    said = refused(replace(RECIPE, seed=3, teacher=(run,)), tiles, tmp_path / "run2")
    assert "is not the split that the run was begun with" in said


def test_a_teacher_that_knows_what_is_left_out_is_refused(
    trained: Path, tiles: Store, tmp_path: Path
) -> None:
    """Not drawn by --train-tiles is as if no one had labelled it."""
    said = refused(replace(RECIPE, train_tiles=20, teacher=(trained,)), tiles, tmp_path / "run")
    assert "was trained on 36 of the 60 tiles that this run holds out or leaves out" in said
    slides = tmp_path / "slides.csv"
    names = np.array(["a", "b", "c", "d"])[np.arange(80) // 20]
    pd.DataFrame({"id": tiles.train.ids, "slide": names}).to_csv(slides, index=False)
    by_slide = replace(RECIPE, slides=slides, validate_on=("a",), epochs=1)
    train(by_slide, tiles, tmp_path / "all")
    train(replace(by_slide, leave_out=("b",)), tiles, tmp_path / "without")
    final = replace(by_slide, leave_out=("b",), teacher=(tmp_path / "all",))
    assert "was trained on 20 of the 40 tiles" in refused(final, tiles, tmp_path / "run")
    train(replace(final, teacher=(tmp_path / "without",)), tiles, tmp_path / "run")


def test_a_teacher_of_a_teacher_is_known_to_be_honest_or_refused(
    student: Recipe, tiles: Store, tmp_path: Path
) -> None:
    """What its own teacher was kept from is its own holdout, and no more is known."""
    train(replace(student, epochs=1), tiles, tmp_path / "second")
    train(replace(student, epochs=1, teacher=(tmp_path / "second",)), tiles, tmp_path / "third")
    # It holds out 12 tiles more, which were drawn by nobody before.
    halves = replace(RECIPE, per_class=20, teacher=(tmp_path / "second",))
    said = refused(halves, tiles, tmp_path / "run")
    assert "has a teacher itself, which may have been trained on" in said


def test_a_teacher_whose_epoch_the_holdout_chose_is_refused(tiles: Store, tmp_path: Path) -> None:
    train(replace(RECIPE, keep="best"), tiles, tmp_path / "best")
    said = refused(replace(RECIPE, teacher=(tmp_path / "best",)), tiles, tmp_path / "run")
    assert "kept the epoch that did best on tiles that this run holds out" in said
    assert "train the teacher with --keep last" in said


def test_what_is_no_finished_run_of_this_data_is_refused(
    run: Path, tiles: Store, tmp_path: Path
) -> None:
    taught = replace(RECIPE, teacher=(run,))
    out = tmp_path / "out"
    assert "holds no run" in refused(replace(RECIPE, teacher=(out,)), tiles, out)
    assert "name it once" in refused(replace(RECIPE, teacher=(run, Path(str(run)))), tiles, out)
    write_zip(tmp_path / "data", competition(train=40))
    other = open_store(tmp_path / "data")
    assert "was trained on other data" in refused(replace(taught, per_class=None), other, out)
    edit_config(run, "data", "is_standin", value=True)
    assert "was trained on the stand-in" in refused(taught, other, out)
    (run / "metrics.json").unlink()
    assert f"is not a finished run, there is no {run}/metrics.json" in refused(taught, tiles, out)


@pytest.mark.parametrize(
    ("theirs", "own", "message"),
    [
        ({"size": 32}, {"crop": 64}, "central 96 pixels of a tile, and this run cuts out 64"),
        ({"crop": 65, "size": 32}, {"size": 64}, "are no whole number in this run's images"),
        ({"size": 96}, {"size": 48}, "as 96, of which this run's images keep 48: give a larger"),
    ],
)
def test_a_teacher_that_would_see_something_else_is_refused(
    tiles: Store, tmp_path: Path, theirs: dict[str, int], own: dict[str, int], message: str
) -> None:
    train(replace(RECIPE, epochs=1, **theirs), tiles, tmp_path / "theirs")  # type: ignore[arg-type]
    taught = replace(RECIPE, teacher=(tmp_path / "theirs",), **own)  # type: ignore[arg-type]
    assert message in refused(taught, tiles, tmp_path / "run")


def test_a_stopped_run_goes_on_to_the_same_bits_with_the_same_teacher_alone(
    student: Recipe, run: Path, tiles: Store, tmp_path: Path
) -> None:
    taught = replace(student, teacher=(run,), ema=0.9, teacher_weight=0.8)
    train(taught, tiles, tmp_path / "whole")
    part = runs.begin_run(taught, tiles, tmp_path / "part", device="cpu")
    next(part.train(progress=False))
    part.close()
    assert runs.read_config(tmp_path / "part")["teachers"] == {
        str(run): runs.read_metrics(run)["sha256"]["model.safetensors"]
    }
    other = shutil.copytree(run, tmp_path / "other")
    with pytest.raises(KitError, match=f"--teacher was {run} and is {other}. Leave"):
        train(replace(taught, teacher=(other,)), tiles, tmp_path / "part", resume=True)
    shutil.rmtree(run)
    train(replace(RECIPE, lr=2e-3), tiles, run)
    with pytest.raises(KitError, match=r"run has other weights now\. Train a new run"):
        train(taught, tiles, tmp_path / "part", resume=True)
    shutil.rmtree(run)
    other.rename(run)
    done = kernel("train", "--resume", "--out", tmp_path / "part", "--data", tiles.data)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_folds_learn_each_from_its_own_and_a_refit_from_all(tiles: Store, tmp_path: Path) -> None:
    folds = replace(RECIPE, epochs=1, folds=2)
    cv = train_folds(folds, tiles, tmp_path / "cv")
    recipe = replace(folds, lr=2e-3, teacher=(cv,))
    taught = train_folds(recipe, tiles, tmp_path / "taught")
    for fold in (0, 1):
        by_hand = replace(recipe, fold=fold, teacher=(cv / f"fold-{fold}",))
        run = train(by_hand, tiles, tmp_path / f"by-hand-{fold}")
        assert contents(run.folder) == contents(taught / f"fold-{fold}")
    said = refused(replace(recipe, folds=3, fold=0), tiles, tmp_path / "run")
    assert "has 2 folds, and this training 3" in said
    # To a run that is no fold all of them would teach, and each tile is known to one of the two.
    said = refused(replace(recipe, folds=None), tiles, tmp_path / "run")
    assert "of the 24 tiles that this run holds out" in said
    with pytest.raises(KitError, match=r"fold-0 is another run: --folds was 2 and is 3\. Leave"):
        runs.check_folds(replace(recipe, folds=3), tiles, taught, device="cpu", resume=True)
    refit = runs.begin_run(runs.refit_recipe(taught), tiles, tmp_path / "refit", refit_of=taught)
    assert len(refit.teachers) == 2
    refit.close()
    shutil.rmtree(cv)
    # All is trained, and is pooled again.
    assert runs.check_folds(recipe, tiles, taught, device="cpu", resume=True)
    (taught / "fold-1" / "history.jsonl").unlink()
    with pytest.raises(KitError, match="cv holds no run"):
        runs.check_folds(recipe, tiles, taught, device="cpu", resume=True)


def test_a_finished_run_needs_its_teacher_no_more(run: Path, tiles: Store, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    run_kernel(
        *("train", "--data", tiles.data, "--epochs", "1", "--batch-size", "8"),
        *("--teacher", run, "--teacher-weight", "0.5", "--out", folder),
    )
    sha256 = runs.read_config(folder)["teachers"][str(run)]
    page = (folder / "report.html").read_text()
    assert f"It was trained towards what {run} (SHA-256 of its weights {sha256})" in page
    assert f"--teacher {run} --teacher-weight 0.5" in page
    shutil.rmtree(run)
    # Nothing is left to be trained, but what follows the last epoch may be.
    before = contents(folder)
    (folder / "report.html").unlink()
    run_kernel("train", "--resume", "--out", folder)
    assert contents(folder) == before
    assert f"(SHA-256 of its weights {sha256})" in (folder / "report.html").read_text()
    run_kernel(
        "predict", "--run", folder, "--data", tiles.data, "--out", tmp_path / "submission.csv"
    )
    run_kernel("export", "--run", folder, "--data", tiles.data, "--out", tmp_path / "model.onnx")
    train(RECIPE, tiles, tmp_path / "other")
    run_kernel("ensemble", folder, tmp_path / "other", "--out", tmp_path / "both")
    run_kernel("runs", tmp_path)
    assert "holds no run" in kernel_error("--resume", "--out", folder, "--epochs", "2", "--force")


def test_arms_of_a_study_may_have_teachers(
    trained: Path, run: Path, tiles: Store, tmp_path: Path
) -> None:
    arms = {"alone": RECIPE, "taught": replace(RECIPE, teacher=(run,))}
    of_one_seed = study.Study(tmp_path / "study", arms, seeds=(0,))
    outcomes = study.train_arms(of_one_seed, tiles, device="cpu")
    assert contents(of_one_seed.run_folder("alone", 0)) == contents(trained)
    assert contents(of_one_seed.run_folder("taught", 0)) != contents(trained)
    # Another seed holds out other tiles.
    with pytest.raises(KitError, match=r"arm taught: the teacher .* was trained on \d+ of the 24"):
        study.train_arms(
            replace(of_one_seed, folder=tmp_path / "more", seeds=(0, 1)), tiles, device="cpu"
        )
    assert not (tmp_path / "more").exists()
    shutil.rmtree(run)
    assert study.train_arms(of_one_seed, tiles, device="cpu") == outcomes


def test_a_search_keeps_what_a_teacher_has_to_see(trained: Path, tiles: Store) -> None:
    free = study.search_space(RECIPE, tiles).free
    taught = study.search_space(replace(RECIPE, teacher=(trained,)), tiles).free
    assert free - taught == {"crop", "size"}


def test_what_a_command_line_cannot_mean_is_refused() -> None:
    said = kernel_error("--teacher", "a", "--teacher", "b")
    assert "--teacher is given 2 times: name all runs after one" in said
    assert "--teacher-weight has no meaning without --teacher" in kernel_error(
        "--teacher-weight", "0.5"
    )
