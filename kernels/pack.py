"""Pack the competition's tiles into one array per split, proving every tile.

DATA holds histopathologic-cancer-detection.zip, or the extracted train/ and test/ folders
with the two CSV files. The tiles stream from the zip into DATA/store; nothing is extracted.
Bad tiles are named and nothing is packed, unless --skip-bad leaves bad training tiles out.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kit import base, data
from kit.base import exit_on_error


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What is packed."""

    data: Path = Path("data")
    """Folder of the competition's data."""
    skip_bad: bool = False
    """Leave bad training tiles out, with their labels, and record them in store/manifest.json. A
    bad test tile is always refused: a submission needs each."""


def main(options: PackOptions) -> None:
    """Pack the tiles."""
    already = data.is_packed(options.data)
    start = time.perf_counter()
    packed = data.pack_tiles(options.data, skip_bad=options.skip_bad)
    rate = (len(packed.train) + len(packed.test)) / (time.perf_counter() - start)
    how = "packed before" if already else f"packed now, {rate:,.0f} tiles/s, each proved by its id"
    print(
        f"{packed.folder}: {len(packed.train):,} train and {len(packed.test):,} test tiles, {how}"
    )
    for name, reason in packed.skipped.items():
        print(f"left out {name}: {reason}")
    print(f"next: {base.command('explore', '--data', options.data)}")


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(PackOptions, __doc__, sys.argv[1:]))
