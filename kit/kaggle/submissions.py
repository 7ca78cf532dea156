"""Submissions: send one, list them, wait for a score. Kaggle's own list is what counts."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kit.base import SLUG, KitError, going_on, printable
from kit.kaggle.client import (
    SilenceError,
    attempts,
    count,
    parse_json,
    parse_rows,
    run_client,
)
from kit.kaggle.faults import explain

SUBMISSIONS_PAGE = f"https://www.kaggle.com/c/{SLUG}/submissions"

Status = Literal["PENDING", "COMPLETE", "ERROR"]
# The client writes them as "SubmissionStatus.COMPLETE".
_STATUSES: dict[str, Status] = {"COMPLETE": "COMPLETE", "ERROR": "ERROR"}


@dataclass(frozen=True)
class Submission:
    """One row of Kaggle's list of submissions.

    Attributes
    ----------
    ref
        Kaggle's number of it; 0 if it has told none.
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


def submit(file: Path, message: str, *, patience: float = 120) -> Submission:
    """Upload a submission, and return it as Kaggle lists it.

    Parameters
    ----------
    patience
        Seconds to wait for the new row in Kaggle's list. After that a submission counts whose
        number the client has told, if Kaggle knows it.

    Raises
    ------
    KitError
        If the upload fails, or Kaggle does not know the submission.
    """
    before = {row.ref for row in list_submissions()}
    with going_on(lambda: "it may be submitted: type `make scores` before you submit again"):
        try:
            said = _upload(file, message)
        except KitError:
            # A cut connection is no proof that Kaggle has not taken it.
            row = _find_new(before, None, message)
            if row is None:
                raise
            return row
        ref = _told_ref(said)
        for _ in attempts(patience):
            row = _find_new(before, ref, message)
            if row is not None:
                return row
    if ref is not None and _is_known(ref):
        return Submission(ref, "", file.name, message, "PENDING", "", "")
    raise KitError(
        f"the client says {' '.join(said.split())!r}, but Kaggle lists no new submission.\n"
        f"Look at {SUBMISSIONS_PAGE} before you submit again: each try may count for the limit"
    )


def list_submissions() -> list[Submission]:
    """List the account's last 200 submissions as Kaggle orders them, the newest first."""
    said = run_client("submissions", SLUG, "--format", "json", "--page-size", "200")
    # A line of its own: a description may say so, too.
    if re.search("^No submissions found$", said, re.M):
        return []
    return [_submission(row) for row in parse_rows(said)]


def submissions_left() -> int | None:
    """Return how many submissions Kaggle still allows today, None if it does not tell."""
    try:
        limits = parse_json(run_client("submission-limits", SLUG, "--json"))
    except KitError:
        # Only Kaggle's refusal of the submission itself should stop anyone.
        return None
    if not isinstance(limits, dict):
        return None
    allowed = count(limits.get("numAllowedNow", 0))
    # All three are 0 for those who have not joined yet, and nothing is used up.
    told = allowed or count(limits.get("numToday")) or limits.get("limitedByTotal")
    return allowed if told else None


def wait_for_score(ref: int, *, timeout: float = 600) -> Submission:
    """Poll a submission until it is scored, or cannot be, or `timeout` seconds have passed.

    Returns
    -------
    Submission
        As it was last seen. It is still PENDING if the time ran out.

    Raises
    ------
    KitError
        If Kaggle cannot be asked, or has never listed it.
    """
    row = None
    for _ in attempts(timeout):
        row = next((row for row in list_submissions() if row.ref == ref), row)
        if row is not None and row.status != "PENDING":
            break
    if row is None:
        raise KitError(f"Kaggle does not list submission {ref}: see {SUBMISSIONS_PAGE}")
    return row


def scoring_error(ref: int) -> str:
    """Return why Kaggle could not score a submission, or where that can be read."""
    # Clients before 2.2.5 have no such command.
    with suppress(KitError):
        found = re.search(r"^Error:(.*?)^Public", run_client("submission", str(ref)), re.M | re.S)
        if found:
            return printable(" ".join(found[1].split()))
    return f"the client does not tell why; {SUBMISSIONS_PAGE} does"


def _upload(file: Path, message: str) -> str:
    """Return what the client says of an upload, which proves nothing."""
    try:
        said = run_client("submit", SLUG, f"--file={file}", f"--message={message}", "--quiet")
    except SilenceError as error:
        # It may have come through nevertheless.
        said = str(error)
    if "Could not submit" in said:
        raise KitError(explain(said))
    return said


def _find_new(before: set[int], ref: int | None, message: str) -> Submission | None:
    """Return a submission that Kaggle lists now and did not before: a team mate may have sent one.

    It is known by its number, or else by its description. None if Kaggle cannot be asked: sent is
    sent, whatever becomes of this question.
    """
    with suppress(KitError):
        for row in list_submissions():
            is_it = row.ref == ref if ref is not None else _same_text(row.description, message)
            if is_it and row.ref not in before:
                return row
    return None


def _told_ref(said: str) -> int | None:
    """Return the number of a new submission, which clients tell from 2.2.5 on."""
    told = re.search(r"^Submission ref: (\d+)$", said, re.M)
    return count(told[1]) if told else None


def _is_known(ref: int) -> bool:
    """Whether Kaggle knows a submission that its list does not show yet."""
    with suppress(KitError):
        said = run_client("submission", str(ref))
        return bool(re.search(rf"^Submission Ref: +{ref}$", said, re.M))
    return False


def _same_text(listed: str, sent: str) -> bool:
    """Whether a description is the one that was sent, cut or spaced in another way perhaps."""
    one, other = (" ".join(text.split()) for text in (listed, printable(sent)))
    return bool(one) and other.startswith(one)


def _submission(row: dict[str, Any]) -> Submission:
    return Submission(
        ref=count(row.get("ref")) or 0,
        date=_text(row, "date"),
        file_name=_text(row, "fileName"),
        description=_text(row, "description"),
        status=_STATUSES.get(_text(row, "status").rpartition(".")[2], "PENDING"),
        public_score=_text(row, "publicScore"),
        private_score=_text(row, "privateScore"),
    )


def _text(row: dict[str, Any], key: str) -> str:
    """Return a value as text that steers no terminal, empty where there is none."""
    value = row.get(key)
    return "" if value is None else printable(str(value))
