"""Tune BatchNorm's momentum or a whole recipe: tune.py momentum ..., tune.py search ...

momentum   the same as momentum.py: a sweep of BatchNorm's momentum
search     the same as search.py: a search over a recipe's options
"""

import runpy
import sys
from pathlib import Path

from kit.base import KitError, exit_on_error

COMMANDS = ("momentum", "search")


def main(argv: list[str]) -> None:
    """Run the command that the first word names."""
    if argv[:1] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    if argv[0] not in COMMANDS:
        raise KitError(f"no command {argv[0]}: there are {', '.join(COMMANDS)}")
    script = str(Path(__file__).with_name(f"{argv[0]}.py"))
    sys.argv = [script, *argv[1:]]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
