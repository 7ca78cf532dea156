"""Download the competition's data from Kaggle, and pack and prove them.

Kaggle's own client fetches the archive into DATA and resumes it after a cut; then every member's
checksum and every tile's id are proved while the tiles are packed. Needs a Kaggle account that has
accepted the competition's rules, an API token, and 15 GB of disk.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from kit import base, data, kaggle
from kit.base import KitError, exit_on_error


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Where the data goes."""

    data: Path = Path("data")
    """Folder for the competition's data."""


def main(options: DownloadOptions) -> None:
    """Fetch what is missing, and pack it."""
    folder = options.data
    already = data.is_packed(folder)
    if not already and data.extracted_folder(folder) is None:
        download(folder)
    packed = pack(folder)
    if packed.is_standin:
        raise KitError(
            f"{folder} holds the synthetic stand-in, not the competition's data.\n"
            "Name another folder with --data, or delete this one"
        )
    tiles = f"{len(packed.train):,} train and {len(packed.test):,} test tiles"
    how = "already there, proved when they were packed" if already else "packed, each one proved"
    print(f"{packed.folder}: {tiles}, {how}")
    print(f"next: {base.command('explore', '--data', folder)}")


def download(folder: Path) -> None:
    """Fetch the archive, or go on with it."""
    if kaggle.is_downloaded(folder):
        print(f"{folder / base.ARCHIVE} is there: proving it", file=sys.stderr)
    else:
        print(f"downloading with {kaggle.credential()}", file=sys.stderr)
    try:
        kaggle.download_archive(folder)
    except KeyboardInterrupt:
        print("\nwhat has come is kept: the same command goes on from there", file=sys.stderr)
        raise


def pack(folder: Path) -> data.Store:
    """Pack the archive; delete it if it is broken, or it would be taken for whole forever.

    Nothing in it can be mended, and set aside it would take the room of the next one.
    """
    try:
        return data.pack_tiles(folder)
    except data.CorruptArchiveError as error:
        (folder / base.ARCHIVE).unlink(missing_ok=True)
        raise KitError(
            f"{error}\nThe archive is deleted: run the same command to fetch it again"
        ) from error


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(DownloadOptions, __doc__, sys.argv[1:]))
