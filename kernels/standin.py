"""Write a synthetic competition that every other command takes for Kaggle's.

DATA gets histopathologic-cancer-detection.zip in Kaggle's own layout, slides.csv (id,slide) and
standin.json. Its tiles are drawn: they try out every command without an account or a download,
and no figure made from them says anything of the competition.
"""

import time
from pathlib import Path

import tyro

from kit.base import exit_on_error
from kit.data import is_standin_written, write_standin


def main(data: Path = Path("data"), train: int = 4000, test: int = 1000, seed: int = 0) -> None:
    """Write the stand-in, unless it is there.

    Parameters
    ----------
    data
        Folder to write into; it must not hold other data.
    train
        Number of labelled tiles.
    test
        Number of tiles whose labels are withheld.
    seed
        Another one gives other tiles.
    """
    already = is_standin_written(data, train=train, test=test, seed=seed)
    start = time.perf_counter()
    archive = write_standin(data, train=train, test=test, seed=seed)
    rate = (train + test) / (time.perf_counter() - start)
    how = "written before" if already else f"written now, {rate:,.0f} tiles/s"
    print("*** STAND-IN: synthetic tiles, not the competition's data ***")
    print(f"{archive}: {train:,} train and {test:,} test tiles, {how}")
    print(f"next: python kernels/train.py --data {data} --bn before")


if __name__ == "__main__":
    with exit_on_error():
        tyro.cli(main, description=__doc__)
