"""What a pushed script is to do, and where it leaves it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Command = Literal["train", "compare", "momentum", "search", "tune"]
"""The commands that are worth a GPU."""

FOLDERS: dict[Command, str] = {
    command: "runs" if command == "train" else "studies" for command in get_args(Command)
}
SUBMISSION = "submission.csv"
# How the submission was made, see `kit.runs.submissions`.
RECORD = f"{SUBMISSION}.json"


@dataclass(frozen=True)
class Job:
    """What to do there.

    Attributes
    ----------
    arguments
        Of the command, without --data, --out and --resume. In them {home} stands for the folder
        that the bundle is unpacked into.
    name
        Of the kernel on Kaggle, and of the folder that it writes.
    resume
        Whether to go on with what an earlier version of the kernel has left.
    hours
        When to stop, so that there is time to save what has been done.
    gpu
        Whether it asks for one, and must not begin without.
    weights
        The timm model whose published weights are mounted; empty if none are needed.
    """

    command: Command
    arguments: tuple[str, ...]
    name: str
    resume: bool
    hours: float
    gpu: bool = False
    weights: str = ""

    @property
    def folder(self) -> Path:
        """Where the results lie, in the output as on the machine that they come back to."""
        return Path(FOLDERS[self.command], self.name)
