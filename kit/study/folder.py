"""The folder of a study: what it is about, who may write into it, and its tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kit.base import FolderLock, KitError, plain_values, write_text
from kit.data import Store


def claim(folder: Path, recipes: Mapping[str, Any], store: Store) -> None:
    """Write what a study is about into its folder, or check that it is what is there.

    Raises
    ------
    KitError
        If the folder holds a study of something else.
    """
    plain = plain_values({**recipes, "data": store.fingerprint})
    path = folder / "study.json"
    with FolderLock(folder, wait=True):
        if path.exists() and json.loads(path.read_text("utf-8")) != plain:
            raise KitError(
                f"{folder} holds a study of other arms, options or data: choose another --out"
            )
        write_text(path, json.dumps(plain, indent=2) + "\n")


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame], verdict: str) -> None:
    """Write each table as NAME.csv, and the verdict as verdict.txt."""
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(lineterminator="\n"))
    write_text(folder / "verdict.txt", verdict + "\n")
