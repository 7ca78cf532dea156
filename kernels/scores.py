"""List the account's submissions to the competition with their scores, the newest first."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from kit import base, kaggle
from kit.base import exit_on_error

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
    table["description"] = [base.shorten(" ".join(row.description.split()), 100) for row in rows]
    table["date (UTC)"] = table["date (UTC)"].str[:16].str.replace("T", " ")
    print(table.to_string(index=False))


if __name__ == "__main__":
    with exit_on_error():
        base.parse_options(ScoresOptions, __doc__, sys.argv[1:])
        main()
