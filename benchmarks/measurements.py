"""The measurements: each one is a function from a place to work in to its results."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from children import Peer, Result, interleave
from results import CEILING, EAGER, EIGHT, EPOCH, FOUR, KERAS, KIT, ONE, SWEEP, TIMM, TORCH

from kit.base import KitError, competition
from kit.data import Store, open_store, pack_tiles

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
FULL_SIZE = (220_025, 57_458)
SIZES = {"hundredth": 100, "tenth": 10, "full": 1}

# What fills a round on a GPU, and a batch that keeps one busy.
GPU_CASES: dict[str, dict[str, Any]] = {
    "small, batch 64": {"recipe": "notebook", "batch": 64, "tiles": 35_000},
    "compact, batch 32": {"recipe": "compact", "batch": 32, "tiles": 16_000},
    "compact, batch 512": {"recipe": "compact", "batch": 512, "tiles": 51_200},
    "resnet50, 224 px": {"recipe": "backbone", "batch": 64, "tiles": 6_400},
}
GPU_TASKS: dict[str, dict[str, Any]] = {
    "notebook's protocol": {"count": 70_000, "epochs": 20},
    # Its own number of epochs, which the table shows.
    "compact, 176,020 tiles": {
        "recipe": "compact",
        "count": FULL_SIZE[0],
        "holdout": 0.2,
        "batch_size": 512,
    },
}

Scale = Literal["hundredth", "tenth", "full"]


@dataclass(frozen=True)
class Place:
    """Where measurements work, how much they do, and what they read.

    Attributes
    ----------
    archive
        The competition's zip.
    work
        A folder of its own.
    train_tiles, predict_tiles
        In a round.
    loader_workers
        Processes that read the TIFF files for a peer.
    """

    archive: Path
    work: Path
    rounds: int
    train_tiles: int
    predict_tiles: int
    loader_workers: int
    study_epochs: int
    study_seeds: int
    scale: Scale
    keras_python: str

    @cached_property
    def data(self) -> Path:
        """A data folder with the archive, packed."""
        self.link(self.work / "data")
        pack_tiles(self.work / "data")
        return self.work / "data"

    @cached_property
    def store(self) -> Store:
        """The packed tiles."""
        return open_store(self.data)

    @cached_property
    def run(self) -> Path:
        """A finished run; how well it was trained does not matter here."""
        folder = self.work / "run"
        if not folder.exists():
            kernel("train", "--data", self.data, "--epochs", 1, "--out", folder)
        return folder

    @property
    def long_rounds(self) -> int:
        """Rounds of what takes minutes."""
        return min(self.rounds, 3)

    def link(self, folder: Path) -> None:
        """Let a folder be a data folder with the archive."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / competition.ARCHIVE).exists():
            (folder / competition.ARCHIVE).symlink_to(self.archive.resolve())

    def interleave(
        self, measurement: str, case: str, peers: Mapping[str, Peer], *, rounds: int | None = None
    ) -> list[Result]:
        """Measure peers side by side."""
        rounds = rounds or self.rounds
        return interleave(measurement, case, peers, rounds=rounds, work=self.work)


