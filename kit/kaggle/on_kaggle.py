"""What a pushed script does in Kaggle's container: find the data, train, predict, resume.

/kaggle/input    read-only: the competition's extracted files, and the script's earlier output
/kaggle/working  what is kept: runs/NAME or studies/NAME, submission.csv, checksums.json
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kit.base import LOCK_NAME, KitError, atomic_path, competition, write_text

Command = Literal["train", "compare", "momentum", "search", "tune"]
"""The commands that are worth a GPU."""

FOLDERS: dict[Command, str] = {
    command: "runs" if command == "train" else "studies" for command in get_args(Command)
}
SUBMISSION = "submission.csv"
# How the submission was made, see `kit.runs.submissions`.
RECORD = f"{SUBMISSION}.json"
CHECKSUMS = "checksums.json"


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
    """

    command: Command
    arguments: tuple[str, ...]
    name: str
    resume: bool
    hours: float

    @property
    def folder(self) -> Path:
        """Where the results lie, in the output as on the machine that they come back to."""
        return Path(FOLDERS[self.command], self.name)


def run_job(job: Job, home: Path, root: Path) -> None:
    """Do the job, and leave checksums over all that is kept, whatever happens.

    Parameters
    ----------
    home
        Where the bundle is unpacked: kit/ and kernels/.
    root
        /kaggle, or an imitation of it.

    Raises
    ------
    KitError
        If there is no data, or nothing to resume, or the command fails.
    """
    deadline = time.monotonic() + 3600 * job.hours
    working = root / "working"
    try:
        data = link_data(root, scratch(root))
        if job.resume:
            restore(job, root)
        if not _train(job, home, data, working, deadline):
            print(f"stopped after {job.hours:g} h: push it again with --resume to go on")
        elif job.command == "train":
            options = ["--run", str(job.folder), "--data", str(data), "--out", SUBMISSION]
            _run_command("predict", options, home, working, timeout=None)
    finally:
        write_checksums(job, working)


def scratch(root: Path) -> Path:
    """Return the folder with the most room of those whose content Kaggle does not keep."""
    folders = [folder for folder in (root / "temp", Path(tempfile.gettempdir())) if folder.is_dir()]
    return max(folders, key=lambda folder: shutil.disk_usage(folder).free)


def link_data(root: Path, room: Path) -> Path:
    """Return a writable folder that shows the competition's files, for the store to go into.

    Raises
    ------
    KitError
        If the competition's data is not there.
    """
    mounts = [root / mount.relative_to("/kaggle") for mount in competition.KAGGLE_INPUTS]
    mount = next((mount for mount in mounts if mount.is_dir()), None)
    if mount is None:
        raise KitError(
            f"the competition's data is in none of {', '.join(map(str, mounts))}: accept the "
            f"rules at {competition.RULES_PAGE} and push again"
        )
    data = room / "data"
    data.mkdir(exist_ok=True)
    for entry in mount.iterdir():
        link = data / entry.name
        link.unlink(missing_ok=True)
        link.symlink_to(entry)
    return data


def restore(job: Job, root: Path) -> None:
    """Copy what an earlier version of the kernel has left from its mount to where it goes on.

    Raises
    ------
    KitError
        If no earlier output is mounted.
    """
    # Kaggle has mounted a kernel's output at its name, and below its owner's as well.
    patterns = [f"{above}{job.name}/{job.folder}" for above in ("", "*/", "*/*/")]
    found = next((path for one in patterns for path in (root / "input").glob(one)), None)
    if found is None:
        raise KitError(
            f"--resume, but no input holds {job.folder}: the kernel's latest version has to have "
            "ended, and to have left it"
        )
    for path in found.rglob("*"):
        if path.is_file():
            copy = root / "working" / job.folder / path.relative_to(found)
            # The content alone: what comes from a read-only mount would stay read-only.
            with atomic_path(copy) as partial:
                shutil.copyfile(path, partial)


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the files of a folder, those that are not there left out."""
    sums = {}
    for name in names:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def write_checksums(job: Job, working: Path) -> None:
    """Write the checksums of what a job leaves: Kaggle's client checks nothing that it fetches."""
    paths = [*(working / job.folder).rglob("*"), working / SUBMISSION, working / RECORD]
    names = [
        path.relative_to(working).as_posix() for path in sorted(paths) if path.name != LOCK_NAME
    ]
    write_text(working / CHECKSUMS, json.dumps(checksums(working, names), indent=2) + "\n")


def _train(job: Job, home: Path, data: Path, working: Path, deadline: float) -> bool:
    """Run the job's command; return whether it came to its end in time."""
    arguments = [argument.replace("{home}", str(home)) for argument in job.arguments]
    options = [*arguments, "--data", str(data), "--out", str(job.folder)]
    if job.resume and job.command == "train":
        options.append("--resume")
    try:
        _run_command(job.command, options, home, working, timeout=deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        return False
    return True


def _run_command(
    name: str, options: list[str], home: Path, folder: Path, *, timeout: float | None
) -> None:
    """Run one of the kit's commands in a folder, with the bundle before all else on its path."""
    environment = os.environ | {
        "PYTHONPATH": str(home),
        "PYTHONUNBUFFERED": "1",
        # A log keeps every drawing of a progress bar.
        "TQDM_MININTERVAL": "60",
    }
    command = [sys.executable, str(home / "kernels" / f"{name}.py"), *options]
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=folder, env=environment, timeout=timeout)
    if done.returncode:
        raise KitError(f"{name} ended with status {done.returncode}; see its message above")
