"""The command and the fingerprints that rebuild a run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kit import runs
from kit.report.page import Section, Table


def rebuild_section(command: str, folders: Mapping[str, Path]) -> Section:
    """Give the command and the fingerprints that rebuild runs, named by arm or seed."""
    names = list(folders)
    facts = {name: _provenance(folder) for name, folder in folders.items()}
    recipes = {name: runs.read_config(folder)["recipe"] for name, folder in folders.items()}
    return Section(
        "How to rebuild this",
        text=[
            "On the same processor and number of threads the same command, with the data and the "
            "versions of these fingerprints, gives the same weights bit for bit. Elsewhere the "
            "last digits differ, and training makes of that what it makes of another seed.",
        ],
        code=command,
        tables=[
            Table(_side_by_side("fingerprint", facts, names), "What it was made from."),
            Table(_side_by_side("option", recipes, names), "Every option of the recipe."),
        ],
    )


def _provenance(folder: Path) -> dict[str, Any]:
    """Return what identifies a run's data, weights, versions and hardware."""
    config = runs.read_config(folder)
    facts = {
        "data, SHA-256 of ids and labels": config["data"]["fingerprint"],
        "training tiles": config["data"]["train_tiles"],
        "held-out tiles": config["data"]["valid_tiles"],
    }
    for name in ("split.csv", "model.safetensors", "valid.csv"):
        facts[f"{name}, SHA-256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    versions = ("kit", "torch", "timm", "python", "device", "precision", "workers", "threads")
    return facts | {name: config.get(name) for name in versions}


def _side_by_side(
    heading: str, values: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> pd.DataFrame:
    """Return a row a key and a column a run, the values as JSON writes them."""
    keys = values[names[0]]
    columns = {name: [_json(values[name].get(key)) for key in keys] for name in names}
    return pd.DataFrame({heading: list(keys)} | columns)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
