"""Packing: the tiles of an archive or a folder, each proved, into one array per split."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from tqdm import tqdm

from kit.base import (
    CHANNELS,
    SPLITS,
    TILE_SIZE,
    KitError,
    Pixels,
    Split,
    competition,
    read_table,
    require_ids,
    require_labels,
    write_json,
    write_text,
)
from kit.data.archive import (
    Archive,
    CorruptArchiveError,
    CorruptMemberError,
    Source,
    is_outside,
)
from kit.data.tiff import TileError, tile_pixels

FORMAT = 1
MAX_PROBLEMS = 50
# A tile has 27,935 bytes, the largest table 9.5 MB. What claims to be larger is not inflated.
_MAX_TILE_BYTES = 2**20
_MAX_TABLE_BYTES = 2**28
_CHUNK = 64
_SPLIT_FOLDERS = tuple(f"{split}/" for split in SPLITS)

Index = dict[Split, pd.DataFrame]
"""Each split's table: id, and label where it is known."""
Problems = dict[str, TileError]
"""What is wrong, by the tile's name in its archive or folder."""


def write_store(folder: Path, source: Source, *, skip_bad: bool) -> None:
    """Write both splits of an opened source, then the manifest that says they are whole."""
    index = read_index(source)
    _note_passed_over(source)
    problems = _name_problems(source.names(), index)
    problems |= _copy_tiles(folder, source, without(problems, index))
    if problems:
        if not (skip_bad and _are_skippable(problems)):
            _refuse(problems, source)
        index = without(problems, index)
        if index["train"].empty:
            raise KitError(f"no training tile in {source.path} is good: fetch the data again")
        # Once more, so that the rows of the good tiles follow each other.
        if changed := _copy_tiles(folder, source, index):
            _refuse(changed, source)
    _write_tables(folder, source, index, problems)


def _write_tables(folder: Path, source: Source, index: Index, skipped: Problems) -> None:
    """Write the splits' tables, and last the manifest."""
    for split, text in _texts(index).items():
        write_text(folder / f"{split}.csv", text)
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint(index),
        "is_standin": source.is_standin,
        "tiles": {split: len(table) for split, table in index.items()},
        "skipped": {name: str(skipped[name]) for name in sorted(skipped)},
        "packed_from": source.identity(),
    }
    write_json(folder / "manifest.json", manifest)


def read_index(source: Source) -> Index:
    """Read what an opened source's tables say of both splits.

    Raises
    ------
    KitError
        If a table is missing or damaged, or labels test tiles.
    """
    index: Index = {"train": _read_labels(source), "test": _read_sample(source)}
    _check_honour(index["train"], index["test"], source.path)
    return index


def fingerprint(index: Index) -> str:
    """Return the SHA-256 of all ids and labels, which a store is known by."""
    return hashlib.sha256("".join(_texts(index).values()).encode()).hexdigest()


def _texts(index: Index) -> dict[Split, str]:
    return {split: table.to_csv(index=False, lineterminator="\n") for split, table in index.items()}


def _copy_tiles(folder: Path, source: Source, index: Index) -> Problems:
    """Copy the tiles of both splits; return what is wrong with those that were not copied."""
    problems: Problems = {}
    for split, table in index.items():
        problems |= _copy_split(folder / f"{split}.npy", source, split, table["id"].to_list())
    return problems


def without(names: Container[str], index: Index) -> Index:
    """Return the index without the tiles of some names."""
    return {
        split: table[[_member(split, tile) not in names for tile in table["id"]]]
        for split, table in index.items()
    }


def _name_problems(names: Sequence[str], index: Index) -> Problems:
    """Compare the members' names with those of the tables."""
    counts = Counter(names)
    tiles = {name for name in counts if name.startswith(_SPLIT_FOLDERS) and _is_tile(name)}
    expected = {_member(split, tile) for split in index for tile in index[split]["id"]}
    return (
        {name: TileError("missing") for name in expected - tiles}
        | {name: TileError("not in the table") for name in tiles - expected}
        | {name: TileError("is there twice") for name in tiles if counts[name] > 1}
        | {name: TileError("leads out of its folder") for name in counts if is_outside(name)}
    )


def _member(split: Split, tile: str) -> str:
    return f"{split}/{tile}.tif"


def _is_tile(name: str) -> bool:
    """Whether a name can be that of a tile; `.DS_Store`, `Thumbs.db`, `._x.tif` cannot."""
    last = name.rpartition("/")[2]
    return last.lower().endswith((".tif", ".tiff")) and not last.startswith(".")


def _note_passed_over(source: Source) -> None:
    """Count what lies beside the tiles and is not one, as file managers leave it there."""
    beside = [name for name in source.names() if name.startswith(_SPLIT_FOLDERS)]
    others = [name for name in beside if not name.endswith("/") and not _is_tile(name)]
    if others:
        print(
            f"note: {len(others):,} names in {source.path} are not those of tiles and were passed "
            f"over, the first {min(others)}",
            file=sys.stderr,
        )


def _are_skippable(problems: Problems) -> bool:
    """Whether no test tile is among them: a submission needs each of those."""
    return not any(name.startswith("test/") for name in problems)


