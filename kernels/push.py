"""Run a command of the kit on Kaggle: push.py --command train -- --bn before.

One script that holds the kit is built and pushed as a private kernel, which runs at once, without
internet unless it is asked for. Options after -- are the command's, and small files that they name
go along. Published weights are taken from what is mounted. The results are runs/NAME or
studies/NAME in the kernel's output; train leaves a submission.csv, too.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from kit import base, kaggle, models, runs
from kit.base import KitError, exit_on_error

REPOSITORY = Path(__file__).parents[1]
MOST_HOURS = 11.7
NOT_OF_NOTEBOOKS = ["command", "resume", "hours", "kaggle_model", "internet"]


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """The kernel on Kaggle."""

    command: kaggle.Command = "train"
    """What runs there."""
    name: str = ""
    """Of the kernel and of the run; histopathologic-COMMAND by default."""
    resume: bool = False
    """Go on where the kernel's latest version stopped."""
    hours: base.Positive = 11.5
    """Stop after so long, to save what is done: Kaggle ends a kernel after 12 h."""
    gpu: bool = True
    """Ask for two T4, and end at once if none comes; without, the CPU has to do."""
    dataset: base.Repeated[str] = ()
    """OWNER/NAME of a Kaggle dataset to mount, with weights or the packed tiles, say; may be given
    several times."""
    kaggle_model: base.Repeated[str] = ()
    """OWNER/MODEL/FRAMEWORK/VARIATION/VERSION of a Kaggle model to mount."""
    internet: bool = False
    """Let the kernel use the network, to fetch published weights; wants a verified phone."""
    notebook: bool = False
    """Push the study as a notebook (see notebook.py) in place of a command."""


def main(options: PushOptions, arguments: list[str], given: set[str]) -> None:
    """Build and push."""
    name = options.name or f"histopathologic-{'notebook' if options.notebook else options.command}"
    if options.notebook:
        base.refuse_unused(given, NOT_OF_NOTEBOOKS, "with --notebook")
        if arguments:
            raise KitError("--notebook has no options after --: kernels/notebook.py has some")
    if options.hours > MOST_HOURS:
        raise KitError(
            f"--hours {options.hours:g}: give {MOST_HOURS} or less, since Kaggle ends a kernel "
            "after 12 hours"
        )
    kaggle.require_name(name)
    reach = kaggle.Reach(options.dataset, options.kaggle_model, options.internet)
    owner = kaggle.username()
    with tempfile.TemporaryDirectory() as temporary:
        build(options, arguments, reach, Path(temporary), f"{owner}/{name}")
        print(f"pushing {owner}/{name} with {kaggle.credential()}", file=sys.stderr)
        print(f"pushed {kaggle.push_kernel(Path(temporary))}")
    print(f"next, once it has ended: {base.command('pull', '--name', name)}")


def build(
    options: PushOptions, arguments: list[str], reach: kaggle.Reach, folder: Path, kernel: str
) -> None:
    """Write what is pushed."""
    owner, _, name = kernel.partition("/")
    if options.notebook:
        settings = kaggle.Notebook(name=name, gpu=options.gpu)
        kaggle.build_notebook(folder, settings, owner=owner, repository=REPOSITORY, reach=reach)
        return
    # First, since compressing the kit takes longer than all else.
    require_options(options.command, arguments)
    job = kaggle.Job(
        options.command, tuple(arguments), name, options.resume, options.hours, options.gpu
    )
    kaggle.build_kernel(folder, job, owner=owner, repository=REPOSITORY, reach=reach)


def require_options(command: str, arguments: list[str]) -> None:
    """Refuse here what the command would refuse there, after a wait for a GPU."""
    # What is refused is that command's, and so is the help.
    sys.argv = [str(Path(__file__).with_name(f"{command}.py")), *arguments]
    module = import_module(command)
    options = module.read_options(arguments)
    recipes = [options.recipe]
    if command == "train" and options.devices and module.is_one_run(options):
        raise module.nothing_to_share(options)
    if command == "compare":
        recipes = module.read_study(options, base.given_options(arguments)).arms.values()
    # What is elsewhere is not known here; nor is what is mounted there, and what computes.
    known = [
        replace(recipe, precision="auto", slides=None, validate_on=(), leave_out=())
        for recipe in recipes
        if not models.is_elsewhere(recipe.model)
    ]
    runs.check_without_data(known, device="cpu", cam_layer=getattr(options, "cam_layer", None))


if __name__ == "__main__":
    words = [*sys.argv[1:], "--"]
    end = words.index("--")
    with exit_on_error():
        main(
            base.parse_options(PushOptions, __doc__, words[:end]),
            words[end + 1 : -1],
            base.given_options(words[:end]),
        )
