"""Submit predictions to Kaggle and wait for their score.

The file is checked against the sample submission first. Afterwards Kaggle's own list of
submissions has to show it: the client's word is not enough. Nothing is asked, so this runs
unattended. Exit status 0 means that Kaggle holds the submission, scored or still to be scored.
"""

import hashlib
import sys
from pathlib import Path

import tyro

from kit import kaggle
from kit.base import KitError, exit_on_error
from kit.data import open_store
from kit.kaggle import Submission


def main(
    file: Path = Path("submission.csv"),
    data: Path = Path("data"),
    message: str = "",
    timeout: float = 600,
) -> None:
    """Check, submit, confirm, wait.

    Parameters
    ----------
    file
        Submission: one row a test tile, id,label.
    data
        Folder of the competition's data, for the test ids.
    message
        Description on Kaggle; the file's name and hash if empty.
    timeout
        Seconds to wait for the score.
    """
    _validate(file, data)
    account = kaggle.credential()
    left = kaggle.submissions_left()
    if left == 0:
        raise KitError(
            "the submission limit is used up, so nothing was sent: try again after 00:00 UTC"
        )
    print(f"submitting with {account}", file=sys.stderr)
    submitted = kaggle.submit(file, message or _description(file))
    remaining = "" if left is None else f", {left - 1} left today"
    print(f"submitted {file} as {submitted.ref}{remaining}", flush=True)
    _report(_wait(submitted, timeout), timeout)


def _validate(file: Path, data: Path) -> None:
    packed = open_store(data)
    if packed.is_standin:
        raise KitError(f"{data} holds the synthetic stand-in: Kaggle cannot score its submission")
    summary = kaggle.validate_submission(file, list(packed.test.ids))
    order = "in the sample's order" if summary.in_order else "in another order than the sample's"
    print(
        f"{file}: {summary.rows:,} rows {order}, "
        f"labels from {summary.minimum:.4g} to {summary.maximum:.4g}"
    )
    if summary.hard:
        print(
            "warning: all labels are 0 or 1; probabilities rank the tiles, and score higher",
            file=sys.stderr,
        )


def _description(file: Path) -> str:
    return f"{file.name}, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


def _wait(submitted: Submission, timeout: float) -> Submission:
    if submitted.status != "PENDING":
        return submitted
    print("waiting for the score; Ctrl-C ends the waiting, not the submission", file=sys.stderr)
    try:
        return kaggle.wait_for_score(submitted.ref, timeout=timeout)
    except KitError as error:
        raise KitError(
            f"{submitted.ref} is submitted, but its score cannot be read: {error}\n"
            "Do not submit it again: `make scores` will show it"
        ) from error


def _report(row: Submission, timeout: float) -> None:
    if row.status == "ERROR":
        raise KitError(f"Kaggle cannot score {row.ref}: {kaggle.scoring_error(row.ref)}")
    if row.status == "PENDING":
        print(f"not scored yet after {timeout:g} s: `make scores` will show the score")
        return
    print(f"public score  {row.public_score}")
    print(f"private score {row.private_score or '(not shown)'}")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