def kernel(name: str, *options: object) -> None:
    """Run one of the kit's commands.

    Raises
    ------
    KitError
        With what it said, if it failed.
    """
    command = [sys.executable, str(KERNELS / f"{name}.py"), *map(str, options)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise KitError(f"{name}.py failed: {done.stderr}")


def train(place: Place) -> Iterator[list[Result]]:
    """Train end to end, warm: the notebook's network by augmentation, then resnet18."""
    for augment in ("none", "d4", "stain"):
        options = {"model": "small", "size": 32, "batch": 64, "augment": augment}
        yield train_case(place, "train", options, tiles=place.train_tiles)
    options = {"model": "resnet18", "size": 96, "batch": 32, "augment": "none"}
    # A step of it costs a hundred times as much.
    yield train_case(place, "train", options, tiles=max(32, place.train_tiles // 32))


def gpu(place: Place) -> Iterator[list[Result]]:
    """Train and predict on the GPU, if there is one: shares of the ceiling, then whole tasks.

    Tiles are repeated to the competition's number; so figures of time mean what they say, and
    those of quality nothing.
    """
    common = {"data": str(place.data), "device": "cuda"}
    for case, options in GPU_CASES.items():
        peers = {
            KIT: Peer("kit_peer.py", {**common, **options, "kind": "kit"}),
            CEILING: Peer("kit_peer.py", {**common, **options, "kind": "ceiling"}),
        }
        yield place.interleave("gpu", case, peers, rounds=place.long_rounds)
    for case, options in GPU_TASKS.items():
        work = fresh(place.work / f"gpu {case}")
        options = {**common, **options, "kind": "train", "work": str(work)}
        yield place.interleave("gpu", case, {"train": Peer("kit_tasks.py", options)}, rounds=1)
    options = {"kind": "predict", "run": str(work / "train-0"), "views": 1, "warm_up": True}
    peers = {"predict": Peer("kit_tasks.py", {**common, **options, "count": FULL_SIZE[1]})}
    yield place.interleave("gpu", "compact, all test tiles", peers, rounds=place.long_rounds)


def train_case(
    place: Place, measurement: str, options: Mapping[str, Any], *, tiles: int, device: str = "cpu"
) -> list[Result]:
    """Train on the same tiles with every peer that can."""
    batch = options["batch"]
    # The kit's peer keeps the last tiles to validate on.
    count = min(tiles, len(place.store.train) - batch) // batch * batch
    if count < batch:
        raise KitError(f"{place.archive} holds too few tiles: take at least {2 * batch}")
    table = write_train_files(place, count)
    common = {
        **options,
        "device": device,
        "tiles": count,
        "data": str(place.data),
        "tiffs": str(place.work / "tiffs"),
        "table": str(table),
        "classes": str(table.with_suffix("")),
        "workers": place.loader_workers,
    }
    peers = {
        KERAS: Peer("keras_peer.py", {**common, "split": "train"}, place.keras_python),
        TORCH: Peer("torch_peer.py", common),
        TIMM: Peer("timm_peer.py", common),
        KIT: Peer("kit_peer.py", {**common, "kind": "kit"}),
        CEILING: Peer("kit_peer.py", {**common, "kind": "ceiling"}),
        EAGER: Peer("kit_peer.py", {**common, "kind": "eager"}),
    }
    # Keras has no resnet18, and the notebook no GPU.
    if options["model"] != "small" or device != "cpu":
        del peers[KERAS]
    case = f"{options['model']}, {options['size']} px, {options['augment']}"
    return place.interleave(measurement, case, peers)


def packing(place: Place) -> Iterator[list[Result]]:
    """Pack the archive, and inflate it alone."""
    data = place.work / "pack"
    place.link(data)
    options = {"data": str(data), "warm_up": True}
    peers = {
        KIT: Peer("kit_tasks.py", {"kind": "pack", **options}),
        "testzip": Peer("kit_tasks.py", {"kind": "testzip", **options}),
    }
    yield place.interleave("packing", "archive", peers)


def predict(place: Place) -> Iterator[list[Result]]:
    """Predict test tiles, repeated as often as need be, with one view and eight."""
    rows = np.resize(np.arange(len(place.store.test)), place.predict_tiles)
    options = {
        "kind": "predict",
        "run": str(place.run),
        "tiles": str(write_repeated(place, rows)),
        "device": "cpu",
        "warm_up": True,
    }
    ids = place.store.test.ids
    extract(place, "test", ids)
    table = place.work / "test.csv"
    pd.DataFrame({"file": [f"{ids[row]}.tif" for row in rows]}).to_csv(table, index=False)
    files = {"tiffs": str(place.work / "tiffs"), "table": str(table), "split": "test"}
    peers = {
        KERAS: Peer("keras_peer.py", {**files, "batch": 64, "augment": "none"}, place.keras_python),
        KIT: Peer("kit_tasks.py", {**options, "views": 1}),
        EIGHT: Peer("kit_tasks.py", {**options, "views": 8}),
    }
    yield place.interleave("predict", "test tiles", peers)


def study(place: Place) -> Iterator[list[Result]]:
    """Run a sweep of momenta beside one training and four, then the whole comparison."""
    options = {
        "data": str(place.data),
        "work": str(fresh(place.work / "study")),
        "epochs": place.study_epochs,
        "per_class": 25_000,
        "seeds": place.study_seeds,
    }
    peers = {
        ONE: Peer("kit_tasks.py", {**options, "kind": "train"}),
        SWEEP: Peer("kit_tasks.py", {**options, "kind": "sweep"}),
        FOUR: Peer("kit_tasks.py", {**options, "kind": "independent"}),
    }
    yield place.interleave("study", "momentum", peers, rounds=place.long_rounds)
    comparison = {"compare.py": Peer("kit_tasks.py", {**options, "kind": "compare"})}
    yield place.interleave("study", "two arms", comparison, rounds=1)


def scale(place: Place) -> Iterator[list[Result]]:
    """Pack, train one epoch and predict, on stand-ins of growing size."""
    names = list(SIZES)[: list(SIZES).index(place.scale) + 1]
    for name in names:
        yield scale_case(place, name)


def scale_case(place: Place, name: str) -> list[Result]:
    """Take a stand-in of one size through all of it."""
    train_count, test_count = (-(-count // SIZES[name]) for count in FULL_SIZE)
    folder = place.work / f"standin-{name}"
    print(f"scale: writing {train_count + test_count:,} tiles", file=sys.stderr)
    kernel("standin", "--data", folder, "--train", train_count, "--test", test_count)
    options = {"data": str(folder), "warm_up": False, "device": "cpu"}
    training = {"epochs": 1, "per_class": None, "work": str(fresh(folder / "runs"))}
    prediction = {"run": str(place.run), "tiles": None, "views": 1}
    peers = {
        "pack": Peer("kit_tasks.py", {**options, "kind": "pack"}),
        EPOCH: Peer("kit_tasks.py", {**options, **training, "kind": "train"}),
        "predict": Peer("kit_tasks.py", {**options, **prediction, "kind": "predict"}),
    }
    # At full size a round takes minutes and hardly varies.
    rounds = 1 if name == "full" else place.long_rounds
    # One task after another: packing comes first, and replaces the store that the others map.
    case = f"{train_count:,} + {test_count:,}"
    return [
        result
        for task, peer in peers.items()
        for result in place.interleave("scale", case, {task: peer}, rounds=rounds)
    ]


MEASUREMENTS: dict[str, Callable[[Place], Iterator[list[Result]]]] = {
    "train": train,
    "packing": packing,
    "predict": predict,
    "study": study,
    "scale": scale,
    "gpu": gpu,
}


def write_train_files(place: Place, count: int) -> Path:
    """Write the first tiles as TIFF files, their table, and a folder a class; return the table."""
    ids = place.store.train.ids[:count]
    extract(place, "train", ids)
    labels = place.store.labels[:count]
    table = place.work / f"train-{count}.csv"
    names = [f"{tile}.tif" for tile in ids]
    pd.DataFrame({"file": names, "label": labels}).to_csv(table, index=False)
    for name, label in zip(names, labels, strict=True):
        link = table.with_suffix("") / str(label) / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(place.work / "tiffs" / "train" / name)
    return table


def write_repeated(place: Place, rows: np.ndarray) -> Path:
    """Write rows of the test tiles as an array of their own; return its file."""
    path = place.work / f"test-{len(rows)}.npy"
    tiles = place.store.test.tiles
    shape = (len(rows), *tiles.shape[1:])
    repeated = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    for start in range(0, len(rows), 1024):
        repeated[start : start + 1024] = tiles[rows[start : start + 1024]]
    repeated.flush()
    return path


def extract(place: Place, split: str, ids: np.ndarray) -> None:
    """Extract tiles of the archive as TIFF files, those that are not there yet."""
    folder = place.work / "tiffs"
    with zipfile.ZipFile(place.archive) as archive:
        for tile in ids:
            name = f"{split}/{tile}.tif"
            if not (folder / name).exists():
                archive.extract(name, folder)


def fresh(folder: Path) -> Path:
    """Return a folder that is not there any more."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
