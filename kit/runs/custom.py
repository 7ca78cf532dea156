"""A person's own code, kept in the run that was trained with it, and run again if it is trusted."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.base import (
    KitError,
    Recipe,
    atomic_path,
    custom_name,
    read_custom,
    require_trust,
)
from kit.runs.folder import finished_file, read_config

CUSTOM = "custom"
"""Folder of a run with the code that its recipe names: OPTION.py."""


def describe_code(recipe: Recipe) -> dict[str, str]:
    """Return the fingerprint, SHA-256, of the code of each option that names some."""
    return {option: read_custom(reference).sha256 for option, reference in recipe.custom.items()}


def other_code(then: dict[str, Any], now: dict[str, Any]) -> Iterable[str]:
    """Say for two records of config.json which options name code that has changed."""
    old, new = then.get("custom", {}), now.get("custom", {})
    for option in sorted(old.keys() & new.keys()):
        if old[option] != new[option]:
            yield f"the code of --{option} has changed (the run's own is {CUSTOM}/{option}.py)"


def keep_code(folder: Path, recipe: Recipe) -> None:
    """Write the code that a recipe names into its run's folder."""
    for option, reference in recipe.custom.items():
        with atomic_path(folder / CUSTOM / f"{option}.py") as partial:
            partial.write_bytes(read_custom(reference).text)


def kept_network(folder: Path, recipe: Recipe) -> str:
    """Return what names the network's code in its run's folder.

    Raises
    ------
    KitError
        If it is not what the run was trained with, or is not trusted.
    """
    path = finished_file(folder, f"{CUSTOM}/model.py")
    reference = f"{path}:{custom_name(recipe.model)}"
    code = read_custom(reference)
    if code.sha256 != read_config(folder).get("custom", {}).get("model"):
        raise KitError(f"{path} is not the code that the run was trained with: bring that back")
    require_trust(code)
    return reference
