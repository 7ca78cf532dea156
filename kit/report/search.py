"""The page of a search."""

from pathlib import Path

import pandas as pd

from kit import runs
from kit.base import counted
from kit.data import Store, find_slides
from kit.report import plots
from kit.report.page import Drawing, Page, Section, Table
from kit.report.plots import Predictions
from kit.report.rebuild import rebuild_section
from kit.report.studies import one_run_gallery
from kit.study import IMPORTANCE_TRIALS, SearchResult, picked_sentence


def search_verdict(result: SearchResult, store: Store) -> str:
    """Say what a search found, and how much to believe of it."""
    pruned = f" ({result.pruned} more stopped early)" if result.pruned else ""
    return (
        f"The best of {counted(result.complete, 'finished trial')}{pruned} reached "
        f"{result.auc:.4f} validation AUC: picked as the highest on that holdout, so it is "
        f"optimistic. {picked_sentence(result, store)} The median trial, which nothing "
        f"picked, has {result.median:.4f}; other seeds of the best recipe would tell what it is "
        "worth."
    )


def search_page(
    result: SearchResult, out: Path, store: Store, *, verdict: str, command: str
) -> Page:
    """Describe a search from its folder; `verdict` is that of `search_verdict`."""
    trials = pd.read_csv(out / "trials.csv")
    best = result.runs[0]
    valid = runs.read_valid(best)
    probabilities: Predictions = {"best trial": (valid["label"], valid["probability"])}
    logits: Predictions = {"best trial": (valid["label"], valid["logit"])}
    slides = find_slides(store, result.recipe.slides)
    return Page(
        title=f"Search, {counted(result.complete + result.pruned, 'trial')}",
        verdict=verdict,
        limits=[
            "Train the recipe with other seeds, or compare it with the base recipe, before you "
            "believe in its gain.",
            *slides.notes,
        ],
        sections=[
            _importance_section(result),
            Section(
                "The best recipe",
                code=(out / "best.toml").read_text("utf-8"),
                drawings=[
                    Drawing(plots.roc(logits), "Held-out tiles of the best trial."),
                    Drawing(plots.calibration(probabilities), "Held-out tiles of the best trial."),
                ],
            ),
            Section("All trials", tables=[Table(trials, "In the order of their numbers.")]),
            one_run_gallery("best trial", best, store, slides),
            rebuild_section(command, {"best trial": best}),
        ],
        is_standin=store.is_standin,
    )


def _importance_section(result: SearchResult) -> Section:
    if not result.importances:
        text = [
            f"{counted(result.complete, 'trial')} finished; it takes {IMPORTANCE_TRIALS} to say "
            "which parameters matter."
        ]
        return Section("What decided", text)
    shares = pd.DataFrame(
        {"parameter": result.importances.keys(), "importance": result.importances.values()}
    )
    caption = "Shares of what sets the best quarter of the trials apart."
    return Section("What decided", tables=[Table(shares, caption)])
