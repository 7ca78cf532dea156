"""Cross-validation: a folder with one run per fold, whose held-out predictions are pooled."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit import stats
from kit.base import KitError
from kit.runs.folder import read_config, read_valid, write_predictions


def members(folder: Path) -> list[Path]:
    """Return the runs of a cross-validation's folder, or the one run that a folder is.

    Raises
    ------
    KitError
        If a fold is missing.
    """
    folds = sorted(folder.glob("fold-*"))
    if not folds:
        return [folder]
    asked = read_config(folds[0])["recipe"]["folds"]
    if len(folds) != asked or not (folder / "metrics.json").is_file():
        raise KitError(
            f"{folder} is a cross-validation that is not finished: go on with train.py --resume"
        )
    return folds


def pool_folds(folder: Path) -> dict[str, Any]:
    """Pool the out-of-fold predictions of a cross-validation; return their figures.

    Writes valid.csv and metrics.json, which make its folder one to predict with.
    """
    tables = [read_valid(fold) for fold in sorted(folder.glob("fold-*"))]
    table = pd.concat(tables).sort_values("id")
    aucs = [stats.auc(one["label"], one["probability"]) for one in tables]
    return write_predictions(
        folder, table, auc_by_fold=aucs, mean_auc_of_folds=float(np.mean(aucs))
    )
