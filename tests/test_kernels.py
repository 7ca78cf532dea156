"""The commands as a user runs them: real processes on a small competition."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import Files, Type, competition_files, kernel, train, write_zip

from kit.base import Recipe
from kit.data import Store, open_store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ in it, not packed, and runs/ of both arms."""
    folder = tmp_path_factory.mktemp("place")
    write_zip(folder / "data", competition_files(train=120, test=9))
    return folder


def sample_ids(files: Files) -> list[str]:
    return [line.split(",")[0] for line in files["sample_submission.csv"].decode().split()[1:]]


def test_pack_train_predict(place: Path) -> None:
    """The whole way: the first command packs, the last writes what the competition takes."""
    # This one from nothing, as a shell starts it.
    command = [sys.executable, str(ROOT / "kernels" / "train.py"), "--bn", "after"]
    command += ["--epochs", "2", "--batch-size", "16"]
    trained = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr
    assert "data is not packed yet: packing it now" in trained.stderr
    assert "53,313 parameters: 52,865 trainable, 448 running statistics" in trained.stdout
    layers = (place / "runs" / "notebook-after-0" / "layers.txt").read_text()
    assert layers in trained.stdout
    assert "momentum 0.99 as Keras counts it (0.01 as PyTorch does)" in trained.stdout
    assert "epoch 2/2" in trained.stdout
    assert "this holdout is one of single tiles" in trained.stdout
    assert "STAND-IN" not in trained.stderr
    assert (place / "runs" / "notebook-after-0" / "curves.png").stat().st_size > 10_000
    assert "notebook-after-0" in (place / "runs" / "notebook-after-0" / "report.html").read_text()

    following = trained.stdout.splitlines()[-1]
    assert following.startswith("next: python kernels/predict.py --run runs/notebook-after-0")
    predicted = kernel("predict", *following.split()[3:], cwd=place)
    assert predicted.returncode == 0, predicted.stderr
    table = pd.read_csv(place / "runs" / "notebook-after-0" / "submission.csv")
    assert table["id"].tolist() == sample_ids(competition_files(train=120, test=9))
    assert table["label"].between(0, 1).all()
    assert table["label"].nunique() > 2

    packed = kernel("pack", cwd=place)
    assert "120 train and 9 test tiles, packed before" in packed.stdout


def test_a_timm_model_is_told_in_ten_lines_and_its_layers_are_in_the_folder(place: Path) -> None:
    options = ["--model", "test_resnet", "--size", 32, "--epochs", 1, "--batch-size", 16]
    ended = kernel("train", *options, "--out", "runs/parts", cwd=place)
    assert ended.returncode == 0, ended.stderr
    layers = (place / "runs" / "parts" / "layers.txt").read_text().splitlines()
    printed = ended.stdout.partition("tiles to train on")[0].splitlines()
    assert len(printed) <= 13 < len(layers)
    assert printed[-2] == f"{layers[-1]}; each layer: runs/parts/layers.txt"


def test_several_runs_are_averaged_and_hard_labels_are_dear(place: Path) -> None:
    runs = []
    for seed in (1, 2):
        recipe = Recipe(epochs=1, batch_size=16, seed=seed)
        train(recipe, open_store(place / "data"), place / "runs" / str(seed))
        runs += ["--run", f"runs/{seed}"]
        assert kernel("predict", *runs[-2:], "--out", f"{seed}.csv", cwd=place).returncode == 0
    assert kernel("predict", *runs, "--out", "both.csv", cwd=place).returncode == 0
    one, two, both = (pd.read_csv(place / f"{name}.csv") for name in ("1", "2", "both"))
    mean = (one["label"] + two["label"]) / 2
    pd.testing.assert_series_equal(both["label"], mean, atol=1e-12)

    hard = kernel("predict", *runs, "--labels", "hard", "--out", "hard.csv", cwd=place)
    assert hard.stdout.count("hard labels lower the holdout's AUC from 0.") == 2
    assert pd.read_csv(place / "hard.csv")["label"].tolist() == (mean > 0.5).astype(int).tolist()


