"""The folder of a study: what it is about, and what was measured when it began."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import kit
from kit import base, training
from kit.base import FolderLock, KitError, Precision, Recipe, plain_values, read_json, write_json
from kit.data import Store, slides_fingerprint
from kit.runs import is_cross_validation

STUDY_FILE = "study.json"
PRECISION_FILE = "precision.json"
# What a study that has begun holds.
_BEGUN = (STUDY_FILE, "search.json", "runs")


def surroundings(recipes: Iterable[Recipe], store: Store, device: str) -> dict[str, Any]:
    """Return what a study's runs share beside their recipes: code, versions, precision, data.

    Tiles' slides are known by their table's content, whatever it is called.
    """
    recipes = list(recipes)
    chosen = training.choose_device(device)
    tables = {recipe.slides for recipe in recipes if recipe.slides is not None}
    types = {training.choose_precision(recipe.precision, chosen) for recipe in recipes}
    code = {ref: base.read_custom(ref).sha256 for one in recipes for ref in one.custom.values()}
    return {
        **({"custom": code} if code else {}),
        "kit": kit.__version__,
        "torch": torch.__version__,
        "precision": sorted(str(dtype).removeprefix("torch.") for dtype in types),
        "data": store.fingerprint,
        "slides": sorted(slides_fingerprint(path, store) for path in tables),
    }


def settle_precision(folder: Path, recipes: Mapping[str, Recipe], device: str) -> dict[str, Recipe]:
    """Return a study's recipes with one precision for all that leave it open.

    It is measured when the study begins and kept in its folder, for all workers and later calls,
    see `training.settle_precision`. A study that was begun without goes on without.
    """
    open_ones = [recipe for recipe in recipes.values() if training.leaves_precision_open(recipe)]
    if not open_ones:
        return dict(recipes)
    path = folder / PRECISION_FILE
    with FolderLock(folder, wait=True):
        if not path.exists() and not any((folder / name).exists() for name in _BEGUN):
            measured = training.settle_precision(open_ones, device=device)
            write_json(path, {"precision": measured})
    settled = read_precision(folder)
    return {name: training.with_precision(recipe, settled) for name, recipe in recipes.items()}


def read_precision(folder: Path) -> Precision:
    """Return what was measured when the study in a folder began; auto if nothing was."""
    path = folder / PRECISION_FILE
    if not path.exists():
        return "auto"
    record = read_json(path, dict[str, Precision], what="the precision of a study")
    return record.get("precision", "auto")


def precision_words(folder: Path, recipes: Iterable[Recipe]) -> list[str]:
    """Return the option that repeats a study in the precision that was measured, if one can."""
    settled = read_precision(folder)
    is_for_all = all(map(training.leaves_precision_open, recipes))
    return ["--precision", settled] if is_for_all and settled != "auto" else []


def require_no_run(folder: Path) -> None:
    """Refuse a folder that holds a run or a cross-validation, of which pages would be written over.

    Raises
    ------
    KitError
        If it holds one.
    """
    if (folder / "config.json").exists() or is_cross_validation(folder):
        raise KitError(f"{folder} holds a run, which would be written over: choose another --out")


def claim_folder(folder: Path, study: Mapping[str, Any]) -> None:
    """Write what a study is about into its folder, or check that it is what is there.

    Raises
    ------
    KitError
        If the folder holds another study, or one of another version, precision or data.
    """
    require_no_run(folder)
    now = plain_values(study)
    path = folder / STUDY_FILE
    with FolderLock(folder, wait=True):
        if path.exists():
            check_same(folder, read_record(path), now)
        write_json(path, now)


def check_same(
    where: Path | str, then: Mapping[str, Any], now: Mapping[str, Any], *, what: str = "study"
) -> None:
    """Refuse to go on with a study of something else.

    Raises
    ------
    KitError
        Naming the first thing that differs.
    """
    if "kit" not in then:
        raise KitError(
            f"{where} holds a {what} of the kit's version 0.4 or older: go on with that version, "
            "or choose another --out"
        )
    if then != now:
        key, old, new = _difference("", dict(then), dict(now))
        raise KitError(
            f"{where} holds another {what}: its {key} is {old!r}, not {new!r}. "
            f"{'Go on with that version, or choose' if key in ('kit', 'torch') else 'Choose'} "
            "another --out"
        )


def read_record(path: Path) -> dict[str, Any]:
    """Read what a study or a search is about.

    Raises
    ------
    KitError
        If the file is not what the kit writes there.
    """
    try:
        return read_json(path, dict[str, Any], what="the record of a study")
    except KitError as error:
        raise KitError(f"{error}. Choose another --out") from error


def _difference(key: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Find the first value that differs in two nested objects."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(name for name in [*new, *old] if old.get(name) != new.get(name))
        return _difference(f"{key}.{inner}".lstrip("."), old.get(inner), new.get(inner))
    return key, old, new
