"""Live logs: what a real library reads back, and that none of them costs a training."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import RECIPE, Type, contents, run_kernel, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kit import runs
from kit.base import LogKind, Recipe, StoppedError
from kit.data import Store
from kit.runs import begin_run, log_run, open_log

THREE = replace(RECIPE, epochs=3, schedule="one-cycle")
# MLflow uses what a later SQLAlchemy will not have.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload``:sqlalchemy.exc.SADeprecationWarning")
IMAGES = {"plots/roc_curve": np.full((8, 9, 3), 200, np.uint8)}


@dataclass
class Read:
    """A log as it is read back: the figures of epochs in the order of logging, and the rest."""

    epochs: list[tuple[int, dict[str, float]]]
    options: dict[str, str]
    final: dict[str, float]
    images: int


def read_tensorboard(place: Path, folder: Path) -> Read:  # noqa: ARG001
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    steps = [event.step for event in scalars["valid/auc"]]
    by_epoch = {tag: points for tag, points in scalars.items() if not tag.startswith("final/")}
    (hparams,) = (
        value
        for tag, value in events.summary_metadata.items()
        if tag == "_hparams_/session_start_info"
    )
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    start = HParamsPluginData.FromString(hparams.plugin_data.content).session_start_info
    return Read(
        [(step, {tag: p[n].value for tag, p in by_epoch.items()}) for n, step in enumerate(steps)],
        {name: str(plain(value)) for name, value in start.hparams.items()},
        {tag: p[-1].value for tag, p in scalars.items() if tag.startswith("final/")},
        len(events.Tags()["images"]),
    )


def plain(value: Any) -> object:
    """Return what a protocol buffer's value holds; TensorBoard has floats in place of integers."""
    found = getattr(value, value.WhichOneof("kind"))
    return int(found) if isinstance(found, float) and found.is_integer() else found


def read_mlflow(place: Path, folder: Path) -> Read:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'histopathologic-cancer'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "/".join(folder.parts[-2:])
    points = {
        tag: client.get_metric_history(run.info.run_id, tag)
        for tag in run.data.metrics
        if not tag.startswith("final/")
    }
    steps = [point.step for point in points["valid/auc"]]
    return Read(
        [(step, {tag: p[n].value for tag, p in points.items()}) for n, step in enumerate(steps)],
        run.data.params,
        {tag: value for tag, value in run.data.metrics.items() if tag.startswith("final/")},
        len(client.list_artifacts(run.info.run_id)),
    )


def read_trackio(place: Path, folder: Path) -> Read:
    with closing(sqlite3.connect(place / "trackio" / "histopathologic-cancer.db")) as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        ((config,),) = store.execute("SELECT config FROM configs").fetchall()
    assert {row[0] for row in rows} == {"/".join(folder.parts[-2:])}
    found = [(step, json.loads(metrics)) for _, step, metrics in rows]
    *epochs, (_, last) = found
    return Read(
        epochs,
        {name: str(value) for name, value in json.loads(config).items()},
        {name: value for name, value in last.items() if name.startswith("final/")},
        sum(isinstance(value, dict) for value in last.values()),
    )


