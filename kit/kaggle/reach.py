"""What a pushed command can reach on Kaggle, and what it would lack there, told beforehand."""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path

from kit.base import KitError, read_recipe
from kit.kaggle.job import Job

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
        if file is not None and not Path(file).is_file() and not file.startswith("/kaggle/"):
            raise KitError(f"{flag} {file}: there is no such file here, nor would there be there")
    of_recipes = (str(run) for name in _recipes(given) for run in read_recipe(name).teacher)
    for run in [*given.teacher, *of_recipes]:
        if not run.startswith("/kaggle/"):
            raise KitError(
                f"--teacher {run}: runs do not go along: mount it with --dataset OWNER/NAME and "
                "give its path there, /kaggle/input/..., or train here"
            )
    _require_named_code(given)
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
    for flag in ("--recipe", "--model", "--augment", "--weights", "--slides"):
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


def _require_named_code(given: argparse.Namespace) -> None:
    """Refuse code that a recipe names: only what options name goes along."""
    for name in _recipes(given):
        for option, reference in read_recipe(name).custom.items():
            if getattr(given, option) is None:
                raise KitError(
                    f"{name} names code, {reference}, which would not go along: name it after -- "
                    f"with --{option} instead"
                )


def _pretrained(given: argparse.Namespace) -> list[str]:
    """Return the timm models that start from published weights."""
    models = []
    for name in _recipes(given):
        recipe = read_recipe(name)
        asked = recipe.pretrained if given.pretrained is None else given.pretrained
        if asked and not given.weights and not recipe.weights:
            models.append(given.model or recipe.model)
    return list(dict.fromkeys(models))
