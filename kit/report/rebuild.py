"""The command and the fingerprints that rebuild a run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kit import runs
from kit.base import command, parse_recipe, recipe_words
from kit.report.page import Section, Table

# What the weights follow from, besides the number of threads.
_REBUILT = ("recipe", "data", "kit", "torch", "precision", "device")


def rebuild_section(typed: str, folders: Mapping[str, Path]) -> Section:
    """Give the command and the fingerprints that rebuild runs, named by arm or seed."""
    names = list(folders)
    facts = {name: _provenance(folder) for name, folder in folders.items()}
    recipes = {name: runs.read_config(folder)["recipe"] for name, folder in folders.items()}
    text = [
        "On the same CPU and number of threads, or on the same GPU with --deterministic, the same "
        "command, with the data and the versions of these fingerprints, gives the same weights bit "
        "for bit. Elsewhere the last digits differ, and training turns that into as much as "
        "another seed does."
    ]
    forced = [name for name, folder in folders.items() if _was_forced(folder)]
    if forced:
        text.append(
            f"{', '.join(forced)} went on by --force with other options, data or versions than it "
            "began with (config.json, resumed_from): no single command rebuilds that."
        )
    return Section(
        "How to rebuild this",
        text=text,
        code=typed,
        tables=[
            Table(_side_by_side("fingerprint", facts, names), "What it was made from."),
            Table(_side_by_side("option", recipes, names), "Every option of the recipe."),
        ],
    )


def train_command(folder: Path, data: Path) -> str:
    """Return the command that trains a run from its beginning, from what its folder records.

    What was typed last may have been another one, such as to go on with the run.
    """
    config = runs.read_config(folder)
    recipe = parse_recipe(config["recipe"], source=f"{folder}/config.json")
    refitted = runs.refit_of(folder)
    own = recipe_words(recipe) if refitted is None else ["--refit", refitted]
    words = [*own, "--data", data, "--out", folder]
    words += ["--device", config["device"], "--workers", config["workers"]]
    if config.get("options", {}).get("deterministic"):
        words.append("--deterministic")
    if (layer := config.get("options", {}).get("cam_layer")) is not None:
        words += ["--cam-layer", layer]
    processes = config.get("processes", 1)
    typed = command("train", *words)
    if processes == 1:
        return typed
    start = f"torchrun --standalone --nproc-per-node={processes}"
    return f"{start} {typed.removeprefix('python ')}"


def _provenance(folder: Path) -> dict[str, Any]:
    """Return what identifies a run's data, weights, versions and hardware."""
    config = runs.read_config(folder)
    facts = {
        "data, SHA-256 of ids and labels": config["data"]["fingerprint"],
        "training tiles": f"{config['data']['train_tiles']:,}",
        "held-out tiles": f"{config['data']['valid_tiles']:,}",
    }
    for name in ("split.csv", "model.safetensors", "valid.csv"):
        facts[f"{name}, SHA-256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    versions = ("kit", "torch", "timm", "python", "device", "precision", "workers", "threads")
    return facts | {name: config.get(name) for name in versions}


def _was_forced(folder: Path) -> bool:
    """Whether a run went on with something else than it began with."""
    now = runs.read_config(folder)
    while (then := now.get("resumed_from")) is not None:
        if any(now.get(key) != then.get(key) for key in _REBUILT):
            return True
        now = then
    return False


def _side_by_side(
    heading: str, values: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> pd.DataFrame:
    """Return a row per key and a column per run, the values as JSON writes them."""
    keys = values[names[0]]
    columns = {name: [_json(values[name].get(key)) for key in keys] for name in names}
    return pd.DataFrame({heading: list(keys)} | columns)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