def read_wandb(place: Path, folder: Path) -> Read:
    """Read the last offline log, which is whole: it has all epochs of a run that went on."""
    *_, last = sorted(
        (place / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns
    )
    own = runs.read_config(folder)
    epochs, options, final = [], {}, {}
    for record in wandb_records(next(last.glob("*.wandb"))):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            options = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            ids = json.loads((folder / "log.json").read_text())
            assert record.run.run_id == ids["wandb"]
        elif kind == "history":
            values = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            if "valid/auc" in values:
                epochs.append((values["_step"], values))
        elif kind == "summary":
            final |= {
                item.key: json.loads(item.value_json)
                for item in record.summary.update
                if item.key.startswith("final/")
            }
    assert own["recipe"].keys() <= options.keys()
    images = list((last / "files" / "media" / "images").rglob("*.png"))
    shown = {name: str(value) for name, value in options.items()}
    return Read(epochs, shown, final, len(images))


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline log, in LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        # Whole, or the last of several parts.
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


READERS: dict[str, Callable[[Path, Path], Read]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


def needs(kind: str) -> Any:
    missing = importlib.util.find_spec(kind) is None
    reason = f"pip install 'histopathologic-cancer-kit[{kind}]'"
    return pytest.param(kind, marks=pytest.mark.skipif(missing, reason=reason))


@pytest.fixture(scope="module")
def plain_run(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `THREE` without a log, to read."""
    return train(THREE, tiles, tmp_path_factory.mktemp("plain") / "run").folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, that logs stay in."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        if name not in ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY"):
            monkeypatch.delenv(name)
    # It reads this when it is first imported, which is in the one test that needs it.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


SENT: list[object] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments[0]
        if address not in (None, "localhost") and not str(address).startswith(
            ("('127.", "/", "b'\\x00")
        ):
            SENT.append((event, address))


@pytest.fixture
def nothing_sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing leaves the machine: neither from here, nor from W&B's own process to its server."""
    if hook not in HOOKS:
        sys.addaudithook(hook)
        HOOKS.append(hook)
    SENT.clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert SENT == []


HOOKS: list[object] = []


def train_logged(
    kind: LogKind, recipe: Recipe, tiles: Store, folder: Path, *, stop: int = 0
) -> None:
    """Train a run with a log, and to its end or until SIGTERM comes after an epoch."""
    resume = (folder / "config.json").exists()
    run = begin_run(recipe, tiles, folder, device="cpu", resume=resume)
    with log_run(kind, run) as log:
        for result in run.train(progress=False):
            if result.epoch == stop:
                os.kill(os.getpid(), signal.SIGTERM)
        log.on_end(folder, IMAGES)
    run._lock.release()


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize("kind", [needs(kind) for kind in get_args(LogKind) if kind != "none"])
def test_a_stopped_and_resumed_run_has_one_whole_log(
    kind: LogKind,
    place: Path,
    tiles: Store,
    plain_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = place / "runs" / "logged"
    with pytest.raises(StoppedError):
        train_logged(kind, THREE, tiles, folder, stop=2)
    train_logged(kind, THREE, tiles, folder)
    said = capsys.readouterr()
    assert said.out.count("the log: ") == 2
    assert "note:" not in said.err

    log, history = READERS[kind](place, folder), runs.read_history(folder)
    assert [epoch for epoch, _ in log.epochs] == [1, 2, 3]
    for (_, figures), result in zip(log.epochs, history, strict=True):
        assert result.lr is not None
        found = [figures[name] for name in ("train/loss", "valid/auc", "lr", "seconds")]
        expected = [result.train_loss, result.valid_auc, result.lr, result.seconds]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert log.options["epochs"] == "3"
    assert log.options["schedule"] == "one-cycle"
    metrics = runs.read_metrics(folder)
    assert log.final["final/auc"] == pytest.approx(metrics["auc"]["estimate"])
    assert log.final["final/log_loss"] == pytest.approx(metrics["log_loss"])
    assert log.images == 1
    # A log changes nothing in what is trained.
    assert contents(folder) == contents(plain_run)


def test_the_learning_rate_follows_the_schedule(plain_run: Path, trained: Path) -> None:
    rates = [result.lr for result in runs.read_history(plain_run)]
    assert rates[0] is not None
    assert THREE.lr > rates[0] > rates[1] > rates[2] >= 0
    assert [result.lr for result in runs.read_history(trained)] == [RECIPE.lr] * 2


def test_train_logs_the_figures_and_the_gallery(tiles: Store, tmp_path: Path) -> None:
    options = ["--data", tiles.data, "--epochs", 2, "--batch-size", 8, "--log", "tensorboard"]
    said = run_kernel("train", *options, "--folds", 2, "--out", tmp_path / "cv")
    assert said.count(f"the log: tensorboard --logdir {tmp_path}/cv") == 2
    for fold in ("fold-0", "fold-1"):
        assert runs.read_config(tmp_path / "cv" / fold)["options"]["log"] == "tensorboard"
        log = read_tensorboard(tmp_path, tmp_path / "cv" / fold)
        assert [epoch for epoch, _ in log.epochs] == [1, 2]
        events = EventAccumulator(str(tmp_path / "cv" / fold / "tensorboard")).Reload()
        assert {"plots/roc_curve", "plots/loss", "gallery/least_sure"} <= {*events.Tags()["images"]}
    # It goes on without the option, as with the others.
    (tmp_path / "cv" / "fold-1" / "report.html").unlink()
    assert "the log: " in run_kernel("train", "--resume", "--out", tmp_path / "cv")


def test_a_finished_run_is_logged_afterwards(run: Path, type_in: Type) -> None:
    status, said = type_in(f"export --run {run} --log tensorboard")
    assert status == 0, said
    log, history = read_tensorboard(run.parent, run), runs.read_history(run)
    assert [epoch for epoch, _ in log.epochs] == [1, 2]
    assert log.epochs[1][1]["valid/auc"] == pytest.approx(history[1].valid_auc)
    assert log.final["final/auc"] == pytest.approx(runs.read_metrics(run)["auc"]["estimate"])
    # Once more, and no epoch is there twice.
    assert type_in(f"export --run {run} --log tensorboard")[0] == 0
    assert [epoch for epoch, _ in read_tensorboard(run.parent, run).epochs] == [1, 2]
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").write_text("in the way")
    status, said = type_in(f"export --run {run} --log tensorboard")
    assert status == 1
    assert "is not logged: the note above says why" in said


def test_the_log_of_a_refit_has_no_figures_of_another_run(tiles: Store, run: Path) -> None:
    out = run.with_name("refit")
    run_kernel("train", "--refit", run, "--data", tiles.data, "--out", out, "--log", "tensorboard")
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    odd = [tag for tag in events.Tags()["scalars"] if tag.startswith(("valid/", "final/"))]
    assert odd == []
    page = run.with_name("runs.html")
    assert "its figures are those of" in run_kernel("runs", run.parent, "--html", page)


@pytest.mark.parametrize("way", ["file", "link"])
def test_a_log_that_cannot_begin_costs_no_training(
    tiles: Store, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    if way == "file":
        (folder / "tensorboard").write_text("in the way")
    else:
        (folder / "tensorboard").symlink_to(tmp_path / "elsewhere")
    train_logged("tensorboard", RECIPE, tiles, folder)
    said = capsys.readouterr().err
    assert said.count("note: no log with tensorboard from here on: ") == 1
    assert contents(folder) == contents(trained)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", [needs("wandb"), needs("mlflow")])
@pytest.mark.parametrize("content", ["{", "[1]", '{"wandb": 1, "mlflow": 1}'])
def test_ids_that_are_damaged_cost_no_training(
    kind: LogKind, content: str, place: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "log.json").write_text(content)
    with open_log(kind, run) as log:
        assert not log.is_open
    assert f"note: no log with {kind} from here on: KitError: {run}" in capsys.readouterr().err
    assert not (place / "wandb").exists()


def test_a_log_that_fails_midway_costs_no_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log("tensorboard", run) as log:
        assert log.is_open
        log.on_end(run, {"no picture": np.zeros(3, np.uint8)})
        assert not log.is_open
        log.on_epoch(runs.read_history(run)[0])
    assert capsys.readouterr().err.count("note: no log with tensorboard from here on") == 1


@pytest.mark.parametrize("kind", [needs("mlflow")])
def test_a_store_that_breaks_costs_no_training(
    kind: LogKind, place: Path, tiles: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin_run(THREE, tiles, place / "run", device="cpu")
    with log_run(kind, run) as log:
        for result in run.train(progress=False):
            if result.epoch == 1:
                (place / "mlflow.db").write_bytes(b"no database" * 1000)
        assert not log.is_open
    assert capsys.readouterr().err.count("note: no log with mlflow from here on") == 1
    assert len(runs.read_history(place / "run")) == 3


def test_a_request_to_stop_is_no_failure_of_the_log(run: Path) -> None:
    class Stopping:
        def items(self) -> None:
            raise StoppedError("stopped")

    with pytest.raises(StoppedError), open_log("tensorboard", run) as log:
        log.on_end(run, Stopping())  # type: ignore[arg-type]


def test_a_missing_library_is_told_before_anything_is_trained(
    tiles: Store, tmp_path: Path, type_in: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    status, said = type_in(f"train --data '{tiles.data}' --out {tmp_path}/run --log trackio")
    assert status == 1
    assert said == (
        "error: trackio is not installed: pip install 'histopathologic-cancer-kit[trackio]'\n"
    )
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    status, said = type_in(f"train --data '{tiles.data}' --out {tmp_path}/run --log tensorboard")
    assert "histopathologic-cancer-kit[export]" in said
