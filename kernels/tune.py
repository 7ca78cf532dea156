"""Tune BatchNorm's momentum or a whole recipe: tune.py momentum ..., tune.py search ...

momentum   the same as momentum.py: a sweep of BatchNorm's momentum
search     the same as search.py: a search over a recipe's options
"""

import runpy
import sys
from importlib import import_module
from pathlib import Path

from kit.base import KitError, exit_on_error

COMMANDS = ("momentum", "search")


def main(argv: list[str]) -> None:
    """Run the command that the first word names."""
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    script = find_script(argv)
    sys.argv = [script, *argv[1:]]
    runpy.run_path(script, run_name="__main__")


def find_script(argv: list[str]) -> str:
    """Return the command that the first word names."""
    word = argv[0] if argv else "''"
    if word not in COMMANDS:
        raise KitError(f"no command {word}: there are {', '.join(COMMANDS)}")
    return str(Path(__file__).with_name(f"{word}.py"))


def read_options(argv: list[str]) -> object:
    """Read the command line of the command that the first word names."""
    return import_module(Path(find_script(argv)).stem).read_options(argv[1:])


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
