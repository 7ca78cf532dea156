"""The tables and the verdict of two arms, paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kit import runs, stats
from kit.base import Array, KitError, format_p
from kit.study.arms import Study
from kit.study.figures import PRIMARY, Outcomes, figures_by_run
from kit.study.populations import (
    MIN_HELD_OUT,
    THESE_TILES,
    Holdouts,
    Judgement,
    Judgements,
    judge_pair,
)
from kit.study.tables import StudyTable, explain_empty, test_columns


def paired_table(outcomes: Outcomes, first: str, second: str) -> StudyTable:
    """Return each figure's mean and spread in two arms, and their difference paired by seed.

    The difference is the first arm less the second. Its interval, `low` to `high`, goes with `p`:
    both are from sign flips and speak of these tiles. A figure that an arm does not have is left
    out.
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
        }
        reasons[figure] = difference.difference.note
    return _table(rows, reasons, "figure")


def judge_arms(
    outcomes: Outcomes, predictions: pd.DataFrame, first: str, second: str, holdouts: Holdouts
) -> Judgements:
    """Test the difference of two arms' validation AUC on each population, the widest first.

    Parameters
    ----------
    predictions
        From `pooled_predictions`.
    holdouts
        From `find_holdouts`.
    """
    tables = figures_by_run(outcomes)
    values = (tables[first][PRIMARY].to_numpy(), tables[second][PRIMARY].to_numpy())
    return judge_pair(values, holdouts, predictions=predictions, arms=(first, second))


def paired_verdict(judged: Judgements, first: str, second: str) -> str:
    """Say which arm is better, by how much, how sure, and on what; or that none is shown.

    The first sentence speaks of the widest population that the data allow.

    Parameters
    ----------
    judged
        From `judge_arms`.
    """
    population, widest = next(iter(judged.items()))
    test, here = widest.test, judged[THESE_TILES].test
    if test.p_value is None:
        about = f"No conclusion is possible about {first} and {second}"
        return f"{about} on {population}: {test.difference.note}."
    better, worse, size, how_sure = _ahead(widest, first, second)
    if test.is_shown:
        sentence = f"{better} is better than {worse} by {size} on {population} ({how_sure})."
    else:
        what = "seeds" if population == THESE_TILES else "seeds and the choice of tiles"
        sentence = (
            f"Not shown on {population}: {better} is ahead of {worse} by {size}, within what "
            f"{what} may do ({how_sure})."
        )
    if population == THESE_TILES or here.p_value is None:
        return sentence
    *_, how_sure = _ahead(judged[THESE_TILES], first, second)
    says = f"{better} is better" if here.is_shown else "no difference is shown"
    return f"{sentence} On these tiles alone {says} ({how_sure})."


def _ahead(judged: Judgement, first: str, second: str) -> tuple[str, str, str, str]:
    """Return the arm that is ahead, the other, by how much, and how sure that is."""
    test = judged.test
    low, estimate, high = test.difference.low, test.difference.estimate, test.difference.high
    assert test.p_value is not None
    # There is an interval wherever there is a p below 1.
    bounds = (0.0, 0.0) if low is None or high is None else (low, high)
    better, worse = first, second
    if estimate < 0:
        better, worse, bounds = second, first, (-bounds[1], -bounds[0])
    # That of one comparison is 95 %, and those of several hold together in 95 %.
    is_one = math.isclose(test.difference.confidence, stats.CONFIDENCE)
    together = "" if is_one else "simultaneous "
    how_sure = (
        f"{together}95 % interval {bounds[0]:+.4f} to {bounds[1]:+.4f}, {judged.method}, "
        f"{format_p(test.p_value)}"
    )
    return better, worse, f"{abs(estimate):.4f} {PRIMARY}", how_sure


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
        first, *others = (table[["id", "label"]] for table in valid.values())
        if not all(first.equals(other) for other in others):
            raise KitError(f"the arms of seed {seed} hold out different tiles")
        columns = {arm: table["logit"] for arm, table in valid.items()}
        tables.append(first.assign(seed=seed, **columns))
    return pd.concat(tables, ignore_index=True)


def delong_table(predictions: pd.DataFrame, first: str, second: str) -> StudyTable:
    """Compare the two runs of each seed on their held-out tiles (DeLong et al. 1988).

    It speaks of these trained runs on new tiles of these slides, not of another training.
    """
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

    It speaks of these trained runs, as if another training gave the same.
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


def spread_table(
    predictions: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    holdouts: Holdouts,
    slides: Mapping[str, str] | None,
) -> StudyTable | None:
    """Return what part of a difference's spread is the seeds' and what the slides', a row per pair.

    None where not all slides are known, for one seed, or where a seed holds out fewer than
    `MIN_HELD_OUT` slides of a class, which say nothing of how far slides vary.

    Parameters
    ----------
    predictions
        From `pooled_predictions`.
    slides
        The slide of each id.
    """
    if slides is None or not predictions["id"].isin(list(slides)).all():
        return None
    named = predictions.assign(slide=predictions["id"].map(slides))
    held_out = named.groupby(["seed", "label"])["slide"].nunique()
    if named["seed"].nunique() < 2 or held_out.min() < MIN_HELD_OUT:
        return None
    by_seed = [table for _, table in named.groupby("seed")]
    rows = {}
    for one, other in pairs:
        spread = stats.slide_spread(
            [(table["label"], table[one], table[other], table["slide"]) for table in by_seed],
            holdouts.held_out_to_trained or 0.0,
        )
        rows[f"{one} less {other}"] = _spread_columns(spread)
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("difference of")
    return StudyTable(frame, (_SPREAD_NOTE,))


_SPREAD_NOTE = (
    "One seed's difference on slides that were not there has this sd. Seeds' share of its "
    "variance: what seeds differ by on any number of slides. Slides' share: what the choice of "
    "slides does, to all seeds alike or to each in its own way; more slides lower it, more seeds "
    "only what it does to each. Errors are standard errors of the mean over the seeds."
)


def _spread_columns(spread: stats.Spread) -> dict[str, float]:
    total = spread.total or math.nan
    return {
        "sd of one seed": math.sqrt(spread.total),
        "seeds' share": spread.seeds / total,
        "slides' share, alike": spread.slides / total,
        "slides' share, by seed": spread.slides_by_seed / total,
        "error now": spread.error(),
        "twice the seeds": spread.error(seeds=2),
        "twice the slides": spread.error(slides=2),
    }


def _table(rows: dict[Any, dict[str, Any]], reasons: Mapping[str, str], index: str) -> StudyTable:
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index)
    return StudyTable(frame, explain_empty(reasons))
