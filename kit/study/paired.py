"""The tables and the verdict of two arms, paired by seed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from kit import runs, stats
from kit.base import Array, KitError
from kit.stats import Interval
from kit.study.arms import Study
from kit.study.figures import PRIMARY, Outcomes, figures_by_run
from kit.study.tables import StudyTable, bound_columns, explain_empty, test_columns


def paired_table(outcomes: Outcomes, first: str, second: str) -> StudyTable:
    """Return each figure's mean and spread in two arms, and their difference paired by seed.

    The difference is the first arm less the second. Its interval, `low` to `high`, goes with `p`
    (both from sign flips); the BCa bootstrap's is beside it and is too narrow for few seeds.
    A figure that an arm does not have is left out.
    """
    tables = figures_by_run({arm: outcomes[arm] for arm in (first, second)})
    rows, reasons = {}, {}
    for figure in tables[first].columns:
        pair = [tables[arm][figure] for arm in (first, second)]
        difference = stats.paired_difference(*pair)
        rows[figure] = {
            f"{first} mean": pair[0].mean(),
            f"{first} sd": pair[0].std(),
            f"{second} mean": pair[1].mean(),
            f"{second} sd": pair[1].std(),
            "n": difference.n,
            **test_columns(difference),
            **bound_columns(difference.bca, "BCa "),
        }
        reasons[figure] = difference.difference.note
    return _table(rows, reasons, "figure")


def paired_verdict(outcomes: Outcomes, first: str, second: str) -> str:
    """Say in one sentence which arm is better, by how much, how sure; or that none is shown."""
    values = {arm: table[PRIMARY] for arm, table in figures_by_run(outcomes).items()}
    swap = values[first].mean() < values[second].mean()
    better, worse = (second, first) if swap else (first, second)
    pair = stats.paired_difference(values[better], values[worse])
    if pair.p_value is None:
        return f"No conclusion is possible about {first} and {second}: {pair.difference.note}."
    size = f"{pair.difference.estimate:.4f} {PRIMARY}"
    how_sure = (
        f"95 % interval {_from_to(pair.difference)}, sign-flip p = {pair.p_value:.3f}, "
        f"{pair.n} seeds"
    )
    if not pair.is_shown:
        return (
            f"Not shown: {better} is ahead of {worse} by {size}, within what seeds alone may do "
            f"({how_sure})."
        )
    return f"{better} is better than {worse} by {size} ({how_sure})."


def pooled_predictions(study: Study) -> pd.DataFrame:
    """Return seed,id,label and each arm's logit for all seeds' held-out tiles.

    Compare tiles of one seed alone: two runs are not calibrated to each other, and their holdouts
    differ in their share of positive tiles.

    Raises
    ------
    KitError
        If the arms of a seed hold out different tiles.
    """
    tables = []
    for seed in study.seeds:
        valid = {arm: runs.read_valid(study.run_folder(arm, seed)) for arm in study.arms}
        first, second = valid.values()
        if not first[["id", "label"]].equals(second[["id", "label"]]):
            raise KitError(f"the arms of seed {seed} hold out different tiles")
        columns = {arm: table["logit"] for arm, table in valid.items()}
        tables.append(first[["id", "label"]].assign(seed=seed, **columns))
    return pd.concat(tables, ignore_index=True)


def delong_table(predictions: pd.DataFrame, first: str, second: str) -> StudyTable:
    """Compare the two runs of each seed on their held-out tiles (DeLong et al. 1988)."""
    rows, reasons = {}, {}
    for seed, table in predictions.groupby("seed"):
        labels, one, two = (table[column].to_numpy() for column in ("label", first, second))
        test = stats.delong_test(labels, one, two)
        rows[seed] = {
            f"{first} AUC": stats.auc(labels, one),
            f"{second} AUC": stats.auc(labels, two),
            **test_columns(test),
        }
        reasons[f"seed {seed}"] = test.difference.note
    return _table(rows, reasons, "seed")


def pooled_table(
    predictions: pd.DataFrame, first: str, second: str, slides: Mapping[str, str] | None
) -> StudyTable:
    """Compare the arms on all seeds' held-out tiles together, by bootstraps over tiles and slides.

    Only tiles of one run are compared with each other. Tiles of one slide look alike, and one tile
    may be held out by several seeds: the naive interval over tiles takes them for independent, and
    flatters.

    Parameters
    ----------
    slides
        The slide of each id; there is no bootstrap over slides unless all are known.
    """
    units: dict[str, Array | None] = {
        "tiles, as if independent (naive)": None,
        "tiles, each with all its seeds": predictions["id"].to_numpy(str),
    }
    if slides is not None and predictions["id"].isin(list(slides)).all():
        units["slides"] = predictions["id"].map(slides).to_numpy(str)
    labels, one, two = (predictions[column].to_numpy() for column in ("label", first, second))
    rows, reasons = {}, {}
    for name, groups in units.items():
        test = stats.bootstrap_test(labels, one, two, groups, within=predictions["seed"])
        rows[name] = {
            "units": len(labels) if groups is None else len(np.unique(groups)),
            **test_columns(test),
        }
        reasons[name] = test.difference.note
    return _table(rows, reasons, "bootstrap over")


def _table(rows: dict[Any, dict[str, Any]], reasons: Mapping[str, str], index: str) -> StudyTable:
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index)
    return StudyTable(frame, explain_empty(reasons))


def _from_to(interval: Interval) -> str:
    return f"{interval.low:+.4f} to {interval.high:+.4f}"
