"""The study as a notebook: what stands in it, executed on a small competition, and pushed."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from conftest import competition_files, kernel, write_folder
from kaggle_server import move_in, serve, until

from kit import kaggle
from kit.base import KitError
from kit.kaggle.sums import CHECKSUMS

ROOT = Path(__file__).parents[1]
NAME = "histopathologic-notebook"
# Of the assignment, in its order.
IN_ORDER = [
    "## Description",
    "## Data summary",
    "## Data\n",
    "Image 1: negative",
    "Image 2: positive",
    "## Exploratory data analysis",
    "chart-1-classes",
    "chart-2-balanced",
    "## Approach",
    "## Model architecture",
    "### Batch normalization before the activation",
    "### Batch normalization after the activation",
    "## Model comparison: results and analysis",
    '("before", "accuracy"), ("before", "loss"), ("after", "accuracy"), ("after", "loss")',
    "Plot {number}",
    "**Table 1: accuracy before and after",
    "## Test submission",
    "## Hyperparameter tuning",
    "(0.99, 0.75, 0.5, 0.25)",
    '(5, "train_accuracy"',
    '(6, "valid_accuracy"',
    "**Table 2: momentum and accuracy",
    "## Conclusion",
    "### Model comparison",
    "### Hyperparameter tuning",
]


@pytest.fixture(scope="module")
def text() -> str:
    return kaggle.notebook_text(kaggle.Notebook(), ROOT)


def test_it_follows_the_assignment_in_its_order(text: str) -> None:
    notebook = json.loads(text)
    nbformat.validate(notebook)
    source = "\n\n".join(cell["source"] for cell in notebook["cells"])
    place = 0
    for part in IN_ORDER:
        assert part in source[place:], part
        place = source.index(part, place) + 1
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            compile(cell["source"], "a cell", "exec")
    assert not re.search(r"\$\w", source.replace(notebook["cells"][1]["source"], ""))


def test_it_is_small_and_the_same_each_time(text: str) -> None:
    assert len(text) < 1_000_000
    assert text == kaggle.notebook_text(kaggle.Notebook(), ROOT)


IMAGE = os.environ.get("KIT_KAGGLE_IMAGE")
MOUNTS = ("competitions/histopathologic-cancer-detection", "histopathologic-cancer-detection")
# As Kaggle does it, with nothing but the notebook.
EXECUTE = """
import nbformat
from nbclient import NotebookClient
NotebookClient(nbformat.read("notebook.ipynb", 4), timeout=None).execute()
"""
NEEDS_JUPYTER = pytest.mark.skipif(
    find_spec("nbclient") is None or find_spec("ipykernel") is None,
    reason="nbclient and ipykernel are not installed",
)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the notebook was executed, with nothing of the kit at hand but itself."""
    folder = tmp_path_factory.mktemp("executed")
    write_folder(folder / "data", competition_files(train=200, test=9))
    done = execute(folder, "--epochs", "3", "--seeds", "2", "--sweep-seeds", "2")
    assert done.returncode == 0, done.stderr
    return folder