def test_timm_model_trains_and_predicts_by_the_same_commands(place: Path) -> None:
    options = ["--model", "test_resnet", "--size", 96, "--augment", "d4", "--epochs", 1]
    trained = kernel("train", *options, "--batch-size", 16, "--out", "runs/timm", cwd=place)
    assert trained.returncode == 0, trained.stderr
    predicted = kernel("predict", "--run", "runs/timm", "--views", 8, "--out", "t.csv", cwd=place)
    assert predicted.returncode == 0, predicted.stderr
    assert len(pd.read_csv(place / "t.csv")) == 9


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("train", ["--data", "nowhere"], "make download"),
        ("train", ["--recipe", "nothing"], "no recipe nothing"),
        ("train", ["--lr", "-1"], "lr = -1.0: Input should be greater than 0"),
        ("train", ["--out", "data"], "data exists: choose another --out"),
        ("predict", ["--run", "nowhere"], "nowhere holds no run"),
        ("predict", [], "run"),
        ("pack", ["--data", "nowhere"], "make demo"),
        ("search", ["--trials", "0"], "trials = 0: Input should be greater than 0"),
        ("tune", ["search", "--trials", "0"], "trials = 0: Input should be greater than 0"),
        ("tune", ["momentum", "--values", "1"], "values.0 = 1.0: Input should be less than 1"),
        ("momentum", ["--bn-momentum", "0.9"], "those of --values: leave --bn-momentum out"),
        ("compare", ["--bn", "after"], "the arms differ in --bn: leave it out"),
        (
            "compare",
            ["--recipe", "compact", "--arm", "a=compact"],
            "--recipe means nothing beside --arm",
        ),
        (
            "compare",
            ["--per-class", "9", "--arm", "a/x=compact", "--arm", "b=notebook"],
            "'a/x' cannot name an arm",
        ),
        ("train", ["--force"], "--force has no meaning without --resume"),
        ("train", ["--teacher", "--lr", "1"], "--teacher names no runs: name them after it"),
        ("train", ["--leave-out"], "--leave-out names no slides"),
        ("train", ["--folds", "2", "--devices"], "--devices names no devices"),
        ("compare", ["--seed-list", "--out", "x"], "--seed-list names no seeds"),
        ("predict", ["--devices", "cpu:1", "--devices", "cpu:1"], "--devices is given 2 times"),
        (
            "train",
            ["--teacher-weight", "1", "--teacher-temperature", "2"],
            "--teacher-temperature, --teacher-weight have no meaning without --teacher: leave them",
        ),
        ("train", ["--stain-strength", "2"], "--stain-strength has no meaning for --augment none"),
        ("train", ["--folds", "2", "--holdout", "0.5"], "--holdout has no meaning beside --folds"),
        (
            "export",
            ["--run", "r", "--tensorboard", "t", "--tiles", "5"],
            "--tiles has no meaning without",
        ),
        ("tune", ["nothing"], "no command nothing: there are momentum, search"),
    ],
)
def test_mistakes_end_with_one_message(
    place: Path, name: str, options: list[str], message: str
) -> None:
    ended = kernel(name, *options, cwd=place)
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("line", ["compare", "momentum", "search --trials 1", "best"])
@pytest.mark.parametrize("record", ["config.json", "fold-0/config.json"])
def test_a_study_does_not_write_over_a_run(
    tiles: Store, tmp_path: Path, type_in: Type, line: str, record: str
) -> None:
    (tmp_path / record).parent.mkdir(exist_ok=True)
    (tmp_path / record).write_text("{}")
    (tmp_path / "report.html").write_text("the run's")
    small = "" if line == "best" else "--epochs 1 --batch-size 8"
    status, said = type_in(f"{line} {small} --data '{tiles.data}' --out '{tmp_path}'")
    assert status == 1
    assert f"{tmp_path} holds a run, which would be written over: choose another --out" in said
    assert (tmp_path / "report.html").read_text() == "the run's"


