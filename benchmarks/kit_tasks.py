"""The kit's whole tasks, as its users start them.

pack, testzip                      the archive into a proved store; inflating it alone
predict                            one view or eight of the test tiles
train                              a run, from the store to its folder
sweep, independent                 momenta in one training, and in one each
compare                            the whole study, through its command
"""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from serve import Options, Task, require, serve

if TYPE_CHECKING:
    from kit.data import TileSet

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
CHANGES = ("epochs", "per_class", "holdout", "batch_size")
MOMENTA = (0.99, 0.75, 0.5, 0.25)


def prepare(options: Options) -> Task:
    """Make one of KINDS; the options are those of its function."""
    return KINDS[options["kind"]](options)


def prepare_pack(options: Options) -> Task:
    """Pack the archive in `data` from nothing."""
    from kit.data import pack_tiles

    data = Path(options["data"])

    def run() -> int:
        shutil.rmtree(data / "store", ignore_errors=True)
        packed = pack_tiles(data)
        return len(packed.train) + len(packed.test)

    return Task(run, "every tile proved", ("numpy",), warm_up=options["warm_up"])


def prepare_testzip(options: Options) -> Task:
    """Inflate every member of the archive and check its CRC."""
    from kit.base import competition

    path = Path(options["data"]) / competition.ARCHIVE

    def run() -> int:
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            return sum(name.endswith(".tif") for name in archive.namelist())

    return Task(run, f"Python {sys.version.split()[0]}")


def prepare_predict(options: Options) -> Task:
    """Predict with the run in `run`: the tiles of the file `tiles`, or the store's test tiles.

    `count` repeats the latter to as many.
    """
    import numpy as np

    from kit import runs
    from kit.data import TileSet, open_store
    from kit.training import prepare_process

    require(options["device"])
    prepare_process(deterministic=True)
    model = runs.load(Path(options["run"]), device=options["device"])
    if options.get("tiles"):
        tiles = np.load(options["tiles"], mmap_mode="r")
        test = TileSet(tiles, np.arange(len(tiles)).astype(str))
    else:
        test = open_store(Path(options["data"])).test
        test = _repeat(test, options.get("count", len(test)))
    dtype = str(model.dtype).removeprefix("torch.")

    def run() -> int:
        return len(model.predict(test, views=options["views"], progress=False))

    return Task(run, f"{dtype}, {_threads()}", ("torch",), warm_up=options["warm_up"])


def prepare_train(options: Options) -> Task:
    """Train a recipe with CHANGES, by default the notebook's, into a new folder per round.

    `count` repeats the store's training tiles to as many.
    """
    from kit.base import read_recipe
    from kit.data import open_store
    from kit.runs import Run
    from kit.training import prepare_process

    device = options.get("device", "cpu")
    require(device)
    prepare_process()
    changes = {name: options[name] for name in CHANGES if name in options}
    recipe = replace(read_recipe(options.get("recipe", "notebook")), **changes)
    tiles = open_store(Path(options["data"]))
    if count := options.get("count"):
        tiles = replace(tiles, train=_repeat(tiles.train, count))
    folders = _new_folders(options)

    def run() -> int:
        started = Run(recipe, tiles, next(folders), device=device)
        list(started.train(progress=False))
        steps = len(started.holdout.train) // recipe.batch_size
        return steps * recipe.batch_size * recipe.epochs

    return Task(run, f"{recipe.epochs} epochs, {_threads()}", ("torch",), warm_up=False)


def _repeat(tiles: "TileSet", count: int) -> "TileSet":
    """Return tiles repeated in memory, with ids that differ."""
    import numpy as np

    from kit.data import TileSet

    if count == len(tiles):
        return tiles
    rows = np.resize(np.arange(len(tiles)), count)
    repeated = np.empty((count, *tiles.tiles.shape[1:]), np.uint8)
    for part in np.array_split(np.arange(count), 1 + count // 4096):
        repeated[part] = tiles.tiles[rows[part]]
    ids = np.array([f"{number:040x}" for number in range(count)])
    return TileSet(repeated, ids, None if tiles.labels is None else tiles.labels[rows])


def prepare_momenta(options: Options) -> Task:
    """Train one seed of every momentum, in one training or in one each."""
    from kit.base import read_recipe
    from kit.data import open_store
    from kit.study import MomentumSweep, sweep_momenta, train_momenta

    recipe = replace(read_recipe("notebook"), epochs=options["epochs"])
    tiles = open_store(Path(options["data"]))
    folders = _new_folders(options)
    train = {"sweep": sweep_momenta, "independent": train_momenta}[options["kind"]]

    def run() -> int:
        train(MomentumSweep(next(folders), recipe, MOMENTA, (0,)), tiles)
        return 0

    return Task(run, f"{recipe.epochs} epochs, {_threads()}", ("torch",), warm_up=False)


def prepare_compare(options: Options) -> Task:
    """Run compare.py: six seeds of both arms, tables and page."""
    folders = _new_folders(options)
    command = [sys.executable, str(KERNELS / "compare.py"), "--data", options["data"]]
    command += ["--epochs", str(options["epochs"]), "--seeds", str(options["seeds"])]

    def run() -> int:
        done = subprocess.run(
            [*command, "--out", str(next(folders))], check=False, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
        return 0

    return Task(run, f"{options['epochs']} epochs, {options['seeds']} seeds", warm_up=False)


def _new_folders(options: Options) -> Iterator[Path]:
    """Name a folder per round."""
    return (Path(options["work"]) / f"{options['kind']}-{number}" for number in count())


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()} threads"


KINDS: dict[str, Callable[[Options], Task]] = {
    "pack": prepare_pack,
    "testzip": prepare_testzip,
    "predict": prepare_predict,
    "train": prepare_train,
    "sweep": prepare_momenta,
    "independent": prepare_momenta,
    "compare": prepare_compare,
}


if __name__ == "__main__":
    serve(prepare)
