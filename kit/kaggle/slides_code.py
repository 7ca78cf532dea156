"""A table of slides in a push: a small number per training tile, in the order of the ids.

The whole table has 18 MB, 7.3 MB of it in a zip, and Kaggle takes about 1 MB. The ids are on Kaggle
already, so that the slides' numbers are all that has to travel: 0.27 MB as text.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from kit.base import (
    KitError,
    Strings,
    competition,
    read_table,
    require_ids,
    require_values,
    write_text,
)

SUFFIX = ".numbers"
"""What a coded table's name ends on."""
_ALIASES = {"slide": ["wsi"]}


def encode_slides(path: Path) -> bytes | None:
    """Return a table's slides by number; None if it does not name each training tile once.

    Raises
    ------
    KitError
        If the file is no table of slides.
    """
    source = str(path)
    table = read_table(path.read_bytes(), ["id", "slide"], source=source, aliases=_ALIASES)
    ids = require_ids(table["id"], source=source)
    if len(ids) != competition.TRAIN_TILES:
        return None
    slides = require_values(table["slide"], source=source).set_axis(ids).sort_index()
    numbers, names = pd.factorize(slides, sort=True)
    kind = np.min_scalar_type(len(names) - 1)
    head = {"ids": _digest(slides.index), "type": kind.str, "slides": list(names)}
    return json.dumps(head).encode() + b"\n" + numbers.astype(kind).tobytes()


def decode_slides(code: bytes, ids: Strings, *, source: str) -> str:
    """Return the table of id,slide that a code stands for.

    Parameters
    ----------
    ids
        Of the training tiles, in any order.

    Raises
    ------
    KitError
        If it is that of other tiles.
    """
    line, _, numbers = code.partition(b"\n")
    head = json.loads(line)
    ordered = np.sort(ids)
    if head["ids"] != _digest(ordered):
        raise KitError(
            f"{source} is not a table of the {len(ids):,} training tiles here: push that of the "
            "competition, patch_id_wsi_full.csv"
        )
    names = np.array(head["slides"])[np.frombuffer(numbers, head["type"])]
    table = pd.DataFrame({"id": ordered, "slide": names})
    return table.to_csv(index=False, lineterminator="\n")


def unpack_slides(folder: Path, data: Path) -> None:
    """Write the tables that a bundle's codes stand for, each beside its code.

    Parameters
    ----------
    data
        The competition's files.
    """
    for path in folder.rglob(f"*{SUFFIX}"):
        labels = data / competition.LABELS_FILE
        table = read_table(labels.read_bytes(), ["id"], source=str(labels))
        ids = require_ids(table["id"], source=str(labels)).to_numpy(str)
        target = path.with_suffix("")
        write_text(target, decode_slides(path.read_bytes(), ids, source=target.name))


def _digest(ids: "Strings | pd.Index[str]") -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()
