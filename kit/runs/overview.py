"""All runs below some folders as one table: what each is, how it did, or why that is not known.

Only text files are read, and none of them may cost more than its own row: what cannot be read is
listed as such.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

import kit
from kit.base import (
    EpochResult,
    KitError,
    Recipe,
    nearest_recipe,
    option_words,
    parse_recipe,
    printable,
    read_json,
    recipe_values,
)
from kit.runs.folder import read_config, read_history, refit_of
from kit.runs.folds import begun_config, fold_recipes, is_cross_validation
from kit.runs.predictions import read_metrics
from kit.stats import Interval

# A folder that holds one of these is a run, whatever is left of it.
_FILES_OF_RUNS = {"config.json", "history.jsonl", "last.pt", "model.safetensors"}
# Options that say which run of a recipe it is, on which tiles; they have columns of their own.
_PLACE = ("seed", "folds", "fold", "slides", "validate_on")

_COLUMNS: dict[str, Any] = {
    "run": str,
    "kind": str,
    "state": str,
    "recipe": str,
    "changed": str,
    "tiles": "Int64",
    "auc": float,
    "low": float,
    "high": float,
    "accuracy": float,
    "log_loss": float,
    "held_out": "Int64",
    "holds_out": str,
    "minutes": float,
    "device": str,
    "precision": str,
    "kit": str,
    "standin": bool,
    "data": str,
    "split": str,
    "note": str,
}


def runs_table(folders: Iterable[Path]) -> pd.DataFrame:
    """Tabulate all runs and cross-validations below some folders, those of studies among them.

    Returns
    -------
    DataFrame
        A row per run, in the order of their names, with its folder as the index. `state` is
        finished, unfinished, broken, or the version of another kit whose run this one cannot read,
        and `note` says more. `auc` and its interval for new tiles of the same slides are those of
        the finished run; `tiles` are those trained on. The recipe's own options follow.

    Raises
    ------
    KitError
        If one of the folders is not there.
    """
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise KitError(f"there is no folder {missing}: name folders that hold runs")
    seen: set[tuple[int, int]] = set()
    rows = {run: _row(run) for run in chain(*(_runs_below(folder, seen) for folder in folders))}
    table = pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), dtype=object))
    own = table.reindex(columns=list(_COLUMNS))
    for name, kind in _COLUMNS.items():
        column = own[name].astype(object)
        own[name] = (column.fillna(kind()) if kind in (str, bool) else column).astype(kind)
    return own.join(table.drop(columns=own.columns, errors="ignore"))


def _runs_below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield a folder and those below it that are runs, each once; links may lead round in rings."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        inner = [Path(entry) for entry in entries if entry.is_dir()]
    except OSError:
        # Its row says why.
        yield folder
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    names = {entry.name for entry in entries}
    if names & _FILES_OF_RUNS:
        yield folder
        return
    if any(path.name.startswith("fold-") for path in inner):
        yield folder
    for path in inner:
        if not path.name.startswith("."):
            yield from _runs_below(path, seen)


def _row(folder: Path) -> dict[str, Any]:
    """Return what the files of a run say, as far as they can be read."""
    row: dict[str, Any] = {"run": _printable(folder), "state": "finished", "kind": "run"}
    for read in (_read_kind, _read_config, _read_time, _read_figures):
        try:
            row |= read(folder)
        except KitError as error:
            row |= {"state": _broken_state(folder), "note": _join(row.get("note"), str(error))}
        except OSError as error:
            reason = f"cannot read {error.filename or folder}: {error.strerror}"
            row |= {"state": "broken", "note": _join(row.get("note"), reason)}
    return row


def _read_kind(folder: Path) -> dict[str, Any]:
    if is_cross_validation(folder):
        return {"kind": "cross-validation"}
    return {"kind": "fold" if folder.name.startswith("fold-") else "run"}


def _read_config(folder: Path) -> dict[str, Any]:
    """Return what a run is, on which tiles, and on which hardware."""
    config = begun_config(folder)
    recipe = parse_recipe(config["recipe"], source=f"{folder}/config.json")
    name, changed = nearest_recipe(recipe)
    changed = {option: value for option, value in changed.items() if option not in _PLACE}
    options = {name: _plain(value) for name, value in recipe_values(recipe).items()}
    return options | {
        "recipe": name,
        "changed": _printable(" ".join(option_words(changed))),
        "tiles": config["data"]["train_tiles"],
        "holds_out": _holds_out(recipe),
        "device": config.get("device"),
        "precision": config.get("precision"),
        "kit": config.get("kit"),
        "standin": config["data"]["is_standin"],
        "data": config["data"]["fingerprint"][:8],
        "split": (config["data"].get("split") or "")[:8],
    }


def _holds_out(recipe: Recipe) -> str:
    """Say whether whole slides are held out, or tiles of slides that are trained on as well."""
    if recipe.slides is None:
        return "tiles"
    return _printable(" ".join(["slides", *recipe.validate_on]))


def _read_time(folder: Path) -> dict[str, Any]:
    """Return how long a run was trained, and how far if it is not finished."""
    if is_cross_validation(folder):
        return _read_folds(folder)
    if not (folder / "history.jsonl").exists() and not (folder / "metrics.json").exists():
        return {"state": "unfinished", "note": "no epoch"}
    history = read_history(folder)
    found: dict[str, Any] = {"minutes": _minutes(history)}
    if not (folder / "metrics.json").exists():
        epochs = read_config(folder)["recipe"].get("epochs", Recipe.epochs)
        found |= {"state": "unfinished", "note": f"epoch {len(history)} of {epochs}"}
    return found


def _read_folds(folder: Path) -> dict[str, Any]:
    config = begun_config(folder)
    recipe = parse_recipe(config["recipe"], source=f"{folder}/config.json")
    folds = [path for path, _ in fold_recipes(recipe, folder)] if recipe.folds else []
    begun = [path for path in folds if (path / "history.jsonl").exists()]
    found: dict[str, Any] = {"minutes": sum(_minutes(read_history(path)) for path in begun)}
    if not (folder / "metrics.json").exists():
        done = sum((path / "metrics.json").exists() for path in folds)
        found |= {"state": "unfinished", "note": f"{done} of {len(folds)} folds"}
    return found


def _minutes(history: list[EpochResult]) -> float:
    return sum(result.seconds for result in history) / 60


def _read_figures(folder: Path) -> dict[str, Any]:
    """Return the final figures, if there are any."""
    if not (folder / "metrics.json").exists():
        return {}
    figures = read_metrics(folder)
    auc = Interval(**figures["auc"])
    if not is_cross_validation(folder) and not (folder / "model.safetensors").exists():
        raise KitError(f"there is no {folder / 'model.safetensors'}")
    origin = refit_of(folder)
    whose = {} if origin is None else {"note": _printable(f"its figures are those of {origin}")}
    return whose | {
        "auc": auc.estimate,
        "low": auc.low,
        "high": auc.high,
        "accuracy": figures["accuracy"],
        "log_loss": figures["log_loss"],
        "held_out": figures["tiles"],
    }


def _broken_state(folder: Path) -> str:
    """Say whether a run that cannot be read is one of another version of the kit."""
    try:
        config = read_json(folder / "config.json", dict[str, Any], what="a JSON object")
    except KitError:
        return "broken"
    version = str(config.get("kit", kit.__version__))
    return "broken" if version == kit.__version__ else f"of version {_printable(version[:20])}"


def _join(note: str | None, more: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, [note, _printable(more)])))


def _plain(value: Any) -> Any:
    """Return an option as a cell of a table holds it."""
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _printable(text: object) -> str:
    """Return a text of others, such as a folder's name, in one line that can be written."""
    line = printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")
    return line.encode("utf-8", "backslashreplace").decode()
