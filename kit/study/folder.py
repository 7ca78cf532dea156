"""The folder of a study: what it is about."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import kit
from kit import base, training
from kit.base import FolderLock, KitError, Recipe, plain_values, read_json, write_json
from kit.data import Store, slides_fingerprint

STUDY_FILE = "study.json"


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


def claim_folder(folder: Path, study: Mapping[str, Any]) -> None:
    """Write what a study is about into its folder, or check that it is what is there.

    Raises
    ------
    KitError
        If the folder holds another study, or one of another version, precision or data.
    """
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
