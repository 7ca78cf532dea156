"""What a run is: the record of it in config.json, and whether it fits what is asked for now."""

import dataclasses
import platform
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

import kit
from kit import models
from kit.base import CLASS_NAMES, KitError, Recipe, parse_recipe, recipe_values
from kit.data import Store
from kit.runs.custom import describe_code, other_code
from kit.runs.teachers import describe_teachers, other_teachers, still_taught
from kit.training import choose_precision

# Of the recipe, what may change in a run that has begun: how long it trains, and in what precision.
# All else decides what its network, its training or its holdout is.
CHANGEABLE = ("epochs", "precision")
# Beside the recipe and the data, what must be the same for a resumed run to be the run that was
# never interrupted.
SURROUNDINGS = ("kit", "torch", "timm", "precision", "device")


class Differences(NamedTuple):
    """In what a run differs from what is asked for.

    Attributes
    ----------
    fixed
        What makes it another run.
    changeable
        What a run may go on with on demand.
    """

    fixed: list[str]
    changeable: list[str]

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self.fixed or self.changeable)


def versions() -> dict[str, str]:
    """Return the versions of what trains a run."""
    return {
        "kit": kit.__version__,
        # A class of its own, which no checkpoint could hold.
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "python": platform.python_version(),
    }


def describe(recipe: Recipe, store: Store, folder: Path, device: torch.device) -> dict[str, Any]:
    """Return what identifies the run of a folder on a device, as config.json holds it.

    Raises
    ------
    KitError
        If the device cannot compute in the recipe's precision, or a teacher is not finished.
    """
    recipe = models.follow_model(recipe)
    mean, std = recipe.channel_statistics
    dtype = choose_precision(recipe.precision, device)
    return {
        "recipe": recipe_values(recipe),
        "preprocessing": {
            "crop": recipe.crop,
            "size": recipe.size,
            "interpolation": recipe.interpolation,
            "mean": mean,
            "std": std,
        },
        "class_names": CLASS_NAMES,
        # Other models keep their own.
        "bn_momentum_in_pytorch": 1 - recipe.bn_momentum if recipe.is_built_in else None,
        "custom": describe_code(recipe),
        "teachers": describe_teachers(still_taught(recipe, folder)),
        "data": {"fingerprint": store.fingerprint, "is_standin": store.is_standin},
        "precision": str(dtype).removeprefix("torch."),
        "device": str(device),
        **versions(),
    }


def compare(
    then: dict[str, Any], now: dict[str, Any], *, ignore: Collection[str] = ()
) -> Differences:
    """Compare two records of config.json; what the older one does not hold is passed over.

    Parameters
    ----------
    ignore
        Names of surroundings that may differ.
    """
    old, new = (parse_recipe(values["recipe"], source="config.json") for values in (then, now))
    fixed: list[str] = []
    changeable: list[str] = []
    for field in dataclasses.fields(Recipe):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            name = field.name.replace("_", "-")
            option = f"--{name} was {_said(before)} and is {_said(after)}"
            (changeable if field.name in CHANGEABLE else fixed).append(option)
    fixed += [*other_code(then, now), *other_teachers(then, now)]
    before, after = (values.get("refit_of") for values in (then, now))
    if before != after:
        names = [value and value["run"] for value in (before, after)]
        fixed.append(
            f"--refit was {names[0]} and is {names[1]}"
            if names[0] != names[1]
            else f"{names[0]}, which it refits, has other predictions now"
        )
    if then["data"]["fingerprint"] != now["data"]["fingerprint"]:
        fixed.append("the tiles or labels of --data were others")
    for name in SURROUNDINGS:
        if name in ignore or (name == "timm" and new.is_built_in):
            continue
        before, after = then.get(name), now[name]
        if before is not None and before != after:
            changeable.append(f"{name} was {before} and is {after}")
    return Differences(fixed, changeable)


def _said(value: object) -> str:
    """Return an option's value as it is typed."""
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def require_same(folder: Path, differences: Differences, *, force: bool) -> None:
    """Refuse to go on with a run that is not what is asked for.

    Parameters
    ----------
    force
        Take what may change.

    Raises
    ------
    KitError
        Naming each difference.
    """
    fixed, changeable = differences
    if fixed:
        typed = any(one.startswith("--") for one in fixed)
        step = "Leave these options out to go on with it, or train" if typed else "Train"
        raise KitError(
            f"{folder} is another run: {'; '.join(fixed)}. {step} a new run with another --out"
        )
    if changeable and not force:
        raise KitError(
            f"{folder} would not be the run that was begun: {'; '.join(changeable)}. Add --force "
            "to go on with it anyway, or train a new run with another --out"
        )
