"""Runs that many workers share through Optuna's storage: each is trained by one of them.

The storage, a journal file on a shared folder or a database, hands out the runs; what is
trained is what lies in the folder. If a worker dies, its run is handed out again.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from kit.base import EpochResult, FileLock, FolderLock, KitError, StoppedError
from kit.training import TrainingBar

# Seconds between a database worker's signs of life, until it is given up, and between looks
# at trials that others run.
HEARTBEAT = 20
GRACE = 60
POLL = 1.0

STORAGE_ERRORS = (SQLAlchemyError, StorageInternalError, OSError)

Again = Callable[[Study, FrozenTrial], None]

TrainOne = Callable[[str, TrainingBar], Iterable[EpochResult]]


class SurplusTrial(Exception):
    """Ends a trial that another worker has begun, too."""


class LeaveTrial(BaseException):
    """Passes by Optuna's handlers, so that the trial stays as a killed worker would leave it."""


def share_runs(
    names: Sequence[str],
    folder: Path,
    train_one: TrainOne,
    *,
    is_done: Callable[[str], bool],
    storage: str | None = None,
) -> None:
    """Train what is not trained yet, together with all workers that call this; return at the end.

    Parameters
    ----------
    names
        Of the runs, which are begun in this order.
    folder
        The study's, the same for all workers. Without `storage` its file system must have locks
        (flock), as local disks and NFS do.
    train_one
        Trains a run of that name, or goes on with one whose worker died, and moves the bar.
    is_done
        Whether a run is finished, as its files say.
    storage
        An SQLAlchemy URL; by default a journal file in the folder.

    Raises
    ------
    KitError
        If the storage cannot be used, or a run fails: the other workers go on.
    """

    def is_left(name: str) -> bool:
        # A storage may hold runs of a command that had more of them, and was stopped.
        return name in names and not is_done(name)

    silence()
    journal = folder / "runs.journal"
    lock = folder / "runs.lock" if storage is None else None
    with naming("study", storage, journal), TrainingBar(len(names)) as bar:
        study = _open_study(folder, storage, journal)
        bar.skip(sum(map(is_done, names)))
        while left := [name for name in names if is_left(name)]:
            bar.reach(len(names) - len(left))
            give_up_dead(study, lock)
            _enqueue(study, left)
            if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                optimize_one(study, lambda trial: _objective(trial, train_one, is_left, bar), lock)
            else:
                bar.label = "waiting for the runs of other workers"
                time.sleep(POLL)


def _open_study(folder: Path, storage: str | None, journal: Path) -> Study:
    # Workers that start together would all make the database's tables.
    with FolderLock(folder, wait=True):
        return optuna.create_study(
            study_name=f"{folder.resolve().name}-runs",
            storage=open_storage(storage, journal, remedy="remove it; finished runs are kept"),
            load_if_exists=True,
        )


def silence() -> None:
    """Keep Optuna from telling what the bar tells; what ends a search is told as an error."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)


def optimize_one(
    study: Study,
    objective: Callable[[Trial], float],
    lock: Path | None,
    callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
) -> None:
    """Take up one trial of the study; see `give_up_dead` for the lock."""
    try:
        with FileLock(lock, shared=True) if lock else nullcontext():
            study.optimize(objective, n_trials=1, catch=(SurplusTrial,), callbacks=[*callbacks])
    except LeaveTrial as left:
        assert left.__cause__ is not None
        raise left.__cause__ from None


@contextmanager
def leaving(trial: Trial) -> Iterator[None]:
    """Leave the trial for the next worker, or this one's next start, when it cannot go on."""
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise LeaveTrial from KitError(
            f"trial {trial.number} was given up: nothing was heard of this machine for "
            f"{GRACE} seconds. Type the same command again to go on ({error})"
        )
    except (KitError, KeyboardInterrupt, StoppedError, *STORAGE_ERRORS) as error:
        raise LeaveTrial from error


def give_up_dead(study: Study, lock: Path | None, again: Again | None = None) -> None:
    """Give up the trials of workers that died, and call `again` with each.

    A worker holds a shared lock while it trains, and loses it with its life: who gets the
    lock for itself alone knows that no trial is being trained. Workers that share a database
    and perhaps no locks have the database's heartbeats instead.
    """
    if lock is None:
        with no_experimental_warning():
            optuna.storages.fail_stale_trials(study)
        return
    with suppress(BlockingIOError), FileLock(lock, wait=False):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            if again is not None:
                again(study, trial)


