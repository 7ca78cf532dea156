"""Bring back what a pushed kernel has left: a run into runs/NAME, a study into studies/NAME.

Every file is checked against the sum that the kernel wrote, and nothing is overwritten.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kit import base, kaggle
from kit.base import KitError, exit_on_error


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """Which kernel, and where its results go."""

    name: str = "histopathologic-train"
    """Of the kernel, as it was pushed."""
    out: Path = Path()
    """Folder that holds runs/ and studies/."""


def main(options: PullOptions) -> None:
    """Fetch, check, move into place."""
    name, out = options.name, options.out
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
        main(base.parse_options(PullOptions, __doc__, sys.argv[1:]))
