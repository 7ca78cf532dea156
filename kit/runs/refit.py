"""Refitting: the recipe of a finished run, trained on its training and held-out tiles together.

A refit has no holdout of its own, and so no figures: valid.csv and metrics.json are those of the
run that it refits, which chose it, and say so.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from kit import models
from kit.base import KitError, Recipe, parse_recipe
from kit.data import Batch, Store
from kit.runs.folder import finished_file, read_bytes, read_config
from kit.runs.folds import begun_config, members
from kit.runs.predictions import read_metrics, read_valid, write_predictions
from kit.training import TrainingState


def refit_recipe(run: Path) -> Recipe:
    """Return the recipe that a finished run, or cross-validation, is refitted by.

    Raises
    ------
    KitError
        If it is not finished, is a refit itself, or its holdout chose the epoch that it kept.
    """
    read_metrics(run)
    config = begun_config(run)
    if config.get("refit_of") is not None:
        raise KitError(f"{run} is a refit itself: name the run that it refits")
    recipe = parse_recipe(config["recipe"], source=f"{run}/config.json")
    if recipe.keep == "best":
        raise KitError(
            f"{run} kept the epoch that did best on its holdout, which a refit does not have: "
            "train it with --keep last, and refit that"
        )
    return replace(recipe, folds=None, fold=None)


def refit_record(run: Path, store: Store) -> dict[str, str]:
    """Return what config.json says of the run that is refitted.

    Raises
    ------
    KitError
        If it is not finished, or of other data.
    """
    for member in members(run):
        if read_config(member)["data"]["fingerprint"] != store.fingerprint:
            raise KitError(
                f"{run} was trained on other data than {store.folder} holds: give the --data that "
                "it was trained on"
            )
    content = read_bytes(finished_file(run, "valid.csv"))
    return {"run": str(run), "valid.csv": hashlib.sha256(content).hexdigest()}


def write_refit(folder: Path, **also: Any) -> dict[str, Any]:
    """Write the predictions and figures of the run that a refit's folder names, as what they are.

    Raises
    ------
    KitError
        If that run is gone, or another one by now.
    """
    record = read_config(folder)["refit_of"]
    run = Path(record["run"])
    content = read_bytes(finished_file(run, "valid.csv"))
    if hashlib.sha256(content).hexdigest() != record["valid.csv"]:
        raise KitError(f"{run} is not the run any more that {folder} was begun to refit")
    valid = read_valid(run)
    columns = (valid[name].to_numpy() for name in ("id", "label", "logit"))
    return write_predictions(folder, *columns, refit_of=str(run), **also)


def unjudged(state: TrainingState, _: DataLoader[Batch]) -> dict[str, Any]:
    """Stand for `evaluate` where no tile is held out: there are no validation figures."""
    figures = dict.fromkeys(("valid_loss", "valid_accuracy", "valid_auc"))
    return {**figures, "min_running_var": models.min_running_var(state.model)}
