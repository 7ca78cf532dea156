"""What a pushed command can reach on Kaggle, and what it would lack there, told beforehand."""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path

from kit.base import KitError, read_recipe
from kit.kaggle.job import Job

# Where datasets and models are mounted.
_THERE = "/kaggle/"
_OPTIONS = ("--model", "--augment", "--weights", "--slides")
_DATASET = "[A-Za-z0-9_-]+/[A-Za-z0-9_-]+"
_MODEL = "([A-Za-z0-9._-]+/){4}[0-9]+"


@dataclass(frozen=True)
class Reach:
    """What a kernel may use besides the competition's data.

    Attributes
    ----------
    datasets
        Of Kaggle, to be mounted: OWNER/NAME.
    models
        Of Kaggle, to be mounted: OWNER/MODEL/FRAMEWORK/VARIATION/VERSION.
    internet
        Whether it may use the network, which Kaggle allows to accounts with a verified phone.

    Raises
    ------
    KitError
        If a name is not one of those.
    """

    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    internet: bool = False

    def __post_init__(self) -> None:
        """Refuse names that the client would refuse in other words."""
        for name in self.datasets:
            if not re.fullmatch(_DATASET, name):
                raise KitError(f"--dataset {name}: give OWNER/NAME, as in its address on Kaggle")
        for name in self.models:
            if not re.fullmatch(_MODEL, name):
                raise KitError(
                    f"--kaggle-model {name}: give OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, as its "
                    "page on Kaggle shows it, such as timm/resnet/pyTorch/resnet50.a1_in1k/1"
                )


NOTHING_ELSE = Reach()


def complete(job: Job, reach: Reach) -> Job:
    """Return a job that finds on Kaggle what it needs, its weights from a mount if need be.

    Raises
    ------
    KitError
        Naming what the command would lack there, and how it can have it.
    """
    given = _given(job.arguments)
    for flag, file in (("--slides", given.slides), ("--weights", given.weights)):
        if file is not None and not Path(file).is_file() and not file.startswith(_THERE):
            raise KitError(f"{flag} {file}: there is no such file here, nor would there be there")
    of_recipes = (str(run) for name in _recipes(given) for run in read_recipe(name).teacher)
    for run in [*given.teacher, *of_recipes]:
        if not run.startswith(_THERE):
            raise KitError(
                f"--teacher {run}: runs do not go along: mount it with --dataset OWNER/NAME and "
                "give its path there, /kaggle/input/..., or train here"
            )
    if given.refit is not None:
        raise KitError(f"--refit {given.refit}: runs do not go along: refit it here")
    if given.storage is not None and not reach.internet:
        raise KitError("--storage: a kernel without internet reaches no database: add --internet")
    _require_named_here(given)
    _require_models(given, reach)
    wanted = _pretrained(given)
    if not wanted or reach.internet:
        return job
    if not (reach.datasets or reach.models):
        raise KitError(
            f"{', '.join(wanted)} would start from published weights, which a kernel without "
            "internet cannot fetch: push with --internet (it wants a verified phone number), or "
            "mount the weights with --dataset OWNER/NAME or --kaggle-model "
            "OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, or start from nothing with --no-pretrained"
        )
    if len(wanted) > 1:
        raise KitError(
            f"the arms start from the weights of {' and '.join(wanted)}, and mounted ones serve "
            "one model: push with --internet"
        )
    return replace(job, weights=wanted[0])


def _given(arguments: tuple[str, ...]) -> argparse.Namespace:
    """Return what a command line says of weights and files."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in (*_OPTIONS, "--recipe", "--refit", "--storage"):
        parser.add_argument(flag)
    parser.add_argument("--teacher", nargs="+", default=[])
    parser.add_argument("--arm", action="append", default=[])
    parser.add_argument("--pretrained", action=argparse.BooleanOptionalAction)
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise KitError(str(error)) from error


def _recipes(given: argparse.Namespace) -> list[str]:
    return [arm.partition("=")[2] for arm in given.arm] or [given.recipe or "notebook"]


def _require_named_here(given: argparse.Namespace) -> None:
    """Refuse code and files that a recipe names: only what options name goes along."""
    for name in _recipes(given):
        recipe = read_recipe(name)
        files = {"slides": recipe.slides, "weights": recipe.weights}
        named = {option: str(file) for option, file in files.items() if file is not None}
        for option, reference in (named | recipe.custom).items():
            if getattr(given, option) is None and not reference.startswith(_THERE):
                what = "code" if option in recipe.custom else "a file"
                raise KitError(
                    f"{name} names {what}, {reference}, which would not go along: name it after -- "
                    f"with --{option} instead"
                )


def _require_models(given: argparse.Namespace, reach: Reach) -> None:
    """Refuse models whose description is not there."""
    for model in (given.model or read_recipe(name).model for name in _recipes(given)):
        place, _, rest = model.partition(":")
        if place == "local-dir" and not rest.startswith(_THERE):
            raise KitError(
                f"--model {model}: the folder does not go along: mount it with --dataset "
                f"OWNER/NAME, and give its path there, local-dir:{_THERE}input/..."
            )
        if place == "hf-hub" and not reach.internet:
            raise KitError(
                f"--model {model}: a kernel without internet does not reach the hub: push with "
                "--internet (it wants a verified phone number), or mount the model's folder with "
                f"--dataset OWNER/NAME and give its path there, --model local-dir:{_THERE}input/..."
            )


def _pretrained(given: argparse.Namespace) -> list[str]:
    """Return the timm models that start from published weights."""
    models = []
    for name in _recipes(given):
        recipe = read_recipe(name)
        asked = recipe.pretrained if given.pretrained is None else given.pretrained
        model = given.model or recipe.model
        # A folder holds its own weights.
        if asked and not (given.weights or recipe.weights or model.startswith("local-dir:")):
            models.append(model)
    return list(dict.fromkeys(models))
