"""List the account's submissions to the competition with their scores, the newest first."""

import pandas as pd
import tyro

from kit import kaggle
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


def main() -> None:
    """Print one row a submission."""
    rows = kaggle.list_submissions()
    if not rows:
        print("no submissions yet")
        return
    table = pd.DataFrame(rows)[list(COLUMNS)].rename(columns=COLUMNS)
    table["date (UTC)"] = table["date (UTC)"].str[:16].str.replace("T", " ")
    print(table.to_string(index=False))


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
