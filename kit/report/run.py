"""The page of a run: its figures, its curves, its tiles."""

from pathlib import Path
from typing import Any

import pandas as pd

from kit import runs, stats
from kit.base import KitError, Strings
from kit.data import UNKNOWN, Store, find_slides
from kit.report import plots
from kit.report.galleries import choose_gallery, gallery_section
from kit.report.page import Drawing, Page, Section, Table, bounds
from kit.report.rebuild import rebuild_section
from kit.stats import Interval


def run_page(folder: Path, store: Store, command: str) -> Page:
    """Describe a finished run.

    Parameters
    ----------
    command
        What was typed to train it.

    Raises
    ------
    KitError
        If the folder holds no finished run, or one of other data.
    """
    config = runs.read_config(folder)
    _check_data(folder, config, store)
    valid = runs.read_valid(folder)
    slides = find_slides(store, config["recipe"]["slides"])
    figures = runs.read_metrics(folder)
    by_slide = config["recipe"]["slides"] is not None
    auc = Interval(**figures["auc"])
    return Page(
        title=f"Run {folder.name}",
        verdict=f"AUC {auc.estimate:.4f} on {figures['tiles']:,} held-out tiles "
        f"(95 % interval {bounds(auc)}).",
        limits=_limits(by_slide=by_slide),
        sections=[
            Section(
                "Figures", tables=[_figures(store, valid, figures, slides if by_slide else None)]
            ),
            Section("Training and validation", drawings=_run_drawings(folder, valid)),
            gallery_section(choose_gallery(runs.load(folder), store, valid, slides)),
            rebuild_section(command, {folder.name: folder}),
        ],
        is_standin=store.is_standin,
    )


def _check_data(folder: Path, config: dict[str, Any], store: Store) -> None:
    if config["data"]["fingerprint"] != store.fingerprint:
        raise KitError(
            f"{folder} was trained on other data than {store.folder} holds: give the --data that "
            "it was trained on"
        )


def _limits(*, by_slide: bool) -> list[str]:
    """Say in plain words what a single run's figures do not tell."""
    holdout = (
        "No slide stands on both sides of this holdout."
        if by_slide
        else "Tiles of one slide look alike and stand on both sides of this holdout, so its "
        "figures flatter: on slides never seen they will be lower. --slides keeps slides apart."
    )
    return [
        holdout,
        "This is one run: another seed gives other figures, and no interval here tells how far. "
        "A comparison of two variants takes several seeds of each.",
    ]


def _figures(
    store: Store, valid: pd.DataFrame, figures: dict[str, Any], slides: Strings | None
) -> Table:
    """Tabulate the final figures; `slides` is given where the holdout keeps slides apart."""
    labels, probabilities = valid["label"].to_numpy(), valid["probability"].to_numpy()
    error = stats.expected_calibration_error(labels, probabilities)
    auc = Interval(**figures["auc"])
    rows = [
        ("AUC", auc.estimate, bounds(auc), "of other tiles of these slides (DeLong)"),
        ("AUC of hard labels", figures["auc_of_hard_labels"], "", "what 0 and 1 would score"),
        ("accuracy", figures["accuracy"], "", "at a probability of 0.5"),
        ("log loss", figures["log_loss"], "", "nats a tile; 0.693 for always saying one half"),
        ("calibration error", error, "", "mean distance of probability and share of positives"),
    ]
    places = pd.Index(store.train.ids).get_indexer(pd.Index(valid["id"]))
    if slides is not None and (slides[places] != UNKNOWN).all():
        interval = stats.auc_bootstrap(labels, probabilities, slides[places])
        meaning = "of other slides (bootstrap over slides)"
        rows.insert(1, ("AUC", interval.estimate, bounds(interval), meaning))
    frame = pd.DataFrame(rows, columns=["figure", "value", "95 % interval", "meaning"])
    return Table(frame, f"Final figures on {len(valid):,} held-out tiles.")


def _run_drawings(folder: Path, valid: pd.DataFrame) -> list[Drawing]:
    history = runs.read_history(folder)
    predictions = {folder.name: (valid["label"].to_numpy(), valid["probability"].to_numpy())}
    training = (
        "Training figures are means over the epoch while the weights still moved; validation "
        "figures are of the epoch's last weights."
    )
    return [
        Drawing(
            plots.sides(history, "accuracy", title="Accuracy"),
            f"Share of tiles called right. {training}",
        ),
        Drawing(plots.sides(history, "loss", title="Loss"), "Mean log loss, in nats a tile."),
        Drawing(
            plots.roc(predictions),
            "Each point is a threshold; the area below is the chance that a positive tile is "
            "scored above a negative one.",
        ),
        Drawing(
            plots.calibration(predictions),
            "Points on the diagonal mean what they say: of the tiles given 0.8, 80 % are positive. "
            "Bars are 95 % intervals over tiles; below, the number of tiles.",
        ),
    ]
