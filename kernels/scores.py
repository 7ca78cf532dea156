"""List the account's submissions to the competition with their scores, the newest first.

The rank is the one that the score would have had on the competition's final leaderboard, which is
fetched once and kept.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from kit import base, kaggle
from kit.base import KitError, exit_on_error

COLUMNS = {
    "ref": "ref",
    "date": "date (UTC)",
    "status": "status",
    "public_score": "public",
    "private_score": "private",
    "file_name": "file",
    "description": "description",
}


@dataclass(frozen=True)
class ScoresOptions:
    """There are none."""


def main() -> None:
    """Print one row per submission."""
    rows = kaggle.list_submissions()
    if not rows:
        print("no submissions yet")
        return
    import pandas as pd

    table = pd.DataFrame(rows)[list(COLUMNS)].rename(columns=COLUMNS)
    table.insert(5, *ranks(rows))
    table["description"] = [base.shorten(" ".join(row.description.split()), 100) for row in rows]
    table["date (UTC)"] = table["date (UTC)"].str[:16].str.replace("T", " ")
    print(table.to_string(index=False))


def ranks(rows: list[kaggle.Submission]) -> tuple[str, list[str]]:
    """Return a column of the ranks that the scores would have had, and its heading."""
    if not any(row.public_score or row.private_score for row in rows):
        return "rank", [""] * len(rows)
    try:
        board = kaggle.read_leaderboard()
    except KitError as error:
        print(f"note: no ranks: {error}", file=sys.stderr)
        return "rank", [""] * len(rows)
    scores = [getattr(row, f"{board.kind}_score") for row in rows]
    found = ["" if (rank := board.rank(score)) is None else str(rank) for score in scores]
    return f"{board.kind} rank of {len(board.scores):,}", found


if __name__ == "__main__":
    with exit_on_error():
        base.parse_options(ScoresOptions, __doc__, sys.argv[1:])
        main()