def _copy_split(path: Path, source: Source, split: Split, ids: Sequence[str]) -> Problems:
    """Copy a split's pixels into one array, in the order of `ids`, proving each tile."""
    tiles = _allocate(path, len(ids))
    rows = {_member(split, tile): row for row, tile in enumerate(ids)}
    # In the order in which they lie on disk.
    names = [name for name in source.names() if name in rows]

    def copy(chunk: list[str]) -> Problems:
        return dict(filter(None, (_copy_tile(source, name, tiles[rows[name]]) for name in chunk)))

    problems: Problems = {}
    with (
        ThreadPoolExecutor(source.readers) as executor,
        tqdm(total=len(names), desc=f"packing {split}", unit=" tiles", mininterval=0.5) as bar,
    ):
        for chunk, found in _in_order(executor, copy, _chunks(names)):
            problems |= found
            bar.update(len(chunk))
    tiles.flush()
    return problems


def _copy_tile(source: Source, name: str, row: Pixels) -> tuple[str, TileError] | None:
    """Copy one proved tile into its row; return what is wrong with it, if anything is."""
    try:
        pixels = tile_pixels(source.read(name, _MAX_TILE_BYTES))
        proved = competition.tile_id(pixels)
        if proved != Path(name).stem:
            raise TileError(f"its pixels hash to {proved}")
    except TileError as error:
        return name, error
    row[:] = np.frombuffer(pixels, np.uint8).reshape(row.shape)
    return None


def _in_order(
    executor: ThreadPoolExecutor,
    work: Callable[[list[str]], Problems],
    chunks: Iterator[list[str]],
) -> Iterator[tuple[list[str], Problems]]:
    """Yield each chunk with its result; an interruption drops the chunks not yet begun."""
    pending = [(chunk, executor.submit(work, chunk)) for chunk in chunks]
    try:
        for chunk, future in pending:
            yield chunk, future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _chunks(names: Sequence[str]) -> Iterator[list[str]]:
    iterator = iter(names)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def tiles_shape(count: int) -> tuple[int, ...]:
    """Return the shape of an array of tiles."""
    return count, TILE_SIZE, TILE_SIZE, CHANNELS


def _allocate(path: Path, count: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Create an array on disk with its blocks reserved.

    A mapped file that outgrows the disk kills the process; reserving fails with a message.
    """
    tiles = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=tiles_shape(count))
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return tiles


def _refuse(problems: Problems, source: Source) -> NoReturn:
    """Report the bad tiles, all in one message, and the next step."""
    lines = [f"{name}: {problems[name]}" for name in sorted(problems)[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS:,} more")
    listed = "\n  ".join(lines)
    message = f"{len(problems):,} bad tiles in {source.path}:\n  {listed}\n"
    if isinstance(source, Archive):
        again = "Delete the archive and type `make download` again"
    else:
        again = f"Extract these tiles again from {competition.ARCHIVE}"
    if any(isinstance(problem, CorruptMemberError) for problem in problems.values()):
        raise CorruptArchiveError(f"{message}{again}")
    if not _are_skippable(problems):
        raise KitError(f"{message}{again}; a submission needs every test tile")
    raise KitError(f"{message}{again}, or leave them out: python kernels/pack.py --skip-bad")


def _read_labels(source: Source) -> pd.DataFrame:
    """Read the training table: id and label."""
    table, name = _read_table(source, competition.LABELS_FILE)
    labels = require_labels(table["label"], source=name)
    return table.assign(label=labels)


def _read_sample(source: Source) -> pd.DataFrame:
    """Read the test ids from the sample submission, in its order."""
    table, _ = _read_table(source, competition.SAMPLE_FILE)
    return table[["id"]]


def _read_table(source: Source, name: str) -> tuple[pd.DataFrame, str]:
    """Read a table of id,label, its ids proved; return what messages call it, too."""
    count = source.names().count(name)
    if count != 1:
        again = "fetch it again, or extract it from the competition's archive"
        if isinstance(source, Archive):
            # As a leaderboard is that was saved under the archive's name.
            again = "it is not the competition's. Move it away and type `make download`"
        raise KitError(f"{source.path} holds {count or 'no'} {name}: {again}")
    called = f"{source.path}: {name}"
    try:
        content = source.read(name, _MAX_TABLE_BYTES)
    except CorruptMemberError as error:
        raise CorruptArchiveError(f"{called}: {error}") from error
    except TileError as error:
        raise KitError(f"{called}: {error}") from error
    table = read_table(content, ["id", "label"], source=called)
    if table.empty:
        raise KitError(f"{called} names no tile: fetch the data again")
    return table.assign(id=require_ids(table["id"], source=called)), called


def _check_honour(train: pd.DataFrame, test: pd.DataFrame, path: Path) -> None:
    """Refuse labels for test tiles: they are public elsewhere, and using them is cheating."""
    leaked = train["id"].isin(set(test["id"]))
    if leaked.any():
        raise KitError(
            f"{path}: {competition.LABELS_FILE} labels {leaked.sum()} test tiles, first "
            f"{train['id'][leaked].iloc[0]}: the kit does not train on test tiles"
        )
