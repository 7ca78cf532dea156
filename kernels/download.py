"""Download the competition's data from Kaggle, and pack and prove them.

Kaggle's own client fetches the archive into DATA and resumes it after a cut; then every member's
checksum and every tile's id are proved while the tiles are packed. Needs a Kaggle account that has
accepted the competition's rules, an API token, and 15 GB of disk.
"""

import sys
from pathlib import Path

import tyro

from kit import kaggle
from kit.base import KitError, competition, exit_on_error
from kit.data import CorruptArchiveError, Store, is_packed, pack_tiles


def main(data: Path = Path("data")) -> None:
    """Fetch what is missing, and pack it.

    Parameters
    ----------
    data
        Folder for the competition's data.
    """
    already = is_packed(data)
    if not already and not _is_extracted(data):
        _download(data)
    packed = _pack(data)
    if packed.is_standin:
        raise KitError(
            f"{data} holds the synthetic stand-in, not the competition's data.\n"
            "Name another folder with --data, or delete this one"
        )
    tiles = f"{len(packed.train):,} train and {len(packed.test):,} test tiles"
    how = "already there, proved when they were packed" if already else "packed, each one proved"
    print(f"{packed.folder}: {tiles}, {how}")


def _is_extracted(data: Path) -> bool:
    folder = competition.data_folder(data)
    return all((folder / split).is_dir() for split in competition.SPLITS)


def _download(data: Path) -> None:
    if kaggle.is_downloaded(data):
        print(f"{data / competition.ARCHIVE} is there: proving it", file=sys.stderr)
    else:
        print(f"downloading with {kaggle.credential()}", file=sys.stderr)
    try:
        kaggle.download_archive(data)
    except KeyboardInterrupt:
        print("\nwhat has come is kept: the same command goes on from there", file=sys.stderr)
        raise


def _pack(data: Path) -> Store:
    """Pack the archive; delete it if it is broken, or it would be taken for whole for ever.

    Nothing in it can be mended, and set aside it would take the room of the next one.
    """
    try:
        return pack_tiles(data)
    except CorruptArchiveError as error:
        (data / competition.ARCHIVE).unlink(missing_ok=True)
        raise KitError(
            f"{error}\nThe archive is deleted: run the same command to fetch it anew"
        ) from error


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
