"""What is submitted is what was said: file, models, views. A Kaggle of our own takes it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Type
from kaggle_server import KaggleServer, competition_zip, move_in, serve

from kit import runs
from kit.base import ARCHIVE, Recipe
from kit.data import open_store, pack_tiles
from kit.runs import Ensemble, Manner, Run

RECIPE = Recipe(epochs=1, batch_size=16, widths=(4, 4, 4), precision="fp32")


@pytest.fixture(scope="module")
def archive() -> bytes:
    return competition_zip(train=60, test=12)


@pytest.fixture(scope="module")
def place(archive: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, runs/one, runs/two, and runs/folds, a cross-validation."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    (folder / "data" / ARCHIVE).write_bytes(archive)
    tiles = pack_tiles(folder / "data")
    recipes = {
        "one": RECIPE,
        "two": replace(RECIPE, bn="after"),
        "folds/fold-0": replace(RECIPE, folds=2, fold=0),
        "folds/fold-1": replace(RECIPE, folds=2, fold=1),
    }
    for name, recipe in recipes.items():
        list(Run(recipe, tiles, folder / "runs" / name, device="cpu").train(progress=False))
    runs.pool_folds(folder / "runs/folds")
    (folder / "both").mkdir()
    weights = {"runs/one": 0.75, "runs/folds": 0.25}
    runs.write_ensemble(folder / "both", Ensemble(weights, "rank"), {})
    return folder


@pytest.fixture
def server(
    archive: bytes, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KaggleServer]:
    """A server that is taken for Kaggle, and a working folder that is a copy of `place`."""
    with serve(archive) as fake:
        move_in(fake, tmp_path, monkeypatch)
        shutil.copytree(place, tmp_path, dirs_exist_ok=True)
        yield fake


def test_what_was_predicted_is_what_is_sent(server: KaggleServer, type_in: Type) -> None:
    """Eight views into submission.csv, as the README says, then the run is submitted."""
    assert type_in("predict --run runs/one --views 8 --out submission.csv")[0] == 0
    status, said = type_in("submit --run runs/one/")
    assert status == 0, said
    assert "submission.csv: predicted by runs/one, 8 views" in said
    assert server.uploaded == Path("submission.csv").read_bytes()
    assert server.submissions[0]["description"].startswith("one, 8 views, sha256 ")
    assert not Path("runs/one/submission.csv").exists()


@pytest.mark.parametrize(
    ("source", "folder", "by"),
    [
        ("runs/one", "runs/one", "runs/one, 1 view"),
        ("runs/folds", "runs/folds", "runs/folds (2 models), 1 view"),
        ("both/ensemble.json", "both", "the mean of ranks of runs/one (0.75), runs/folds (0.25)"),
        ("both", "both", "the mean of ranks of runs/one (0.75), runs/folds (0.25) (3 models)"),
    ],
)
def test_what_has_predicted_nothing_predicts(
    server: KaggleServer, type_in: Type, source: str, folder: str, by: str
) -> None:
    status, said = type_in(f"submit --run {source}")
    assert status == 0, said
    assert f"{folder}/submission.csv: predicted by {by}" in said
    assert server.uploaded == Path(folder, "submission.csv").read_bytes()


def test_two_submissions_of_a_run_are_one_too_many(server: KaggleServer, type_in: Type) -> None:
    assert type_in("predict --run runs/one --out runs/one/submission.csv")[0] == 0
    assert type_in("predict --run runs/one --views 8")[0] == 0
    status, said = type_in("submit --run runs/one")
    assert status == 1
    assert "runs/one/submission.csv: predicted by runs/one, 1 view\n" in said
    assert "submission.csv: predicted by runs/one, 8 views\n" in said
    assert "make submit FILE=" in said
    assert not server.requests
    assert type_in("submit --file submission.csv")[0] == 0
    assert server.uploaded == Path("submission.csv").read_bytes()


def test_a_submission_of_other_weights_is_predicted_again(
    server: KaggleServer, type_in: Type
) -> None:
    assert type_in("predict --run runs/one --out runs/one/submission.csv")[0] == 0
    before = Path("runs/one/submission.csv").read_bytes()
    shutil.copytree("runs/two", "runs/one", dirs_exist_ok=True)
    assert type_in("submit --run runs/one")[0] == 0
    assert server.uploaded == Path("runs/one/submission.csv").read_bytes() != before


def test_a_file_that_was_changed_is_not_said_to_be_predicted(
    server: KaggleServer, type_in: Type
) -> None:
    assert type_in("predict --run runs/one")[0] == 0
    table = pd.read_csv("submission.csv")
    table.assign(label=table["label"] / 2).to_csv("submission.csv", index=False)
    status, said = type_in("submit")
    assert status == 0, said
    assert "submission.csv: how it was predicted is not recorded" in said
    assert server.submissions[0]["description"].startswith("submission.csv, sha256 ")


@pytest.mark.usefixtures("server")
def test_a_submission_of_the_kits_version_0_4_0_is_sent(type_in: Type) -> None:
    assert type_in("predict --run runs/one --out runs/one/submission.csv")[0] == 0
    Path("runs/one/submission.csv.json").unlink()
    status, said = type_in("submit --run runs/one")
    assert status == 0, said
    assert "runs/one/submission.csv: how it was predicted is not recorded" in said


def test_what_the_standin_has_taught_is_said_loudly_and_not_sent(
    server: KaggleServer, type_in: Type
) -> None:
    config = Path("runs/two/config.json")
    values = json.loads(config.read_text())
    values["data"]["is_standin"] = True
    config.write_text(json.dumps(values))
    for line in (
        "predict --run runs/one --run runs/two",
        "ensemble runs/two runs/one --out ensembles/both",
        "export --run runs/two --tensorboard board",
    ):
        status, said = type_in(line)
        assert status == 0, said
        assert "*** STAND-IN: trained on synthetic tiles: runs/two." in said
        assert "submit.py" not in said
    for source in ("--run runs/two", "--file submission.csv"):
        status, said = type_in(f"submit {source}")
        assert status == 1
        assert "submission.csv is not sent" in said
    assert not server.requests


@pytest.mark.parametrize(
    "words",
    [
        ("runs/one", "runs/one/"),
        ("runs/one", "runs/../runs/one"),
        ("runs/one", "link"),
        ("runs/folds", "runs/folds/fold-1"),
    ],
)
@pytest.mark.usefixtures("server")
def test_a_run_counts_once(type_in: Type, words: tuple[str, str]) -> None:
    Path("link").symlink_to("runs/one")
    named = [str(Path(word)) for word in words]
    message = f"{named[0]} and {named[1]} hold the same run: name it once"
    status, said = type_in(f"predict --run {words[0]} --run {words[1]}")
    assert (status, message in said) == (1, True)
    assert not Path("submission.csv").exists()
    status, said = type_in(f"ensemble {words[0]} {words[1]}")
    assert (status, message in said) == (1, True)
    path = runs.write_ensemble(Path("mine"), Ensemble(dict.fromkeys(words, 0.5), "rank"), {})
    status, said = type_in(f"predict --ensemble {path}")
    assert (status, message in said) == (1, True)


@pytest.mark.usefixtures("server")
def test_hard_labels_of_a_mean_of_ranks_go_by_the_probabilities(tmp_path: Path) -> None:
    """Half of all ranks lie above 1/2, whatever the tiles."""
    tiles = open_store(Path("data"))
    weights = {"runs/one": 0.5, "runs/two": 0.5}
    by_run = np.stack([runs.load(Path(run)).predict(tiles.test) for run in weights])
    out = tmp_path / "hard.csv"
    hard, made = runs.predict_submission(
        out, Ensemble(weights, "rank"), tiles, Manner(hard=True), device="cpu"
    )
    assert hard.tolist() == (by_run.mean(axis=0) > 0.5).tolist()
    by = "the mean of runs/one (0.50), runs/two (0.50)"
    assert (made.by, made.manner) == (by, "1 view, hard labels")


def test_a_run_may_be_a_submission(server: KaggleServer, type_in: Type) -> None:
    """As in `make submit RUN=submission.csv`."""
    assert type_in("predict --run runs/one --out mine.csv")[0] == 0
    status, said = type_in("submit --run mine.csv")
    assert status == 0, said
    assert server.uploaded == Path("mine.csv").read_bytes()
    assert server.submissions[0]["description"].startswith("mine.csv, 1 view, sha256 ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--run data/nothing", "there is no data/nothing"),
        ("--run data/ensemble.json", "there is no data/ensemble.json"),
        ("--run mine.json", "mine.json is not an ensemble"),
        ("--run runs/one --file a.csv", "--file and --run exclude each other"),
        ("--file runs/one", "cannot read runs/one: Is a directory"),
    ],
)
def test_what_is_no_submission_is_not_sent(
    server: KaggleServer, type_in: Type, words: str, message: str
) -> None:
    Path("mine.json").write_text("[]")
    status, said = type_in(f"submit {words}")
    assert (status, message in said) == (1, True), said
    assert not server.requests
