"""Upload the packed tiles as a private dataset on Kaggle, for pushed commands to take.

With push.py --dataset OWNER/NAME a kernel packs nothing. It saves minutes of each push and costs an
upload of 7.7 GB once; the same command goes on with one that was cut.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from kit import base, data, kaggle
from kit.base import KitError, exit_on_error


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What is uploaded, and what it is called."""

    data: Path = Path("data")
    """Folder of the competition's data; packed first where it is not."""
    name: str = "histopathologic-packed"
    """Of the dataset, which belongs to the account."""


def main(options: DatasetOptions) -> None:
    """Pack and upload."""
    kaggle.require_name(options.name)
    tiles = data.open_store(options.data)
    if tiles.is_standin:
        raise KitError(f"{options.data} holds the synthetic stand-in: there is nothing to upload")
    owner = kaggle.username()
    size = sum(path.stat().st_size for path in tiles.folder.iterdir())
    print(
        f"uploading {size / 1e9:.1f} GB with {kaggle.credential()}; the client shows no progress",
        file=sys.stderr,
    )
    staging = tiles.folder.with_name(f"{tiles.folder.name}-upload")
    with base.going_on(lambda: "the same command goes on"):
        address = kaggle.create_dataset(tiles.folder, staging, owner=owner, name=options.name)
    shutil.rmtree(staging)
    print(f"uploaded: {address}, which Kaggle now prepares")
    dataset = f"{owner}/{options.name}"
    print(f"next: {base.command('push', '--dataset', dataset, '--', '--bn', 'before')}")


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(DatasetOptions, __doc__, sys.argv[1:]))
