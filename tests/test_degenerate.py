"""Data and options that leave nothing to learn or to score: a message with the next step."""

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import competition_files, write_zip

from kit import report, runs, stats
from kit.base import KitError, Recipe
from kit.data import pack_tiles
from kit.runs import Run
from kit.training import evaluate

ROOT = Path(__file__).parents[1]
EVEN = [0, 1] * 12

Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Train:
    """Be `train.py` on tiles of some labels and slides; return its status and its stderr."""

    def run(
        labels: Sequence[int], *options: object, slides: Sequence[str] | None = None
    ) -> tuple[int, str]:
        files = competition_files(train=len(labels), test=2)
        ids = [line[:40] for line in files["train_labels.csv"].decode().splitlines()[1:]]
        lines = [f"{tile},{label}\n" for tile, label in zip(ids, labels, strict=True)]
        files["train_labels.csv"] = ("id,label\n" + "".join(lines)).encode()
        write_zip(tmp_path / "data", files)
        argv = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--device", "cpu"]
        argv += ["--epochs", 1, *options]
        if slides is not None:
            lines = [f"{tile},{slide}\n" for tile, slide in zip(ids, slides, strict=True)]
            (tmp_path / "slides.csv").write_text("id,slide\n" + "".join(lines))
            argv += ["--slides", tmp_path / "slides.csv"]
        kernel = str(ROOT / "kernels" / "train.py")
        monkeypatch.setattr(sys, "argv", [kernel, *map(str, argv)])
        try:
            runpy.run_path(kernel, run_name="__main__")
        except SystemExit as exit:
            return int(exit.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


FOUR = ("--batch-size", 4)
FEW = "to train and to validate takes two or more of each class. See the labels in train_labels.csv"
SHARE = "each side needs a tile of each class. Choose another --holdout"


@pytest.mark.parametrize(
    ("labels", "options", "slides", "message"),
    [
        ([], (), None, "train_labels.csv names no tile: fetch the data again"),
        ([1], (), None, f"0 of 1 training tiles are of class 0: {FEW}"),
        ([0] * 9, FOUR, None, f"0 of 9 training tiles are of class 1: {FEW}"),
        ([1] * 9, ("--per-class", "None"), None, f"0 of 9 training tiles are of class 0: {FEW}"),
        ([0] * 9, FOUR, "ABCABCABC", f"0 of 9 training tiles are of class 1: {FEW}"),
        ([0, 0, 1], FOUR, "ABC", f"1 of 3 training tiles are of class 1: {FEW}"),
        (EVEN, ("--per-class", 1), None, f"cannot hold out 0.3 of 2 tiles: {SHARE}"),
        (EVEN, ("--holdout", 0.01), None, f"cannot hold out 0.01 of 24 tiles: {SHARE}"),
        (EVEN, ("--holdout", 0.99), None, f"cannot hold out 0.99 of 24 tiles: {SHARE}"),
        (EVEN, (), None, "16 training tiles do not fill a batch of 64: choose a smaller"),
        ([1, 1] + [0] * 22, FOUR, [*"ABCDEFGHIJKL"] * 2, "2 training tiles do not fill a batch"),
        (EVEN, ("--schedule", "one-cycle"), None, "16 training tiles do not fill a batch of 64"),
        (
            EVEN,
            (*FOUR, "--schedule", "one-cycle"),
            None,
            "the whole training has 4 steps, too few for the one-cycle schedule, which takes 5: "
            "choose more --epochs or a smaller --batch-size",
        ),
        (
            EVEN,
            ("--validate-on", "X"),
            "AB" * 12,
            "no slide X in the table: there are A, B. Name one of these with --validate-on",
        ),
        (
            EVEN,
            ("--validate-on", "A", "B"),
            "AB" * 12,
            "--validate-on names all 2 slides: leave one or more to train on",
        ),
        (
            EVEN,
            (*FOUR, "--model", "inception_v3"),
            None,
            "it was made for 299, so try --size 299",
        ),
        (EVEN, ("--folds", 30), None, "24 tiles do not make 30 folds: ask for fewer --folds"),
        (EVEN, ("--folds", 3), "AB" * 12, "2 slides do not make 3 folds: ask for fewer --folds"),
        (EVEN, (), "A" * 24, "all tiles are of one slide: a holdout by slide needs two or more"),
        (
            EVEN,
            ("--validate-on", "A"),
            "AB" * 12,
            "the training side has no tile of class 0 (12 tiles in all): choose another share",
        ),
    ],
)
def test_a_training_that_cannot_be_is_a_message_and_leaves_no_folder(
    train: Train,
    tmp_path: Path,
    labels: list[int],
    options: tuple[object, ...],
    slides: Sequence[str] | None,
    message: str,
) -> None:
    status, said = train(labels, *options, slides=slides)
    assert status == 1
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in said
    assert "Warning" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("labels", "options", "slides"),
    [
        ([1, 1, *[0] * 18], ("--batch-size", 2), None),
        ([1, 1, *[0] * 18], (*FOUR, "--per-class", "None"), None),
        ([0, 1, 0, 1], ("--batch-size", 2, "--holdout", 0.5), None),
        ([0, 1, 0, 1], ("--batch-size", 2, "--validate-on", "B"), "AABB"),
        (EVEN, (*FOUR, "--ema", 0.9, "--bn", "after"), [f"S{number}" for number in range(24)]),
    ],
)
def test_a_training_that_hardly_can_be_tells_finite_figures(
    train: Train,
    tmp_path: Path,
    labels: list[int],
    options: tuple[object, ...],
    slides: Sequence[str] | None,
) -> None:
    """One tile of a class to validate on gives an AUC, and no interval but the reason."""
    status, said = train(labels, *options, slides=slides)
    assert status == 0, said
    text = (tmp_path / "run" / "metrics.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    auc = json.loads(text)["auc"]
    assert 0 <= auc["estimate"] <= 1
    assert auc["note"] or auc["low"] <= auc["estimate"] <= auc["high"]
    assert "NaN" not in (tmp_path / "run" / "history.jsonl").read_text()
    assert "nan" not in report.bounds(stats.Interval(**auc))


def test_an_epoch_whose_probabilities_are_no_numbers_is_a_message(
    train: Train, tmp_path: Path
) -> None:
    """The one step's loss is finite still, and its weights are beyond all measure."""
    status, said = train(EVEN, "--batch-size", 16, "--lr", 1e38)
    assert status == 1
    assert "is not a finite number, as when training has diverged: try a smaller --lr" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_weights_that_are_no_numbers_are_not_evaluated(tmp_path: Path) -> None:
    write_zip(tmp_path / "data", competition_files(train=24, test=2))
    run = Run(Recipe(batch_size=8), pack_tiles(tmp_path / "data"), tmp_path / "run", device="cpu")
    with torch.no_grad():
        next(run.state.model.parameters()).fill_(torch.nan)
    with pytest.raises(KitError, match=r"prediction nan at position 0 is not a finite number"):
        evaluate(run.state, run.loaders.valid)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("figure", [stats.auc, stats.accuracy, stats.log_loss, stats.auc_interval])
def test_no_figure_is_made_of_what_is_no_number(
    figure: Callable[..., object], value: float
) -> None:
    with pytest.raises(KitError, match="at position 1 is not a finite number"):
        figure([0, 1, 1], [0.2, value, 0.8])
    with pytest.raises(KitError, match="at position 1 is not a finite number"):
        runs.final_metrics(np.array([0, 1, 1]), np.array([0.2, value, 0.8]))
