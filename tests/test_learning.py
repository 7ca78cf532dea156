"""Learning curves: draws of the training side alone, their table and their picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import kernel, run_kernel
from scipy import stats as scipy_stats

from kit import data, report, runs, study
from kit.base import KitError, Recipe
from kit.data import Store

LABELS = np.arange(200) % 5 == 0
RECIPE = Recipe(per_class=None, holdout=0.25)


def test_a_draw_keeps_the_holdout_and_the_share_of_positives() -> None:
    labels = LABELS.astype(np.int64)
    whole = data.holdout(labels, RECIPE)
    drawn = data.holdout(labels, replace(RECIPE, train_tiles=50))
    assert np.array_equal(drawn.valid, whole.valid)
    assert set(drawn.train) < set(whole.train)
    assert (len(drawn.train), labels[drawn.train].sum()) == (50, 10)
    other = data.holdout(labels, replace(RECIPE, train_tiles=50, seed=1))
    assert set(other.train) != set(drawn.train)
    everything = data.holdout(labels, replace(RECIPE, train_tiles=150))
    assert np.array_equal(everything.train, whole.train)


@pytest.mark.parametrize("count", [1, 151])
def test_more_tiles_than_there_are_cannot_be_drawn(count: int) -> None:
    with pytest.raises(KitError, match=f"--train-tiles {count}: the training side has 150 tiles"):
        data.holdout(LABELS.astype(np.int64), replace(RECIPE, train_tiles=count))


def test_numbers_of_tiles_are_read_in_their_order() -> None:
    assert study.parse_tiles(["all", "300", "100"]) == (100, 300, None)


@pytest.mark.parametrize("words", [["1"], ["some"], ["all", "all"], ["-5"]])
def test_what_is_no_number_of_tiles_is_refused(words: list[str]) -> None:
    with pytest.raises(KitError, match="--tiles"):
        study.parse_tiles(words)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("learning_curve", ("--recipe", "probe", "--tiles")),
        ("encode", ("--model", "test_resnet", "--splits")),
    ],
)
def test_nothing_to_do_is_a_message(name: str, options: tuple[str, ...]) -> None:
    finished = kernel(name, *options)
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"error: {options[-1][2:]} = (): ")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("learning") / "data"
    data.write_standin(folder, train=120, test=8, seed=0)
    return data.open_store(folder)


def test_a_curve_is_made_of_runs_and_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "curve"
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'per_class = "None"\nsize = 32\nwidths = [4, 4, 4]\nepochs = 1\nbatch_size = 8\n'
    )
    words = ("--recipe", recipe, "--tiles", 20, "all", "--draws", 3)
    words = (*words, "--data", store.data, "--out", out, "--slides", store.data / "slides.csv")
    said = run_kernel("learning_curve", *words)
    table = pd.read_csv(out / "learning.csv")
    assert table["recipe"].tolist() == ["tiny", "tiny"]
    assert table["tiles"].iloc[0] == 20
    assert (out / "learning.png").stat().st_size > 5000
    for row, name in zip(table.itertuples(), ("20", "all"), strict=True):
        folders = [out / "runs" / f"tiny-{name}-{seed}" for seed in range(3)]
        aucs = [runs.read_metrics(folder)["auc"]["estimate"] for folder in folders]
        assert row.auc == pytest.approx(np.mean(aucs))
        low, high = scipy_stats.t.interval(0.95, 2, np.mean(aucs), scipy_stats.sem(aucs))
        assert (row.low, row.high) == pytest.approx((low, min(high, 1.0)))
    assert "runs/tiny-20-0" not in said
    assert f" {table['slides'].iloc[0]:.1f} " in said
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.json")}
    (out / "runs" / "tiny-20-1" / "metrics.json").unlink()
    run_kernel("learning_curve", *words)
    changed = {path.parent.name for path, then in before.items() if path.stat().st_mtime_ns != then}
    assert changed == {"tiny-20-1"}
    other = kernel("learning_curve", *words, "--holdout", 0.3)
    assert other.returncode == 1
    assert "is another run: --holdout was 0.2 and is 0.3" in other.stderr


def test_a_single_draw_has_no_interval() -> None:
    table = pd.DataFrame(
        {"recipe": ["a", "a"], "tiles": [10, 20], "auc": [0.6, 0.7], "low": None, "high": None}
    )
    (axes,) = report.learning_figure(table).axes
    assert [line.get_label() for line in axes.lines] == ["a"]


def test_a_curve_runs_no_code_of_a_recipes_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("open('seen', 'w').close()\n")
    (tmp_path / "mine.toml").write_text('model = "net.py:Net"\n')
    done = kernel("learning_curve", "--recipe", "mine.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert "net.py:Net would be executed" in done.stderr
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "notebook", "--recipe", "my/notebook.toml"], "is the second of the name"),
        (["--recipe", "notebook", "--model", "resnet18"], "--model has no meaning where no recipe"),
    ],
)
def test_recipes_that_would_share_runs_and_options_without_one_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    Path("my/notebook.toml").write_text("epochs = 1\n")
    done = kernel("learning_curve", *words)
    assert done.returncode == 1
    assert message in done.stderr
