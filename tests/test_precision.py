"""What a timm model trains faster in on a CPU: measured once, recorded, never measured again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import contents, kernel, run_kernel
from test_resume import interrupted

from kit import models, runs, study
from kit.base import Recipe, read_recipe
from kit.data import Store
from kit.study import folder as study_folder
from kit.training import (
    choose_precision,
    leaves_precision_open,
    settle_precision,
    step_seconds,
    with_precision,
)

TUNED = Recipe(model="test_resnet", size=32, epochs=1, batch_size=8)
OPTIONS = ("--model", "test_resnet", "--size", "32", "--epochs", "1", "--batch-size", "8")
HAS_BF16 = choose_precision("auto", torch.device("cpu")) == torch.bfloat16
# What is settled here: elsewhere there is no question.
POSSIBLE = ("fp32", "bf16") if HAS_BF16 else ("auto",)


def test_only_the_training_of_a_timm_model_leaves_it_open() -> None:
    assert leaves_precision_open(read_recipe("backbone"))
    for name in ("notebook", "compact", "probe"):
        assert not leaves_precision_open(read_recipe(name))
    assert not leaves_precision_open(replace(TUNED, precision="bf16"))
    assert with_precision(TUNED, "fp32") == replace(TUNED, precision="fp32")
    assert with_precision(Recipe(), "fp32") == Recipe()


def test_measuring_leaves_random_draws_and_the_model_to_come_alone() -> None:
    torch.manual_seed(1)
    expected, weights = torch.rand(1), models.create_model(TUNED).state_dict()
    torch.manual_seed(1)
    assert settle_precision([TUNED, replace(TUNED, lr=1.0)], device="cpu") in POSSIBLE
    assert torch.equal(torch.rand(1), expected)
    built = models.create_model(TUNED).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in built.items())


@pytest.mark.parametrize("recipe", [TUNED, Recipe(), read_recipe("compact")], ids=lambda r: r.model)
def test_both_types_are_timed_where_there_is_a_question(recipe: Recipe) -> None:
    seconds = step_seconds([recipe], device="cpu")
    assert list(seconds) == (["fp32", "bf16"] if HAS_BF16 else [])
    assert all(value > 0 for value in seconds.values())


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16")
def test_it_says_what_it_chose_and_how_to_fix_it(capsys: pytest.CaptureFixture[str]) -> None:
    settled = settle_precision([TUNED], device="cpu")
    assert f"--precision {settled} fixes it" in capsys.readouterr().err


def test_a_run_records_it_and_its_page_gives_it(tiles: Store, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_kernel("train", *OPTIONS, "--data", tiles.folder.parent, "--out", out)
    settled = runs.read_config(out)["recipe"]["precision"]
    assert settled in POSSIBLE
    if HAS_BF16:
        assert f"--precision {settled}" in (out / "report.html").read_text()


def test_what_was_recorded_is_not_measured_again(tiles: Store, tmp_path: Path) -> None:
    """A run in fp32 and one in bf16 both go on: one of them is not what would be measured."""
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        line = ("--recipe", "notebook", *OPTIONS, "--data", tiles.folder.parent, "--out", out)
        run_kernel("train", *line, "--precision", precision)
        before = contents(out)
        interrupted(out)
        run_kernel("train", *line, "--resume")
        assert contents(out) == before
        assert runs.read_config(out)["recipe"]["precision"] == precision


def test_all_folds_have_one(tiles: Store, tmp_path: Path) -> None:
    out = tmp_path / "folds"
    run_kernel("train", *OPTIONS, "--folds", "2", "--data", tiles.folder.parent, "--out", out)
    used = {runs.read_config(out / f"fold-{fold}")["recipe"]["precision"] for fold in (0, 1)}
    assert len(used) == 1 and used <= set(POSSIBLE)


def test_all_runs_of_a_study_have_one_and_it_goes_on_with_it(tiles: Store, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text("epochs = 1\nbatch_size = 8\nwidths = [4, 4, 4]\n")
    other = 'model = "test_resnet"\nsize = 32\nepochs = 1\nbatch_size = 8\n'
    (tmp_path / "other.toml").write_text(other)
    (tmp_path / "third.toml").write_text(other + "lr = 0.01\n")
    arms = [f"--arm={name}={tmp_path}/{name}.toml" for name in ("small", "other", "third")]
    out = tmp_path / "study"
    line = (*arms, "--seeds", "1", "--data", tiles.folder.parent, "--out", out)
    run_kernel("compare", *line)
    used = {
        path.parent.name: runs.read_config(path.parent)["recipe"]["precision"]
        for path in out.glob("runs/*/config.json")
    }
    assert used["other-0"] == used["third-0"] in POSSIBLE
    assert used["small-0"] == "auto"
    assert "note: trains in" not in kernel("compare", *line).stderr


def test_a_study_takes_what_its_folder_records(tmp_path: Path) -> None:
    recipes = {"one": TUNED, "kit's": Recipe()}
    for precision in ("fp32", "bf16"):
        (tmp_path / study_folder.PRECISION_FILE).write_text(json.dumps({"precision": precision}))
        settled = study_folder.settle_precision(tmp_path, recipes, "cpu")
        assert settled == {"one": replace(TUNED, precision=precision), "kit's": Recipe()}
        assert study.precision_words(tmp_path, [TUNED]) == ["--precision", precision]
        assert study.precision_words(tmp_path, recipes.values()) == []


def test_a_study_that_was_begun_without_goes_on_without(tmp_path: Path) -> None:
    (tmp_path / study_folder.STUDY_FILE).write_text("{}")
    assert study_folder.settle_precision(tmp_path, {"one": TUNED}, "cpu") == {"one": TUNED}
    assert not (tmp_path / study_folder.PRECISION_FILE).exists()
