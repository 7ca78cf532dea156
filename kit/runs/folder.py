"""The run folder: what each of its files holds, how it is written and how it is read.

config.json        every option, and the kit's, torch's and the data's fingerprints
split.csv          id,fold
history.jsonl      one object per epoch
last.pt            all that resuming needs
model.safetensors  the weights of the last epoch; of a probe, those of its head
encoder.safetensors  of a probe, the weights of its encoder
tensorboard/       TensorBoard's event files
log.json           by which ids other loggers know the run
custom/            the code of a person's own network or augmentation
architecture/      how a model is built that timm does not know by its name
valid.csv          id,label,probability,logit on the holdout
metrics.json       the final figures, with intervals; it is written last. Of a refit these and
                   valid.csv are of the run that it refits

A folder may come from anyone: whatever is read is checked, and nothing outside of it is read.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from kit.base import (
    LOCK_NAME,
    Count,
    EpochResult,
    KitError,
    command,
    describe_errors,
    parse_recipe,
    read_json,
)

# What a training that was stopped before its first checkpoint has written.
_LEFT_BY_A_START = {
    *(LOCK_NAME, "config.json", "split.csv", "layers.txt", "architecture", "custom"),
    *("log.json", "tensorboard"),
}


@dataclass(frozen=True)
class _Data:
    fingerprint: str
    is_standin: bool
    train_tiles: Count
    valid_tiles: Annotated[int, Field(ge=0)]
    split: str | None = None


@dataclass(frozen=True)
class _Options:
    """How a run was begun, beside its recipe."""

    data: str | None = None
    device: str | None = None
    devices: tuple[str, ...] = ()
    workers: int | None = None
    deterministic: bool = False
    cuda_graphs: bool = True
    checkpoint_steps: int | None = None
    log: str = "none"
    cam_layer: str | None = None


@dataclass(frozen=True)
class _RefitOf:
    run: str


@dataclass(frozen=True)
class _Refit:
    refit_of: _RefitOf | None = None


@dataclass(frozen=True)
class _Config:
    """The types of config.json's entries; what older versions did not record has a default."""

    recipe: dict[str, Any]
    preprocessing: dict[str, Any]
    data: _Data
    class_names: tuple[str, ...] = ()
    options: _Options = _Options()
    custom: dict[str, str] = field(default_factory=dict)
    teachers: dict[str, str] = field(default_factory=dict)
    refit_of: _RefitOf | None = None
    resumed_from: dict[str, Any] | None = None
    precision: str | None = None
    device: str | None = None
    kit: str | None = None
    torch: str | None = None
    timm: str | None = None
    python: str | None = None
    workers: int | None = None
    threads: int | None = None
    processes: int | None = None


_RESULT: TypeAdapter[EpochResult] = TypeAdapter(EpochResult)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's config.json.

    Raises
    ------
    KitError
        If there is none, or it is not one of the kit's: the entry is named.
    """
    path = inside(folder, "config.json")
    if not path.is_file():
        folds = sorted(fold.name for fold in folder.glob("fold-*"))
        if folds:
            raise KitError(
                f"{folder} is a cross-validation: name one of its runs, {', '.join(folds)}"
            )
        raise KitError(f"{folder} holds no run: there is no {path}")
    values = read_typed(path, _Config, what="a run's configuration")
    parse_recipe(values["recipe"], source=str(path))
    return values


def refit_of(folder: Path) -> Path | None:
    """Return the run that a run refits, of which it has the figures; None for any other folder.

    Raises
    ------
    KitError
        If its config.json does not say so in the kit's way.
    """
    path = inside(folder, "config.json")
    if not path.is_file():
        return None
    record = read_json(path, _Refit, what="a run's configuration").refit_of
    return None if record is None else Path(record.run)


def read_history(folder: Path) -> list[EpochResult]:
    """Read a run's history.jsonl, one result per epoch.

    Raises
    ------
    KitError
        If no epoch is finished, or a line is not the result of the epoch that it should be.
    """
    path = inside(folder, "history.jsonl")
    if not path.is_file():
        raise KitError(f"{folder} holds no finished epoch: there is no {path}")
    history: list[EpochResult] = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        try:
            history.append(_RESULT.validate_python(json.loads(line)))
        except ValidationError as error:
            raise KitError(f"{path} line {number} is damaged: {describe_errors(error)}") from error
        except ValueError as error:
            raise KitError(f"{path} line {number} is damaged: {error}") from error
        if history[-1].epoch != number:
            raise KitError(f"{path} line {number} is damaged: it is epoch {history[-1].epoch}")
    if not history:
        raise KitError(f"{folder} holds no finished epoch: {path} is empty")
    return history


def inside(folder: Path, name: str) -> Path:
    """Return a file of a run folder that lies in it: a stranger's link may lead to any file.

    Raises
    ------
    KitError
        If the folder is none, or the file lies elsewhere.
    """
    try:
        is_other = folder.exists() and not folder.is_dir()
    except OSError as error:
        raise KitError(f"cannot read {folder}: {error.strerror}") from error
    if is_other:
        raise KitError(f"{folder} is no folder, and so no run: name the folder of a run")
    path = folder / name
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise KitError(f"{path} is a link to {real}, out of its run folder: copy it there")
    return path


def finished_file(folder: Path, name: str) -> Path:
    """Return a file that a finished run has.

    Raises
    ------
    KitError
        If it is not there, or lies elsewhere.
    """
    path = inside(folder, name)
    if not path.is_file():
        if not any(folder.glob("fold-*")):
            # Says more of what is no run at all.
            read_config(folder)
        raise KitError(
            f"{folder} is not a finished run, there is no {path}: go on with: "
            f"{resume_command(folder)}"
        )
    return path


def resume_command(folder: Path, *options: str) -> str:
    """Return what a user types to go on with a run or a cross-validation, with other options."""
    return command("train", "--resume", "--out", folder, *options)


def require_free(folder: Path, *, whole: Path | None = None) -> None:
    """Refuse a folder that a new run cannot be begun in.

    One that holds no more than what a start leaves that was stopped before its first checkpoint
    is free.

    Parameters
    ----------
    whole
        Of the cross-validation that the run is part of.

    Raises
    ------
    KitError
        If the folder holds something else, cannot be read, or is a file.
    """
    try:
        str(folder).encode()
        names = {path.name for path in folder.iterdir() if path.suffix != ".partial"}
    except FileNotFoundError:
        return
    except UnicodeEncodeError as error:
        name = str(folder).encode("utf-8", "backslashreplace").decode()
        raise KitError(f"{name} is not a name in UTF-8: choose another --out") from error
    except OSError as error:
        raise KitError(f"cannot train into {folder}: {error.strerror}") from error
    if names - _LEFT_BY_A_START:
        is_run = "config.json" in names
        or_resume = f", or go on with: {resume_command(whole or folder)}" if is_run else ""
        raise KitError(f"{folder} exists: choose another --out{or_resume}")
    if "config.json" in names:
        # Nobody else's is written over.
        read_config(folder)


def read_bytes(path: Path) -> bytes:
    """Read a file that may lie anywhere and be anything."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise KitError(f"cannot read {path}: {error.strerror}") from error


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise KitError(f"{path} is damaged: it is not text in UTF-8 ({error.reason})") from error


def read_typed(path: Path, kind: type[object], *, what: str) -> dict[str, Any]:
    """Read a JSON object whose values have the types of a dataclass; further ones may be there."""
    read_json(path, kind, what=what)
    return read_json(path, dict[str, Any], what=what)
