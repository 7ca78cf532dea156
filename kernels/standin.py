"""Write a synthetic competition that every other command takes for Kaggle's.

DATA gets histopathologic-cancer-detection.zip in Kaggle's own layout, slides.csv (id,slide) and
standin.json. Its tiles are drawn: they try out every command without an account or a download,
and no figure made from them says anything of the competition.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kit import base, data
from kit.base import exit_on_error


@dataclass(frozen=True, kw_only=True)
class StandinOptions:
    """How many tiles, and where they go."""

    data: Path = Path("data")
    """Folder to write into; it must not hold other data."""
    train: int = 4000
    """Number of labelled tiles."""
    test: int = 1000
    """Number of tiles whose labels are withheld."""
    seed: int = 0
    """Another one gives other tiles."""


def main(options: StandinOptions) -> None:
    """Write the stand-in, unless it is there."""
    numbers = {"train": options.train, "test": options.test, "seed": options.seed}
    already = data.is_standin_written(options.data, **numbers)
    start = time.perf_counter()
    archive = data.write_standin(options.data, **numbers)
    rate = (options.train + options.test) / (time.perf_counter() - start)
    how = "written before" if already else f"written now, {rate:,.0f} tiles/s"
    print("*** STAND-IN: synthetic tiles, not the competition's data ***")
    print(f"{archive}: {options.train:,} train and {options.test:,} test tiles, {how}")
    print(f"next: {base.command('train', '--data', options.data, '--bn', 'before')}")


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(StandinOptions, __doc__, sys.argv[1:]))
