"""Live logs of a training: TensorBoard, Weights & Biases, MLflow, Trackio.

A logger is a class of three methods, see `Logger`; each has a module of its own. By default nothing
leaves the machine. A logger that fails is told of once and left out from there on: it costs no
training.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from kit.base import (
    EpochResult,
    LogKind,
    Pixels,
    printable,
    read_json,
    shorten,
    write_json,
)
from kit.runs.extras import import_extra
from kit.runs.folder import inside, read_config, read_history, refit_of
from kit.runs.predictions import read_metrics
from kit.runs.run import Run

PROJECT = "histopathologic-cancer"
_IDS = "log.json"


class Logger(Protocol):
    """What a library for logs is to the kit.

    Attributes
    ----------
    last
        The last epoch that the log holds when it is opened; 0 for a new one.
    look
        The command that shows it.
    """

    last: int
    look: str

    def on_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Take the figures of an epoch, such as train/loss, counted from 1."""

    def on_end(self, figures: Mapping[str, float], images: Mapping[str, Pixels]) -> None:
        """Take the final figures, such as final/auc, and pictures by their titles."""

    def close(self, *, finished: bool) -> None:
        """Write all that was taken; a run that is not finished may go on later."""


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told of a run when it is opened.

    Attributes
    ----------
    name
        The last two parts of the folder's path.
    options
        The recipe's, as plain values.
    epochs
        That its history holds.
    """

    folder: Path
    name: str
    options: dict[str, Any]
    epochs: int

    def read_id(self, kind: LogKind) -> str | None:
        """Return the id that the run was given in a log."""
        path = inside(self.folder, _IDS)
        ids = read_json(path, dict[str, str], what="ids of logs") if path.exists() else {}
        return ids.get(kind)

    def keep_id(self, kind: LogKind, value: str) -> None:
        """Keep an id of the run, so that a run that goes on goes on in the same log."""
        path = inside(self.folder, _IDS)
        ids = read_json(path, dict[str, str], what="ids of logs") if path.exists() else {}
        write_json(path, ids | {kind: value})


class SafeLog:
    """A log that costs no training: what fails in its library ends the log, with one note."""

    def __init__(self, kind: LogKind, folder: Path) -> None:
        self._kind = kind
        self._logger: Logger | None = None
        if kind != "none":
            self._try(lambda: self._open(logged_run(folder)))

    @property
    def is_open(self) -> bool:
        """Whether there is a log that still takes something."""
        return self._logger is not None

    def _open(self, run: LoggedRun) -> None:
        self._logger = _open_logger(self._kind, run)
        print(f"the log: {self._logger.look}", flush=True)
        for result in _history(run.folder):
            self.on_epoch(result)

    def on_epoch(self, result: EpochResult) -> None:
        """Log an epoch that the log does not hold yet."""
        logger = self._logger
        if logger is not None and result.epoch > logger.last:
            self._try(lambda: logger.on_epoch(result.epoch, epoch_figures(result)))

    def on_end(self, folder: Path, images: Mapping[str, Pixels]) -> None:
        """Log a finished run's figures and pictures."""
        logger = self._logger
        if logger is not None:
            self._try(lambda: logger.on_end(final_figures(folder), images))

    def close(self, *, finished: bool) -> None:
        """End the log."""
        logger = self._logger
        if logger is not None:
            self._try(lambda: logger.close(finished=finished))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            # Whatever goes wrong in a library of others, a network or a full disk among it.
            self._logger = None
            words = f"{type(error).__name__}: {error}".split()
            reason = shorten(printable(" ".join(words)), 300)
            print(
                f"note: no log with {self._kind} from here on: {reason}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def log_run(kind: LogKind, run: Run) -> Iterator[SafeLog]:
    """Log each epoch that a run trains while the block lasts, in the process of rank 0."""
    with open_log(kind if run.rank == 0 else "none", run.folder) as log:
        run.on_epoch = log.on_epoch
        yield log


@contextmanager
def open_log(kind: LogKind, folder: Path) -> Iterator[SafeLog]:
    """Log a run that was begun in a folder, while the block lasts; it goes on where it was.

    What the run's history holds and the log lacks is logged first.
    """
    log = SafeLog(kind, folder)
    try:
        yield log
    except BaseException:
        log.close(finished=False)
        raise
    log.close(finished=True)


def logged_run(folder: Path) -> LoggedRun:
    """Return what a logger is told of the run in a folder."""
    name = "/".join(folder.resolve().parts[-2:])
    return LoggedRun(folder, name, read_config(folder)["recipe"], len(_history(folder)))


def _history(folder: Path) -> list[EpochResult]:
    return read_history(folder) if (folder / "history.jsonl").exists() else []


def require_logger(kind: LogKind) -> None:
    """Refuse a logger whose library is missing, before anything is trained.

    Raises
    ------
    KitError
        Saying how to install it.
    """
    if kind != "none":
        import_extra(kind, "export" if kind == "tensorboard" else kind)


def epoch_figures(result: EpochResult) -> dict[str, float]:
    """Return an epoch's figures by the names that logs give them: train/loss, valid/auc, ..."""
    figures = {}
    for name, value in asdict(result).items():
        if name != "epoch" and value is not None:
            side, _, figure = name.partition("_")
            # train/loss and valid/loss; the others as they are.
            figures[f"{side}/{figure}" if side in ("train", "valid") else name] = value
    return figures


def final_figures(folder: Path) -> dict[str, float]:
    """Return a finished run's figures by the names that logs give them: final/auc, ...

    Those of a refit are another run's, and left out.
    """
    if refit_of(folder) is not None:
        return {}
    metrics = read_metrics(folder)
    auc = metrics["auc"]
    figures = {"auc": auc["estimate"], "auc_low": auc["low"], "auc_high": auc["high"]} | {
        name: value for name, value in metrics.items() if name != "auc"
    }
    return {
        f"final/{name}": value for name, value in figures.items() if isinstance(value, int | float)
    }


def _open_logger(kind: LogKind, run: LoggedRun) -> Logger:
    """Open a logger; its library is imported here."""
    if kind == "tensorboard":
        from kit.runs.log_tensorboard import TensorBoardLogger

        return TensorBoardLogger(run)
    if kind == "wandb":
        from kit.runs.log_wandb import WandbLogger

        return WandbLogger(run)
    if kind == "mlflow":
        from kit.runs.log_mlflow import MlflowLogger

        return MlflowLogger(run)
    from kit.runs.log_trackio import TrackioLogger

    return TrackioLogger(run)