@pytest.mark.parametrize(
    ("first", "commands"),
    [("standin", ["standin", "train", "predict"]), ("pack", ["pack", "explore", "train"])],
)
def test_each_command_names_the_next_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    type_in: Type,
    first: str,
    commands: list[str],
) -> None:
    """What is printed can be typed, whatever the folder is called."""
    monkeypatch.chdir(tmp_path)
    folder = "My Drive/it's"
    if first == "pack":
        write_zip(tmp_path / folder, competition_files(train=60, test=9))
    numbers = {"standin": "--train 60 --test 9", "train": "--epochs 1 --batch-size 8"}
    line = f"{first} --data {shlex.quote(folder)}"
    for name in commands:
        assert line.partition(" ")[0] == name
        status, said = type_in(f"{line} {numbers.get(name, '')}")
        assert status == 0, said
        line = said.partition("next: python kernels/")[2].partition("\n")[0].replace(".py", "", 1)


NAMES = sorted(path.stem for path in (ROOT / "kernels").glob("*.py"))


# Run all commands in one process that has loaded nothing; print what each says and loads.
TYPE_ALL = """
import contextlib, io, json, runpy, sys
told = {}
for path in sys.argv[1:]:
    before, said = set(sys.modules), io.StringIO()
    sys.argv = [path, *(["search"] if path.endswith("/tune.py") else []), "--typo"]
    with contextlib.redirect_stderr(said):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code
    told[path] = status, said.getvalue(), sorted(set(sys.modules) - before)
print(json.dumps(told))
"""


def test_a_typo_is_told_of_before_any_library_is_loaded() -> None:
    paths = [str(ROOT / "kernels" / f"{name}.py") for name in NAMES]
    # As a script's folder would be.
    command = [sys.executable, "-c", TYPE_ALL, *paths]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told.keys() == set(paths)
    for path, (status, said, loaded) in told.items():
        assert status == 2, path
        assert "--typo" in said, path
        libraries = {"torch", "pandas", "numpy", "scipy", "kaggle", "kit.data.store"}
        assert not libraries & set(loaded), path
    assert "tyro" in told[paths[0]][2]


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_the_command_does(place: Path, name: str) -> None:
    shown = kernel(name, "--help", cwd=place)
    assert shown.returncode == 0
    assert len(shown.stdout.split()) > 15
    description = shown.stdout.partition("\u256d")[0]
    assert not [line for line in description.splitlines() if line.startswith("--")]
    if "--recipe" in shown.stdout:
        assert "notebook  The study's own protocol and network" in shown.stdout


@pytest.fixture(scope="module")
def run(place: Path) -> str:
    """A finished run in `place`, whichever tests came before."""
    options = ("--epochs", 1, "--batch-size", 8, "--out", "runs/finished")
    trained = kernel("train", *options, cwd=place)
    assert trained.returncode == 0, trained.stderr
    return "runs/finished"


@pytest.mark.parametrize("name", ["predict", "export"])
def test_a_device_is_not_replaced_by_a_file(place: Path, run: str, name: str) -> None:
    """It is refused before anything is computed."""
    options = ["--run", run, "--out", "/dev/null"]
    ended = kernel(name, *options, cwd=place)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: cannot write /dev/null: it is a device or a pipe; name a regular file\n"
    )
    assert Path("/dev/null").is_char_device()


def test_a_submission_goes_through_a_link_to_its_place(place: Path, run: str) -> None:
    (place / "link.csv").symlink_to("there.csv")
    predicted = kernel("predict", "--run", run, "--out", "link.csv", cwd=place)
    assert predicted.returncode == 0, predicted.stderr
    assert (place / "link.csv").is_symlink()
    assert len(pd.read_csv(place / "there.csv")) == 9
