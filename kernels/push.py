"""Run a command of the kit on Kaggle: push.py --command train -- --bn before.

One script that holds the kit is built and pushed as a private kernel, which runs at once without
internet. Options after -- are the command's, and small files that they name go along. The
results are runs/NAME or studies/NAME in the kernel's output; train leaves a submission.csv, too.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from kit import kaggle
from kit.base import exit_on_error
from kit.kaggle import Command, Job

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """The kernel on Kaggle."""

    command: Command = "train"
    """What runs there."""
    name: str = ""
    """Of the kernel and of the run; histopathologic-COMMAND by default."""
    resume: bool = False
    """Go on where the kernel's latest version stopped."""
    hours: float = 11.5
    """Stop after so long, to save what is done: Kaggle ends a kernel after 12 h."""
    gpu: bool = True
    """Ask for a T4; without one the processor has to do."""
    dataset: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """OWNER/NAME of a Kaggle dataset to mount in /kaggle/input; may be given several times."""


def main(options: PushOptions, arguments: list[str]) -> None:
    """Build and push."""
    name = options.name or f"histopathologic-{options.command}"
    job = Job(options.command, tuple(arguments), name, options.resume, options.hours)
    owner = kaggle.username()
    with tempfile.TemporaryDirectory() as temporary:
        kaggle.build_kernel(
            Path(temporary),
            job,
            owner=owner,
            repository=REPOSITORY,
            datasets=options.dataset,
            gpu=options.gpu,
        )
        print(f"pushing {owner}/{name} with {kaggle.credential()}", file=sys.stderr)
        print(f"pushed {kaggle.push_kernel(Path(temporary))}")
    print(f"next, once it has ended: python kernels/pull.py --name {name}")


if __name__ == "__main__":
    words = [*sys.argv[1:], "--"]
    end = words.index("--")
    with exit_on_error():
        main(tyro.cli(PushOptions, args=words[:end], description=__doc__), words[end + 1 : -1])