def execute(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    # Sockets' paths have to be short.
    runtime = Path(os.environ["TMPDIR"], "jupyter")
    return subprocess.run(
        [sys.executable, ROOT / "kernels" / "notebook.py", *options],
        cwd=folder,
        env=os.environ | {"JUPYTER_RUNTIME_DIR": str(runtime), "IPYTHONDIR": str(folder / "home")},
        capture_output=True,
        text=True,
    )


@NEEDS_JUPYTER
def test_it_is_executed_to_its_end_with_figures_and_tables_in_it(executed: Path) -> None:
    notebook = json.loads((executed / "notebook.ipynb").read_text())
    nbformat.validate(notebook)
    outputs = [one for cell in notebook["cells"] for one in cell.get("outputs", [])]
    shown = [one["data"] for one in outputs if "data" in one]
    # Both images, two charts, channels, plots 1 to 4, the seeds' AUC, plots 5 and 6.
    assert sum("image/png" in one for one in shown) == 11
    said = "\n".join(joined(one["text/markdown"]) for one in shown if "text/markdown" in one)
    assert "50.0 % of the training tiles are negative" in said
    assert "No conclusion is possible about before and after" in said
    assert " nan " not in said
    tables = "".join(joined(one["text/html"]) for one in shown if "text/html" in one)
    assert "momentum (Keras)" in tables
    assert "Validation accuracy" in tables
    assert not [one for one in outputs if "%|" in joined(one.get("text", ""))]


@NEEDS_JUPYTER
def test_what_it_leaves_can_be_pulled_and_submitted(executed: Path) -> None:
    assert len(pd.read_csv(executed / "submission.csv")) == 9
    sums = json.loads((executed / CHECKSUMS).read_text())
    assert {"submission.csv", f"studies/{NAME}/bn/runs/before-0/metrics.json"} <= sums.keys()


def test_without_data_none_is_begun(tmp_path: Path) -> None:
    done = kernel("notebook", "--data", "none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no data in none: neither")
    assert not list(tmp_path.iterdir())


@NEEDS_JUPYTER
def test_a_cell_that_fails_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", competition_files(train=20, test=3))
    done = execute(tmp_path)
    assert done.returncode == 1
    assert "the notebook stopped: arm before: seed 0: 14 training tiles do not fill" in done.stderr
    assert "Traceback" not in done.stderr
    notebook = json.loads((tmp_path / "notebook.ipynb").read_text())
    assert any(one.get("ename") == "KitError" for one in all_outputs(notebook))


NEEDS_IMAGE = pytest.mark.skipif(
    IMAGE is None, reason="make kaggle-image runs it in Kaggle's image"
)


class Container:
    """A folder laid out as /kaggle, with the notebook in it."""

    def __init__(self, folder: Path, mount: str) -> None:
        self.folder = folder
        self.root = folder / "kaggle"
        self.working = self.root / "working"
        write_folder(self.root / "input" / mount, competition_files(train=200, test=9))
        self.working.mkdir()
        small = kaggle.Notebook(epochs=2, seeds=2, sweep_seeds=2)
        (self.working / "notebook.ipynb").write_text(kaggle.notebook_text(small, ROOT))

    def start(self) -> "subprocess.Popen[str]":
        """Execute the notebook, as Kaggle does it, with the image's Python."""
        assert IMAGE is not None
        return subprocess.Popen(
            [Path(IMAGE).absolute(), "-c", EXECUTE],
            cwd=self.working,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),
                "HCD_KAGGLE_ROOT": str(self.root),
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self) -> None:
        """Execute the notebook to its end."""
        with self.start() as process:
            said = process.communicate()[1]
        assert process.returncode == 0, said
        assert len(pd.read_csv(self.working / "submission.csv")) == 9
        assert (self.working / CHECKSUMS).is_file()
        assert not list(self.working.glob("packed-*"))

    def finished(self) -> dict[str, int]:
        """Return the runs that are finished, and when they were."""
        found = self.working.glob("studies/*/bn/runs/*/metrics.json")
        return {path.parent.name: path.stat().st_mtime_ns for path in found}


@pytest.mark.soak
@NEEDS_IMAGE
@pytest.mark.parametrize("mount", MOUNTS)
def test_it_runs_alone_in_the_image(tmp_path: Path, mount: str) -> None:
    Container(tmp_path, mount).run()


@pytest.mark.soak
@NEEDS_IMAGE
def test_killed_halfway_in_the_image_it_goes_on_when_it_is_run_again(tmp_path: Path) -> None:
    container = Container(tmp_path, MOUNTS[0])
    with container.start() as process:
        until(container.finished)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for number in [*map(int, children), process.pid]:
            os.kill(number, signal.SIGKILL)
    kept = container.finished()
    assert len(kept) < 4
    container.run()
    assert len(container.finished()) == 4
    assert kept.items() <= container.finished().items()


def all_outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for cell in notebook["cells"] for one in cell.get("outputs", [])]


def joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def test_it_is_pushed_as_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        move_in(server, tmp_path, monkeypatch)
        done = kernel("push", "--notebook", "--dataset=me/tiles")
    assert done.returncode == 0, done.stderr
    assert f"next, once it has ended: python kernels/pull.py --name {NAME}" in done.stdout
    assert server.pushed["kernelType"] == "notebook"
    assert server.pushed["slug"] == f"nobody/{NAME}"
    assert server.pushed["datasetDataSources"] == ["me/tiles"]
    assert server.pushed["machineShape"] == "NvidiaTeslaT4"
    cells = json.loads(server.pushed["text"])["cells"]
    assert "GPU = True" in cells[2]["source"]


def test_what_a_notebook_has_no_use_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["--resume"], ["--", "--bn", "after"]):
        done = kernel("push", "--notebook", *words)
        assert done.returncode == 1
        assert "--notebook" in done.stderr
    with pytest.raises(KitError, match="--name x: give 5 to 50"):
        settings = kaggle.Notebook(name="x")
        kaggle.build_notebook(tmp_path, settings, owner="nobody", repository=ROOT)
