"""Studies that several real processes share, some of which are killed."""

import os
import pwd
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import optuna
import pytest
import torch
from conftest import FORKSERVER, Forked
from kaggle_server import until
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from sqlalchemy import text
from sqlalchemy.pool import NullPool

from kit import study
from kit.base import EpochResult, FolderLock, KitError, Recipe
from kit.data import Store, open_store
from kit.study import MomentumSweep, Outcome, Study, sharing
from kit.training import TrainingBar

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(epochs=12, batch_size=8, widths=(4, 6, 8))
MOMENTA = (0.99, 0.5)
CLOCKS = {"seconds": 0.0, "tiles_per_second": 0.0}


def start(count: int, work: Callable[..., None], *arguments: object) -> list[BaseProcess]:
    """Start several workers at once: none may have trained all before another begins."""
    barrier = FORKSERVER.Barrier(count + 1, timeout=120)
    workers = [
        Forked(target=work_together, args=(barrier, work, number, *arguments))
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    return workers


def work_together(barrier: Barrier, work: Callable[..., None], *arguments: object) -> None:
    barrier.wait()
    work(*arguments)


def kill_one_each(
    workers: list[BaseProcess], out: Path, count: int, then: Callable[[], None] = lambda: None
) -> None:
    """Kill the first ones, as soon as every worker is within a run; let the others end."""
    while len(list(out.glob("runs/*/last.pt"))) < len(workers):
        assert all(worker.is_alive() for worker in workers)
        time.sleep(0.002)
    for worker in workers[:count]:
        worker.kill()
        worker.join()
    then()
    for worker in workers[count:]:
        worker.join()
    assert [worker.exitcode for worker in workers[:count]] == [-signal.SIGKILL] * count
    assert [worker.exitcode for worker in workers[count:]] == [0] * (len(workers) - count)


def trained(storage: optuna.storages.BaseStorage, out: Path) -> list[str]:
    """Return the runs that are finished, after a look at how often each was trained."""
    shared = optuna.load_study(study_name=f"{out.name}-runs", storage=storage)
    complete = shared.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    names = [trial.user_attrs["run"] for trial in complete]
    assert len(set(names)) == len(names)
    return sorted(path.name for path in (out / "runs").iterdir() if study.read_outcome(path))


def compare(number: int, data: Path, out: Path, printed: list[Path]) -> None:
    torch.set_num_threads(1)
    sharing.POLL = 0.1
    options = ["--data", data, "--out", out, "--device", "cpu", "--seeds", 2, "--epochs", 12]
    sys.argv = [*map(str, ["compare.py", *options, "--batch-size", 8, "--widths", 4, 6, 8])]
    with printed[number].open("w") as sys.stdout:
        runpy.run_path(str(ROOT / "kernels" / "compare.py"), run_name="__main__")


def test_four_workers_of_which_two_die_do_each_run_once(tiles: Store, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    printed = [tmp_path / f"printed-{number}.txt" for number in range(4)]
    workers = start(4, compare, tiles.folder.parent, out, printed)
    kill_one_each(workers, out, 2)

    names = sorted(f"{arm}-{seed}" for arm in ("before", "after") for seed in range(2))
    journal = JournalFileBackend(str(out / "runs.journal"))
    assert trained(JournalStorage(journal), out) == names
    assert sorted(path.name for path in (out / "runs").iterdir()) == names
    assert printed[2].read_text() == printed[3].read_text()
    assert "Not shown" in printed[2].read_text() or "No conclusion" in printed[2].read_text()
    arms = {bn: replace(RECIPE, bn=bn) for bn in ("before", "after")}
    alone = study.train_arms(Study(tmp_path / "alone", arms, (1,)), tiles, device="cpu")
    for arm, (outcome,) in alone.items():
        assert without_clocks(study.read_outcome(out / "runs" / f"{arm}-1")) == without_clocks(
            outcome
        )


def without_clocks(one: Outcome) -> Outcome:
    return replace(one, history=tuple(replace(epoch, **CLOCKS) for epoch in one.history))


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A server of its own, from Debian's package."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not on this machine (Debian's package postgresql)")
    pytest.importorskip("pg8000")
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp())
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
    quiet |= {"stderr": subprocess.DEVNULL}
    make = [programs[-1] / "initdb", "-D", folder / "data", "-A", "trust", "-U", "kit", "-N"]
    subprocess.run(make, check=True, **quiet)
    where = ["-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
    server = subprocess.Popen([programs[-1] / "postgres", "-D", folder / "data", *where], **quiet)
    try:
        ready = [programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
        while server.poll() is None and subprocess.run(ready, check=False).returncode:
            time.sleep(0.05)
        yield f"postgresql+pg8000://kit@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(folder)


def sweep(_: int, data: Path, out: Path, url: str) -> None:
    torch.set_num_threads(1)
    sharing.POLL = 0.1
    tiles = open_store(data)
    spec = MomentumSweep(out, RECIPE, MOMENTA, (0, 1))
    study.sweep_momenta(spec, tiles, device="cpu", storage=url)


def silent_for_an_hour(storage: RDBStorage, trial: FrozenTrial) -> bool:
    """Make a trial's last sign of life an hour older; return whether it had given any."""
    older = "UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 hour'"
    with storage.engine.begin() as database:
        found = database.execute(text(f"{older} WHERE trial_id = {trial._trial_id}"))
    return found.rowcount == 1


def is_left(trial: FrozenTrial, out: Path) -> bool:
    """Whether no process trains the run of a trial."""
    try:
        FolderLock(out / "runs" / trial.user_attrs["run"]).release()
    except KitError:
        return False
    return True


def test_a_database_hands_the_run_of_a_dead_worker_on(
    tiles: Store, tmp_path: Path, postgresql: str
) -> None:
    out = tmp_path / "shared"
    storage = RDBStorage(postgresql, engine_kwargs={"poolclass": NullPool})
    workers = start(2, sweep, tiles.folder.parent, out, postgresql)

    def let_an_hour_pass() -> None:
        shared = optuna.load_study(study_name=f"{out.name}-runs", storage=storage)
        running = shared.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        for trial in running:
            if "run" in trial.user_attrs and is_left(trial, out):
                until(lambda trial=trial: silent_for_an_hour(storage, trial), seconds=120)

    kill_one_each(workers, out, 1, then=let_an_hour_pass)
    assert trained(storage, out) == [f"sweep-{seed}" for seed in range(2)]
    spec = MomentumSweep(out, RECIPE, MOMENTA, (0, 1))
    shared = study.sweep_momenta(spec, tiles, storage=postgresql)
    single = MomentumSweep(tmp_path / "alone", RECIPE, MOMENTA, (0,))
    alone = study.sweep_momenta(single, tiles, device="cpu")
    for name in ("0.99", "0.5", study.RECALIBRATED):
        assert without_clocks(shared[name][0]) == without_clocks(alone[name][0])


def test_a_trial_without_a_sign_of_life_is_given_up(
    tiles: Store, tmp_path: Path, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies as soon as it has taken up a trial leaves it so."""
    monkeypatch.setattr(sharing, "POLL", 0.1)
    out = tmp_path / "silent"
    out.mkdir()
    storage = RDBStorage(postgresql, engine_kwargs={"poolclass": NullPool})
    shared = optuna.create_study(study_name=f"{out.name}-runs", storage=storage)
    shared.enqueue_trial({}, user_attrs={"run": "sweep-0"})
    assert [shared.ask().number, shared.ask().number] == [0, 1]
    (silent, _) = shared.get_trials()
    # The next worker gives the sign that it did not give.
    assert not silent_for_an_hour(storage, silent)
    passing = threading.Thread(
        target=until, args=(lambda: silent_for_an_hour(storage, silent), 120)
    )
    passing.start()
    spec = MomentumSweep(out, RECIPE, MOMENTA, (0,))
    study.sweep_momenta(spec, tiles, device="cpu", storage=postgresql)
    passing.join()
    assert trained(storage, out) == ["sweep-0"]
    states = [trial.state.name for trial in shared.get_trials(deepcopy=False)]
    assert states[0] == "FAIL" and states.count("COMPLETE") == 1


def test_a_failing_run_is_left_to_the_next_worker(tmp_path: Path) -> None:
    begun = []

    def fail(name: str, _: TrainingBar) -> Iterator[EpochResult]:
        begun.append(name)
        raise KitError("the disk is full")
        yield

    def run(train_one: Callable[[str, TrainingBar], Iterator[EpochResult]]) -> None:
        sharing.share_runs(["a", "b"], tmp_path, train_one, is_done=lambda name: name in done)

    done: set[str] = set()
    with pytest.raises(KitError, match="the disk is full"):
        run(fail)
    assert begun == ["a"]

    def succeed(name: str, _: TrainingBar) -> Iterator[EpochResult]:
        begun.append(name)
        done.add(name)
        yield from ()

    run(succeed)
    assert sorted(begun) == ["a", "a", "b"]


def test_runs_that_a_stopped_command_had_and_this_one_lacks_are_left(tmp_path: Path) -> None:
    begun = []

    def fail(_: str, __: TrainingBar) -> Iterator[EpochResult]:
        raise KitError("stopped")
        yield

    def succeed(name: str, _: TrainingBar) -> Iterator[EpochResult]:
        begun.append(name)
        yield from ()

    def is_done(name: str) -> bool:
        return {"c": "c" in begun}[name]

    with pytest.raises(KitError, match="stopped"):
        sharing.share_runs(["a", "b"], tmp_path, fail, is_done=lambda _: False)
    sharing.share_runs(["c"], tmp_path, succeed, is_done=is_done)
    assert begun == ["c"]


def test_a_journal_whose_end_was_cut_goes_on_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    done: set[str] = set()

    def run(name: str, _: TrainingBar) -> Iterator[EpochResult]:
        done.add(name)
        yield from ()

    def train(*names: str) -> None:
        sharing.share_runs(names, tmp_path, run, is_done=lambda name: name in done)

    train("a")
    journal = tmp_path / "runs.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    train("a", "b")
    train("a", "b", "c")
    assert done == {"a", "b", "c"}
    journal.write_text('{"op_code":\n' + journal.read_text())
    with pytest.raises(KitError, match=r"runs\.journal is damaged: remove it; finished runs are"):
        train("a", "b", "c", "d")
    journal.unlink()
    train("a", "b", "c", "d")
    assert "d" in done


def test_an_unusable_database_is_named_without_its_password(tiles: Store, tmp_path: Path) -> None:
    arms = {bn: replace(RECIPE, bn=bn) for bn in ("before", "after")}
    spec = Study(tmp_path, arms, (0,))
    url = "postgresql+pg8000://me:secret@127.0.0.1:1/none"
    with pytest.raises(KitError, match=re.escape("cannot keep the study in 127.0.0.1:1")) as raised:
        study.train_arms(spec, tiles, device="cpu", storage=url)
    assert "secret" not in str(raised.value)
    assert "the same command goes on" in str(raised.value)


def test_an_address_without_a_user_is_told_how_it_is_written(tiles: Store, tmp_path: Path) -> None:
    arms = {bn: replace(RECIPE, bn=bn) for bn in ("before", "after")}
    spec = Study(tmp_path, arms, (0,))
    with pytest.raises(KitError, match=r"127\.0\.0\.1:1/none names no user: give --storage"):
        study.train_arms(spec, tiles, device="cpu", storage="postgresql+pg8000://127.0.0.1:1/none")
