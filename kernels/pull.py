"""Bring back what a pushed kernel has left: a run into runs/NAME, a study into studies/NAME.

Every file is checked against the sum that the kernel wrote, and nothing is overwritten. What has
come is kept when the connection is not, and the same command goes on. Of a kernel that failed or
was stopped the log's end is shown, and what it left whole is brought back.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from kit import base, kaggle
from kit.base import KitError, exit_on_error

LOG_LINES = 15


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
    if not status.has_ended:
        raise KitError(
            f"{kernel} is {status.name}: wait for its end, see https://www.kaggle.com/code/{kernel}"
        )
    ended_well = status.name == "COMPLETE"
    with base.going_on(lambda: "what has come is kept, and the same command goes on"):
        output = kaggle.bring_back(kernel, out, ended_well=ended_well)
    if not ended_well:
        print(f"the kernel ended as {status.name} {status.failure}".rstrip(), file=sys.stderr)
        tell_log(output.log)
    if output.folder is None:
        why = f"its log, {output.log}, may say why. Then" if output.log else "there is no log;"
        raise KitError(f"{kernel} has left no run and no study: {why} push it again")
    report(output, status)


def tell_log(log: Path | None) -> None:
    """Show the end of a kernel's log, which says why it failed."""
    if log is not None:
        lines = [f"  {line}" for line in kaggle.log_lines(log)[-LOG_LINES:]]
        print(*lines, f"the whole log: {log}", sep="\n", file=sys.stderr)


def report(output: kaggle.Output, status: kaggle.KernelStatus) -> None:
    """Say what has come, and how to go on."""
    folder = output.folder
    assert folder is not None
    print(f"{folder}: checked, of a kernel that ended as {status.name}")
    if output.damaged:
        print(f"not whole, and left out: {', '.join(output.damaged)}")
    print(next_step(folder))


def next_step(folder: Path) -> str:
    """Say what to do with a run or a study that has come, finished or not."""
    is_run = folder.parent.name == "runs"
    if is_run and not (folder / "metrics.json").exists():
        return "it has not come to its end: push it again with the same options and --resume"
    if (submission := folder / "submission.csv").is_file():
        sent = ("--run", folder) if is_run else ("--file", submission)
        return f"next: {base.command('submit', *sent)}"
    if is_run:
        return f"next: {base.command('predict', '--run', folder)}"
    if (folder / "report.html").exists():
        return f"the whole study: {folder}/report.html"
    return (
        "it has not come to its end: push it again with the same options, and with --resume unless "
        "it is a notebook"
    )


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(PullOptions, __doc__, sys.argv[1:]))
