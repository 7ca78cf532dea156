"""What a pushed script does in Kaggle's container: find the data, train, predict, resume.

/kaggle/input    read-only: the competition's extracted files, and the script's earlier output
/kaggle/working  what is kept: runs/NAME or studies/NAME, submission.csv, checksums.json
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kit.base import LOCK_NAME, KitError, atomic_path, competition, given_options, is_custom
from kit.kaggle.credentials import SETTINGS_PAGE
from kit.kaggle.job import RECORD, SUBMISSION, Job
from kit.kaggle.mounts import find_store, find_weights
from kit.kaggle.slides_code import unpack_slides
from kit.kaggle.sums import Checksums, is_unfinished
from kit.kaggle.supervise import Supervisor

PREDICTING = 0.4
"""Hours that predicting may take beyond those of the job."""
LAST_HOUR = 11.9
"""When all has to have ended: Kaggle ends a kernel after 12 hours."""

_NAME_GPUS = """
import torch
for number in range(torch.cuda.device_count()):
    torch.ones(8, device=number).square().sum().item()
    print(torch.cuda.get_device_name(number))
"""


def run_job(job: Job, home: Path, root: Path) -> None:
    """Do the job, keeping checksums of all that it leaves, whatever happens.

    Parameters
    ----------
    home
        Where the bundle is unpacked: kit/ and kernels/.
    root
        /kaggle, or an imitation of it.

    Raises
    ------
    KitError
        If there is no GPU, no data or no weights, or nothing to resume, or the command fails.
    """
    started = time.monotonic()
    if job.gpu:
        print("\n".join(require_gpus()), flush=True)
    working = root / "working"
    data = link_data(root, scratch(root))
    unpack_slides(home, data)
    options = _options(job, home, data, root)
    if job.resume:
        restore(job, root)
    sums = Checksums(working, [job.folder.as_posix(), SUBMISSION, RECORD])
    sums.update()
    supervisor = Supervisor(home, working, sums)
    try:
        until = started + 3600 * job.hours
        if not supervisor.run(job.command, options, until=until):
            print(f"stopped after {_hours(started)}: push it again with --resume to go on")
        elif job.command == "train":
            predict = ["--run", str(job.folder), "--data", str(data), "--out", SUBMISSION]
            # A cross-validation has a model for each of two GPUs.
            predict += ["--devices", "auto"]
            # Whoever pushed it named the code.
            named = (argument.rpartition("=")[2] for argument in job.arguments)
            predict += ["--trust"] if any(map(is_custom, named)) else []
            last = started + 3600 * min(job.hours + PREDICTING, LAST_HOUR)
            if not supervisor.run("predict", predict, until=last):
                print("the training is finished, and predicting was not in time: push it again")
                print("with --resume, or predict where you pull it to")
    finally:
        sums.update()


def _hours(started: float) -> str:
    return f"{(time.monotonic() - started) / 3600:.1f} h"


def require_gpus() -> list[str]:
    """Return the names of the GPUs, each of which has computed something.

    In a process of its own: this one is to hold none of their memory.

    Raises
    ------
    KitError
        If there is none that PyTorch can use.
    """
    done = subprocess.run(
        [sys.executable, "-c", _NAME_GPUS], capture_output=True, text=True, errors="replace"
    )
    names = done.stdout.splitlines()
    if done.returncode or not names:
        reason = f" ({done.stderr.strip().splitlines()[-1]})" if done.returncode else ""
        raise KitError(
            f"no GPU that PyTorch can use has come{reason}, and a CPU would need days. Kaggle "
            "gives none without a verified phone number, or when the week's GPU hours are used up: "
            f"see {SETTINGS_PAGE}, then push again; or push with --no-gpu"
        )
    return names


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
            f"rules at {competition.RULES_PAGE} and push again, or add it to a notebook of yours "
            "as an input"
        )
    data = room / "data"
    data.mkdir(exist_ok=True)
    for entry in mount.iterdir():
        link = data / entry.name
        link.unlink(missing_ok=True)
        link.symlink_to(entry)
    store = find_store(root)
    if store is not None and not (data / "store").exists():
        print(f"the packed tiles: {store}", flush=True)
        # Not a link to the folder: what is computed of tiles is kept beside it.
        (data / "store").mkdir()
        for path in store.iterdir():
            (data / "store" / path.name).symlink_to(path)
    return data


def notebook_data(data: Path) -> Path:
    """Return the folder of the competition's data in a notebook: on Kaggle the mounts decide."""
    root = Path(os.environ.get("HCD_KAGGLE_ROOT", "/kaggle"))
    return link_data(root, scratch(root)) if (root / "input").is_dir() else data


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
        if path.is_file() and path.name != LOCK_NAME and not is_unfinished(path):
            copy = root / "working" / job.folder / path.relative_to(found)
            # The content alone: what comes from a read-only mount would stay read-only.
            with atomic_path(copy) as partial:
                shutil.copyfile(path, partial)


def _options(job: Job, home: Path, data: Path, root: Path) -> list[str]:
    """Return the options of the job's command."""
    options = [argument.replace("{home}", str(home)) for argument in job.arguments]
    if job.weights:
        weights = find_weights(root, job.weights)
        print(f"the weights of {job.weights}: {weights}", flush=True)
        options += ["--no-pretrained", "--weights", str(weights)]
    given = given_options(options)
    has_many_runs = job.command != "train" or ("folds" in given and "fold" not in given)
    if job.gpu and has_many_runs and not given & {"device", "devices"}:
        # Kaggle gives two T4 or none.
        options += ["--devices", "auto"]
    resume = ["--resume"] if job.resume and job.command == "train" else []
    return [*options, "--data", str(data), "--out", str(job.folder), *resume]