def open_storage(
    storage: str | None,
    journal: Path,
    again: Again | None = None,
    *,
    remedy: str = "choose another --out",
) -> BaseStorage:
    """Open a database, or the journal file where none is named.

    Parameters
    ----------
    remedy
        What to do about a damaged journal.
    again
        Called with each trial of a database that is given up.

    Raises
    ------
    KitError
        If there is no driver for it, or it is damaged, or holds another version's tables.
    """
    if storage is None:
        lock = _JournalLock(journal.with_name("journal.lock"))
        if journal.exists():
            _drop_cut_line(journal)
        try:
            return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
        # What Optuna raises depends on the line and on where it is damaged.
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise KitError(f"{journal} is damaged: {remedy} ({error!r})") from error
    require_storage(storage)
    try:
        with no_experimental_warning():
            return _Database(
                storage,
                # A network may cut a connection that is idle for an epoch: none is kept.
                engine_kwargs={"poolclass": NullPool},
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=again,
            )
    except (ImportError, RuntimeError) as error:
        raise KitError(f"cannot use {storage_name(storage, journal)}: {error}") from error


def _lacks_user(url: URL) -> bool:
    """Whether an address lacks the user that pg8000 does not do without."""
    return "pg8000" in url.drivername and not (url.username or url.query.get("user"))


def _drop_cut_line(journal: Path) -> None:
    """Drop a last line that a machine's end has cut: no worker was told that it was written.

    Optuna passes over it, and would write the next one behind it, on the same line.
    """
    with FileLock(journal.with_name("journal.lock")), journal.open("r+b") as file:
        content = file.read()
        whole = content.rstrip(b"\0")
        end = whole.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)
            os.fsync(file.fileno())


def require_storage(storage: str | None) -> None:
    """Refuse an address that is none of a database, before anything is opened.

    Raises
    ------
    KitError
        If it is not an SQLAlchemy URL, or lacks the user.
    """
    if storage is None:
        return
    name = storage_name(storage, Path())
    try:
        url = make_url(storage)
    except SQLAlchemyError as error:
        raise KitError(
            f"--storage {name} is no address of a database: give postgresql+pg8000://USER@HOST/NAME"
        ) from error
    if _lacks_user(url):
        raise KitError(
            f"{name} names no user: give --storage as postgresql+pg8000://USER@HOST/NAME"
        )


def storage_name(storage: str | None, journal: Path) -> str:
    """Return a storage's address, without who uses it by what password."""
    return str(journal) if storage is None else storage.rpartition("@")[2]


@contextmanager
def naming(what: str, storage: str | None, journal: Path) -> Iterator[None]:
    """Name the storage in the errors that it raises."""
    try:
        yield
    except STORAGE_ERRORS as error:
        reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
        raise KitError(
            f"cannot keep the {what} in {storage_name(storage, journal)}: {reason}. What is "
            "finished is kept: the same command goes on"
        ) from error


@contextmanager
def no_experimental_warning() -> Iterator[None]:
    """Silence Optuna's note that an interface may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class _Database(RDBStorage):
    """A database that also gives up a trial whose worker died before its first sign of life.

    Optuna gives up no trial without one, and the others would wait for it for ever. So each
    worker gives one sign for every running trial that it sees for the first time.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._seen: set[int] = set()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        stale = super()._get_stale_trial_ids(study_id)
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        new = {trial._trial_id for trial in running} - self._seen.union(stale)
        for trial_id in new:
            self.record_heartbeat(trial_id)
        self._seen |= new
        return stale


class _JournalLock(JournalFileOpenLock):
    """A lock that ends with its process; Optuna's own outlive a killed one by half a minute."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        self.lock = FileLock(self.path)
        return True

    def release(self) -> None:
        self.lock.release()


def _objective(
    trial: Trial,
    train_one: TrainOne,
    is_left: Callable[[str], bool],
    bar: TrainingBar,
) -> float:
    """Train the run that a trial stands for; the AUC is for those who look into the storage."""
    name, auc = trial.user_attrs.get("run", ""), 0.0
    # Two workers may both have found that a run is missing.
    if not is_left(name) or name in _open_runs(trial.study, before=trial.number):
        raise SurplusTrial
    bar.label = name
    with leaving(trial):
        for result in train_one(name, bar):
            auc = result.valid_auc or auc
            bar.label = f"{name}, AUC {auc:.4f}"
    return auc


def _enqueue(study: Study, names: Iterable[str]) -> None:
    """Have a trial for each run that no one trains or is about to."""
    there = _open_runs(study)
    for name in names:
        if name not in there:
            study.enqueue_trial({}, user_attrs={"run": name})


def _open_runs(study: Study, before: float = float("inf")) -> set[str]:
    """Return the runs of the trials that wait or run, of those before a number."""
    states = (TrialState.WAITING, TrialState.RUNNING)
    trials = study.get_trials(deepcopy=False, states=states)
    # A worker that comes too late for the last waiting trial gets one without a run.
    theirs = (trial.user_attrs for trial in trials if trial.number < before)
    return {attributes["run"] for attributes in theirs if "run" in attributes}
