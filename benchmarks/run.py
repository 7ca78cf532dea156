"""Measure the kit beside what people use: one table, results.json and plot.png.

Every peer is a process of its own; they take turns, and only one works at a time. Leave the
machine alone meanwhile.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import measurements
import results
import tyro
from children import Result
from measurements import MEASUREMENTS, Place, Scale

import kit
from kit.base import competition, exit_on_error

RESULTS = Path(__file__).resolve().parent / "results"

Name = Literal["train", "packing", "predict", "study", "scale", "gpu"]


def main(
    only: tuple[Name, ...] = (),
    data: Path = Path("data"),
    rounds: Annotated[int, tyro.conf.arg(metavar="N")] = 5,
    train_tiles: int = 3072,
    predict_tiles: int = 4096,
    loader_workers: int = 2,
    study_epochs: int = 3,
    study_seeds: int = 6,
    scale: Scale = "tenth",
    keras_python: str = sys.executable,
    out: Path = RESULTS,
    work: Path | None = None,
) -> None:
    """Measure and write.

    Parameters
    ----------
    only
        What to measure; all of it by default.
    data
        Folder with the competition's zip; without one a stand-in is written and used.
    rounds
        Of each peer, taken in turn. What takes minutes gets three at most, compare.py one.
    train_tiles
        Tiles in a round of training; resnet18 takes a thirty-second of them.
    predict_tiles
        Tiles in a round of predicting; the competition has 57,458.
    loader_workers
        Processes that read TIFF files for PyTorch and timm.
    study_epochs
        Epochs of each training in the study; the notebook's protocol has 20.
    study_seeds
        Of each arm of the study.
    scale
        The largest stand-in; full takes about a quarter of an hour and 16 GB of disk.
    keras_python
        The interpreter that has TensorFlow and Keras.
    out
        Folder of table.txt, results.json and plot.png.
    work
        Folder to work in, kept for the next time; a temporary one by default.
    """
    with working_folder(work) as folder:
        place = Place(
            archive=find_archive(data, folder),
            work=folder,
            rounds=rounds,
            train_tiles=train_tiles,
            predict_tiles=predict_tiles,
            loader_workers=loader_workers,
            study_epochs=study_epochs,
            study_seeds=study_seeds,
            scale=scale,
            keras_python=keras_python,
        )
        header = describe(place)
        measured: list[Result] = []
        for name in only or MEASUREMENTS:
            for found in MEASUREMENTS[name](place):
                measured += found
                # Minutes of work are not lost when a later peer fails.
                results.write(out, measured, header)
    print(results.table(measured, header))
    print(f"\n{out}: table.txt, results.json, plot.png")


def find_archive(data: Path, work: Path) -> Path:
    """Return the competition's zip, or one of a stand-in."""
    archive = competition.data_folder(data) / competition.ARCHIVE
    if archive.is_file():
        return archive
    print(f"no {archive}: measuring on a stand-in", file=sys.stderr)
    measurements.kernel("standin", "--data", work / "standin")
    return work / "standin" / competition.ARCHIVE


def describe(place: Place) -> dict[str, Any]:
    """Return what the table says before its figures."""
    tiles = f"{len(place.store.train):,} + {len(place.store.test):,}"
    kind = "STAND-IN, synthetic tiles" if place.store.is_standin else "the competition's tiles"
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "kit": kit.__version__,
        "data": f"{tiles}, {kind}",
        **results.describe_machine(),
    }


@contextmanager
def working_folder(folder: Path | None) -> Iterator[Path]:
    """Yield a folder to work in, and remove it at the end if it is a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="kit-bench-") as temporary:
            yield Path(temporary)


if __name__ == "__main__":
    # The kit has set this for itself; its peers are measured as they come.
    if os.environ.get("GOMP_SPINCOUNT") == kit.SPIN_COUNT:
        del os.environ["GOMP_SPINCOUNT"]
    # What the measured processes import is this kit, wherever it is run from.
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).strip(":")
    with exit_on_error():
        tyro.cli(main, description=__doc__)
