"""Bring back what a pushed kernel has left: a run into runs/NAME, a study into studies/NAME.

Every file is checked against the sum that the kernel wrote, and nothing is overwritten.
"""

import tempfile
from pathlib import Path

import tyro

from kit import kaggle
from kit.base import KitError, exit_on_error


def main(name: str = "histopathologic-train", out: Path = Path()) -> None:
    """Fetch, check, move into place.

    Parameters
    ----------
    name
        Of the kernel, as it was pushed.
    out
        Folder that holds runs/ and studies/.
    """
    kaggle.require_free(out, name)
    kernel = f"{kaggle.username()}/{name}"
    status = kaggle.kernel_status(kernel)
    if status not in ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"):
        raise KitError(
            f"{kernel} is {status}: wait for its end, see https://www.kaggle.com/code/{kernel}"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".pull-") as temporary:
        kaggle.pull_kernel(kernel, Path(temporary))
        folder = kaggle.bring_back(Path(temporary), out, name)
    print(f"{folder}: checked, of a kernel that ended as {status}")
    if not (folder / "metrics.json").exists() and folder.parent.name == "runs":
        print("it has not come to its last epoch: push it again with --resume to go on")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
