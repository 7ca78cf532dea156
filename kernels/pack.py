"""Pack the competition's tiles into one array a split, proving every tile.

DIR holds histopathologic-cancer-detection.zip, or the extracted train/ and test/ folders
with the two CSV files. The tiles stream from the zip into DIR/store; nothing is extracted.
Bad tiles are named and nothing is packed, unless --skip-bad leaves bad training tiles out.
"""

import time
from pathlib import Path

import tyro

from kit.base import exit_on_error
from kit.data import is_packed, pack_tiles


def main(data: Path = Path("data"), skip_bad: bool = False) -> None:
    """Pack the tiles.

    Parameters
    ----------
    data
        Folder of the competition's data.
    skip_bad
        Leave bad training tiles out, with their labels, and record them in store/manifest.json.
        A bad test tile is refused all the same: a submission needs each.
    """
    already = is_packed(data)
    start = time.perf_counter()
    packed = pack_tiles(data, skip_bad=skip_bad)
    rate = (len(packed.train) + len(packed.test)) / (time.perf_counter() - start)
    how = "packed before" if already else f"packed now, {rate:,.0f} tiles/s, each proved by its id"
    print(
        f"{packed.folder}: {len(packed.train):,} train and {len(packed.test):,} test tiles, {how}"
    )
    for name, reason in packed.skipped.items():
        print(f"left out {name}: {reason}")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
