"""Submissions: send one, list them, wait for a score. Kaggle's own list is what counts."""

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from kit.base import SLUG, KitError
from kit.kaggle.client import SilenceError, attempts, parse_json, run_client
from kit.kaggle.faults import explain

SUBMISSIONS_PAGE = f"https://www.kaggle.com/c/{SLUG}/submissions"

Status = Literal["PENDING", "COMPLETE", "ERROR"]


@dataclass(frozen=True)
class Submission:
    """One row of Kaggle's list of submissions.

    Attributes
    ----------
    date
        ISO 8601, UTC.
    public_score, private_score
        As Kaggle writes them; empty while there is none.
    """

    ref: int
    date: str
    file_name: str
    description: str
    status: Status
    public_score: str
    private_score: str


def submit(file: Path, message: str, *, patience: float = 30) -> Submission:
    """Upload a submission, and return it as Kaggle lists it.

    Parameters
    ----------
    patience
        Seconds to wait for the new row in Kaggle's list.

    Raises
    ------
    KitError
        If the upload fails, or Kaggle does not list the submission.
    """
    before = {row.ref for row in list_submissions()}
    try:
        said = run_client("submit", SLUG, f"--file={file}", f"--message={message}", "--quiet")
    except SilenceError as error:
        # It may have come through all the same.
        said = str(error)
    if "Could not submit" in said:
        raise KitError(explain(said))
    for _ in attempts(patience):
        new = [row for row in list_submissions() if row.ref not in before]
        # A team mate may have submitted in the same seconds.
        mine = [row for row in new if row.description == message] or new
        if mine:
            return mine[0]
    raise KitError(
        f"the client says {' '.join(said.split())!r}, but Kaggle lists no new submission.\n"
        f"Look at {SUBMISSIONS_PAGE} before you submit again: each try may count for the limit"
    )


def list_submissions() -> list[Submission]:
    """List the account's last 200 submissions as Kaggle orders them, the newest first."""
    said = run_client("submissions", SLUG, "--format", "json", "--page-size", "200")
    return [] if "No submissions found" in said else [_submission(row) for row in parse_json(said)]


def submissions_left() -> int | None:
    """Return how many submissions Kaggle still allows today, None if it does not tell."""
    try:
        limits = parse_json(run_client("submission-limits", SLUG, "--json"))
    except KitError:
        # Only Kaggle's refusal of the submission itself should stop anyone.
        return None
    allowed: int = limits.get("numAllowedNow", 0)
    # All three are 0 for whoever has not joined yet, and nothing is used up.
    told = allowed or limits.get("numToday") or limits.get("limitedByTotal")
    return allowed if told else None


def wait_for_score(ref: int, *, timeout: float = 600) -> Submission:
    """Poll a submission until it is scored, or cannot be, or `timeout` seconds have passed.

    Returns
    -------
    Submission
        As it was last seen. It is still PENDING if the time ran out.
    """
    row = None
    for _ in attempts(timeout):
        row = next((row for row in list_submissions() if row.ref == ref), None)
        if row is None or row.status != "PENDING":
            break
    if row is None:
        raise KitError(f"Kaggle no longer lists submission {ref}: see {SUBMISSIONS_PAGE}")
    return row


def scoring_error(ref: int) -> str:
    """Return why Kaggle could not score a submission, or where that can be read."""
    if tuple(map(int, version("kaggle").split(".")[:3])) >= (2, 2, 5):
        found = re.search(r"^Error:(.*?)^Public", run_client("submission", str(ref)), re.M | re.S)
        if found:
            return " ".join(found[1].split())
    return f"this version of the client does not tell why; {SUBMISSIONS_PAGE} does"


def _submission(row: dict[str, Any]) -> Submission:
    return Submission(
        ref=row["ref"],
        date=row["date"],
        file_name=row["fileName"],
        description=row["description"],
        # "SubmissionStatus.COMPLETE"
        status=row["status"].rpartition(".")[2],
        public_score=row["publicScore"],
        private_score=row["privateScore"],
    )
