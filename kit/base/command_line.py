"""Command lines: the options of a command, those of a recipe among them, read and checked."""

import argparse
import dataclasses
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import Field, TypeAdapter, ValidationError

from kit.base.errors import KitError
from kit.base.recipe import (
    Recipe,
    read_recipe,
    recipe_names,
    recipe_summaries,
)
from kit.base.text import shorten
from kit.base.values import describe_errors

FigureKind = Literal["png", "svg", "pdf"]

# Longer than any path that Linux opens.
_LONGEST_WORD = 5_000


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A recipe, the data it meets, and the hardware that runs it."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe")] = "notebook"
    """Name of a recipe that comes with the kit, or a TOML file; other options come after it."""
    data: Path = Path("data")
    """Folder of the competition's data."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    devices: tuple[str, ...] = ()
    """In place of --device where a command has several runs: a process on each takes a share of
    them. auto takes all GPUs, cuda:0 cuda:1 these two; cpu:2 is two processes that share the CPU's
    cores."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that load and augment tiles; 0 does it in this one, or in a GPU's memory where the
    tiles fit."""
    deterministic: bool = False
    """On a GPU: take only kernels that give the same bits each time, which costs time. A CPU always
    gives them."""
    cuda_graphs: bool = True
    """On a GPU that holds the tiles: launch all of a step at once. A network whose steps wait for
    the GPU needs --no-cuda-graphs."""
    figures: tuple[FigureKind, ...] = ()
    """Write the page's figures as files of these kinds, too, into the folder figures beside it."""
    trust: bool = False
    """Run code that the command line does not name itself: that of a recipe's file, or of a run
    folder."""


LogKind = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
"""What a training may be logged with."""

_LISTS = {
    "validate_on": "slides",
    "leave_out": "slides",
    "teacher": "runs",
    "devices": "devices",
    "seed_list": "seeds",
}

Options = TypeVar("Options")
Value = TypeVar("Value")

Positional = Annotated[Value, tyro.conf.Positional]
"""Words that follow no option's name."""
Repeated = Annotated[tuple[Value, ...], tyro.conf.UseAppendAction]
"""An option that may be given several times."""


def parse_options(
    kind: type[Options], description: str, argv: Sequence[str], default: Options | None = None
) -> Options:
    """Read a command line into a dataclass; `RunOptions` over the recipe that the line names.

    Parameters
    ----------
    default
        Holds what the line does not give, in place of the recipe.

    Raises
    ------
    KitError
        If the recipe cannot be read, a value is out of range, or options contradict each other.
    """
    _check_lengths(argv)
    _check_lists(argv)
    # tyro begins a new line wherever one begins with no letter, such as with an option.
    description = re.sub(r"(?<!\n)\n(?=\S)", " ", description.strip())
    values: dict[str, Any] = {} if default is None else {"default": default}
    if issubclass(kind, RunOptions):
        if default is None:
            name, recipe = named_recipe(argv)
            values["default"] = kind(recipe=recipe, recipe_name=name)
        description = f"{description}\n\n{describe_recipes()}"
    parsed = tyro.cli(kind, args=argv, description=description, **values)
    try:
        options = TypeAdapter(kind).validate_python(dataclasses.asdict(parsed))
    except ValidationError as error:
        raise KitError(describe_errors(error)) from error
    if isinstance(options, RunOptions):
        # A search varies the augmentation, and with it whether stains are jittered.
        options.recipe.reject_unused(given_options(argv) - {"stain_strength"})
        if not options.trust:
            refuse_code(options.recipe, given_options(argv))
    return options


def refuse_code(recipe: Recipe, given: Collection[str]) -> None:
    """Refuse a recipe that names code which would be run, where a command line does not name it.

    Raises
    ------
    KitError
        Naming the code.
    """
    for option, reference in recipe.custom.items():
        if option not in given:
            raise KitError(
                f"{option} = {reference} is code that would be executed: read it, and add --trust "
                f"if you trust it, or name it yourself with --{option}"
            )


def command(name: str, *words: object) -> str:
    """Return a command of kernels/ as a user types it, whatever characters its words have."""
    return shlex.join(["python", f"kernels/{name}.py", *map(str, words)])


def recipe_words(recipe: Recipe) -> list[str]:
    """Return the words of a command line that give a recipe.

    They name the nearest of the kit's own recipes, and the options that differ from it. Options
    that the recipe does not use are left out.
    """
    name, changed = nearest_recipe(recipe)
    return ["--recipe", name, *option_words(changed)]


def nearest_recipe(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Return the nearest of the kit's own recipes, and the options that differ from it.

    Options that the recipe does not use are left out.
    """
    unused = recipe.unused_options()
    used = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(Recipe)}
    used = {name: value for name, value in used.items() if name not in unused}
    differences = {
        name: {option: value for option, value in used.items() if value != getattr(near, option)}
        for name, near in _own_recipes().items()
    }
    name = min(differences, key=lambda name: len(option_words(differences[name])))
    return name, differences[name]


def option_words(values: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that give a recipe's options these values."""
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def given_options(argv: Sequence[str]) -> set[str]:
    """Return the names of the options on a command line, as a recipe spells them."""
    return set(_names(argv))


def _names(argv: Sequence[str]) -> list[str]:
    flags = [word.partition("=")[0] for word in argv if word.startswith("--")]
    return [flag[2:].removeprefix("no-").replace("-", "_") for flag in flags]


def _check_lengths(argv: Sequence[str]) -> None:
    """Refuse what is longer than any name: a parser of options would print all of it."""
    for word in argv:
        if len(word) > _LONGEST_WORD:
            raise KitError(f"{shorten(word)} has {len(word):,} characters: give a shorter one")


def _check_lists(argv: Sequence[str]) -> None:
    """Refuse two lists, of which only the last would count, and one that names nothing."""
    names = _names(argv)
    for name, what in _LISTS.items():
        flag = f"--{name.replace('_', '-')}"
        if names.count(name) > 1:
            raise KitError(f"{flag} is given {names.count(name)} times: name all {what} after one")
        words = pairwise([*argv, "--"])
        if any(word.replace("_", "-") == flag and after.startswith("--") for word, after in words):
            raise KitError(f"{flag} names no {what}: name them after it, or leave it out")


@cache
def _own_recipes() -> dict[str, Recipe]:
    """Return the recipes that come with the kit, by their names."""
    return {name: read_recipe(name) for name in recipe_names()}


def named_recipe(argv: Sequence[str]) -> tuple[str, Recipe]:
    """Return the name of the recipe that a command line starts from, and the recipe.

    Raises
    ------
    KitError
        If it cannot be read.
    """
    name = _recipe_name(argv)
    recipe = read_recipe(name)
    if {"weights", "pretrained"} & given_options(argv) == {"weights"}:
        # One's own weights take the place of published ones.
        recipe = dataclasses.replace(recipe, pretrained=False)
    return name, recipe


def _recipe_name(argv: Sequence[str]) -> str:
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--recipe", default="notebook")
    name: str = named.parse_known_args(argv)[0].recipe
    return name


def describe_recipes() -> str:
    """List the recipes that come with the kit."""
    recipes = recipe_summaries()
    width = max(map(len, recipes))
    return "\n".join(
        [
            "Recipes (kit/recipes/*.toml):",
            *(f"  {name:{width}}  {text}" for name, text in recipes.items()),
        ]
    )
