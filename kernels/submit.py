"""Submit predictions to Kaggle and wait for their score.

A run, a cross-validation or an ensemble is predicted if it has not been; the file and how it was
made are told before it is sent. It is checked against the sample submission first. Afterwards
Kaggle's own list of submissions has to show it: the client's word is not enough. Nothing is
asked, so this runs unattended. Exit status 0 means that Kaggle holds the submission, scored or
still to be scored.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from kit import base, data, kaggle, runs, training
from kit.base import KitError, exit_on_error

SUBMISSION = Path("submission.csv")


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """What is submitted."""

    file: Path | None = None
    """Submission: one row per test tile, id,label; submission.csv if nothing is named."""
    run: Path | None = None
    """A run, a cross-validation or an ensemble.json, in place of a file (which it may be, too). Its
    submission.csv is sent, or the one here if it made that; it predicts if there is neither."""
    data: Path = Path("data")
    """Folder of the competition's data, for the test tiles."""
    message: str = ""
    """Description on Kaggle; what is sent if empty."""
    timeout: base.Positive = 600
    """Seconds to wait for the score."""
    trust: bool = False
    """Where it predicts: run code that came with the run, a network of somebody's own."""


def main(options: SubmitOptions) -> None:
    """Choose, check, submit, confirm, wait."""
    base.trust_code(options.trust)
    if options.file is not None and options.run is not None:
        raise KitError("--file and --run exclude each other: name what is to be submitted once")
    if options.run is None:
        base.require_file("file", options.file or SUBMISSION)
    elif not is_submission(options.run):
        runs.read_source(options.run)
    tiles = data.open_store(options.data)
    if tiles.is_standin:
        raise KitError(
            f"{options.data} holds the synthetic stand-in: Kaggle cannot score its submission"
        )
    file = choose(options.run, tiles) if options.run else options.file or SUBMISSION
    validate(file, tiles)
    account = kaggle.credential()
    left = kaggle.submissions_left()
    if left == 0:
        raise KitError(
            "the submission limit is used up, so nothing was sent: try again after 00:00 UTC"
        )
    print(f"submitting with {account}", file=sys.stderr)
    submitted = kaggle.submit(file, options.message or describe(file, options.run))
    remaining = "" if left is None else f", {left - 1} left today"
    print(f"submitted {file} as {submitted.ref}{remaining}", flush=True)
    report(wait(submitted, options.timeout), options.timeout)


def choose(run: Path, tiles: data.Store) -> Path:
    """Return the submission that a run has made, or have it made."""
    if is_submission(run):
        return run
    chosen = runs.read_source(run)
    found = runs.find_submissions(run, chosen, tiles)
    if len(found) > 1:
        listed = "\n".join(f"  {path}: {made_how(path)}" for path in found)
        name = shlex.quote(str(found[0]))
        raise KitError(
            f"{run} has made {len(found)} submissions:\n{listed}\n"
            f"Name one: make submit FILE={name}, or --file {name}"
        )
    if found:
        return found[0]
    training.prepare_process(deterministic=True)
    place = runs.submission_place(run)
    runs.predict_submission(place, chosen, tiles, runs.Manner())
    return place


def is_submission(path: Path) -> bool:
    """Whether what is named as a run is a submission already."""
    return path.is_file() and path.suffix != ".json"


def validate(file: Path, tiles: data.Store) -> None:
    """Check a submission, and tell what it holds and how it was made."""
    summary = kaggle.validate_submission(file, list(tiles.test.ids))
    order = "in the sample's order" if summary.in_order else "in another order than the sample's"
    print(f"{file}: {made_how(file)}")
    print(
        f"{file}: {summary.rows:,} rows {order}, "
        f"labels from {summary.minimum:.4g} to {summary.maximum:.4g}"
    )
    made = runs.read_submission(file)
    if made is not None and made.standins:
        raise KitError(f"{runs.standin_notice(made.standins)}\n{file} is not sent")
    if summary.hard:
        print(
            "warning: all labels are 0 or 1; probabilities rank the tiles, and score higher",
            file=sys.stderr,
        )


def made_how(file: Path) -> str:
    """Say how a submission was made, as far as it is known."""
    made = runs.read_submission(file)
    if made is None:
        return "how it was predicted is not recorded"
    return f"predicted by {made.by}, {made.manner}"


def describe(file: Path, run: Path | None) -> str:
    """Return the description on Kaggle: the run's name or the file's, and which file it is."""
    made = runs.read_submission(file)
    by_run = run is not None and not is_submission(run)
    name = runs.submission_place(run).resolve().parent.name if run and by_run else file.name
    how = "" if made is None else f", {made.manner}"
    return f"{name}{how}, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


def wait(submitted: kaggle.Submission, timeout: float) -> kaggle.Submission:
    """Wait for the score, unless it is there."""
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


def report(row: kaggle.Submission, timeout: float) -> None:
    """Tell the score, or that there is none yet."""
    if row.status == "ERROR":
        raise KitError(f"Kaggle cannot score {row.ref}: {kaggle.scoring_error(row.ref)}")
    if row.status == "PENDING":
        print(f"not scored yet after {timeout:g} s: `make scores` will show the score")
        return
    print(f"public score  {row.public_score or '(not shown)'}")
    print(f"private score {row.private_score or '(not shown)'}")


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(SubmitOptions, __doc__, sys.argv[1:]))
