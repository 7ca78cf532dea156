"""The page of a run: its figures, its curves, its tiles."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from kit import runs, stats
from kit.base import KitError, parse_recipe
from kit.data import KnownSlides, Store, find_slides
from kit.report import plots
from kit.report.galleries import choose_gallery, gallery_section
from kit.report.page import Drawing, Page, Section, Table, bounds
from kit.report.rebuild import rebuild_section, train_command
from kit.report.thresholds import threshold_section
from kit.stats import Interval


def run_page(folder: Path, store: Store) -> Page:
    """Describe a finished run.

    Raises
    ------
    KitError
        If the folder holds no finished run, or one of other data.
    """
    config = runs.read_config(folder)
    check_data(folder, config, store)
    valid, figures = runs.read_valid(folder), runs.read_metrics(folder)
    table = config["recipe"]["slides"]
    slides = find_slides(store, table)
    return Page(
        title=f"Run {folder.name}",
        verdict=run_verdict(folder, figures),
        limits=[*run_limits(folder, by_slide=table is not None), *slides.notes],
        sections=[
            Section(
                "Figures",
                tables=[figures_table(store, valid, figures, slides if table else KnownSlides())],
            ),
            threshold_section(valid),
            Section("Training and validation", drawings=_run_drawings(folder, valid)),
            *_gallery(folder, store, valid, slides),
            rebuild_section(train_command(folder, store.data), {folder.name: folder}),
        ],
        is_standin=store.is_standin,
    )


def run_verdict(folder: Path, figures: dict[str, Any]) -> str:
    """Say in a sentence how good a run is on tiles that it was not trained on."""
    auc = Interval(**figures["auc"])
    found = (
        f"AUC {auc.estimate:.4f} on {figures['tiles']:,} held-out tiles "
        f"(95 % interval for new tiles of these slides {bounds(auc)})."
    )
    refitted = runs.refit_of(folder)
    if refitted is None:
        return found
    return (
        f"A refit of {refitted} on its training and held-out tiles together, which has no figures "
        f"of its own. Those of {refitted}: {found}"
    )


def _gallery(
    folder: Path, store: Store, valid: pd.DataFrame, slides: KnownSlides
) -> Iterator[Section]:
    """Show tiles that were held out; a refit was trained on all of them."""
    if runs.refit_of(folder) is None:
        layer = runs.read_config(folder).get("options", {}).get("cam_layer")
        tiles = choose_gallery(runs.load(folder), store, valid, slides.of_tiles, cam_layer=layer)
        yield gallery_section(tiles)


def check_data(folder: Path, config: dict[str, Any], store: Store) -> None:
    """Refuse a store that a run was not trained on."""
    if config["data"]["fingerprint"] != store.fingerprint:
        raise KitError(
            f"{folder} was trained on other data than {store.folder} holds: give the --data that "
            "it was trained on"
        )


def run_limits(folder: Path, *, by_slide: bool) -> list[str]:
    """Say in plain words what a single run's figures do not tell."""
    holdout = (
        "No slide is on both sides of this holdout."
        if by_slide
        else "Tiles of one slide look alike and are on both sides of this holdout, so its "
        "figures are too high: on other slides they will be lower. --slides keeps slides apart."
    )
    refitted = (
        f"All that is said of held-out tiles here was found by {runs.refit_of(folder)}, from fewer "
        "training tiles. The weights of this run were trained on these tiles as well."
    )
    return [
        *([] if runs.refit_of(folder) is None else [refitted]),
        holdout,
        *_taught(folder),
        *(_best_epoch(folder) if runs.keeps_best(folder) else []),
        "This is one run: another seed gives other figures, and no interval here says by how much. "
        "A comparison of two variants takes several seeds of each.",
    ]


def _taught(folder: Path) -> list[str]:
    """Say that the run listened to teachers, and what its training loss then is."""
    config = runs.read_config(folder)
    if not parse_recipe(config["recipe"], source=f"{folder}/config.json").is_taught:
        return []
    named = (f"{run} (SHA-256 of its weights {sha})" for run, sha in config["teachers"].items())
    kept = "" if runs.refit_of(folder) else ", which was trained on none of the held-out ones"
    return [
        f"It was trained towards what {', '.join(named)} says of the same augmented tiles{kept}. "
        "Its training loss is the distance to that, and says nothing beside another run's."
    ]


def _best_epoch(folder: Path) -> list[str]:
    """Say that the epoch was picked, and what the last one had, which nothing picked."""
    aucs = [one.valid_auc for one in runs.read_history(folder) if one.valid_auc is not None]
    last = f" The last epoch, which nothing picked, had AUC {aucs[-1]:.4f}." if aucs else ""
    return [
        f"The weights are those after epoch {runs.read_metrics(folder)['kept_epoch']}, which did "
        f"best on this holdout, so its figures are optimistic.{last}"
    ]


def figures_table(
    store: Store, valid: pd.DataFrame, figures: dict[str, Any], slides: KnownSlides
) -> Table:
    """Tabulate the final figures; `slides` are known where the holdout keeps slides apart."""
    labels, probabilities = valid["label"].to_numpy(), valid["probability"].to_numpy()
    error = stats.expected_calibration_error(labels, probabilities)
    aucs = {"of other tiles of these slides (score interval)": Interval(**figures["auc"])}
    by_slide = runs.auc_over_slides(valid, store, slides.of_tiles)
    if by_slide is not None:
        aucs["of other slides (jackknife over slides)"] = by_slide
    rows = [
        *(("AUC", auc.estimate, "" if auc.note else bounds(auc), of) for of, auc in aucs.items()),
        ("AUC of hard labels", figures["auc_of_hard_labels"], "", "what 0 and 1 would score"),
        ("accuracy", figures["accuracy"], "", "at a probability of 0.5"),
        ("log loss", figures["log_loss"], "", "nats per tile; 0.693 for always saying one half"),
        (
            "calibration error",
            error,
            "",
            "mean distance between probability and share of positives",
        ),
    ]
    frame = pd.DataFrame(rows, columns=["figure", "value", "95 % interval", "meaning"])
    notes = [f"No interval {of}: {auc.note}." for of, auc in aucs.items() if auc.note]
    return Table(frame, f"Final figures on {len(valid):,} held-out tiles.", notes)


def _run_drawings(folder: Path, valid: pd.DataFrame) -> list[Drawing]:
    history = runs.read_history(folder)
    labels = valid["label"].to_numpy()
    probabilities = {folder.name: (labels, valid["probability"].to_numpy())}
    logits = {folder.name: (labels, valid["logit"].to_numpy())}
    training = (
        "Training figures are means over the epoch while the weights still moved; validation "
        "figures are of the epoch's last weights."
    )
    return [
        Drawing(
            plots.sides(history, "accuracy", title="Accuracy"),
            f"Share of tiles called right. {training}",
        ),
        Drawing(plots.sides(history, "loss", title="Loss"), "Mean log loss, in nats per tile."),
        Drawing(
            plots.roc(logits),
            "Each point is a threshold; the area below is the chance that a positive tile is "
            "scored above a negative one.",
        ),
        Drawing(
            plots.precision_recall(logits),
            "Each point is a threshold: how many of the tiles called positive are, and how many of "
            "the positive tiles are found.",
        ),
        Drawing(
            plots.calibration(probabilities),
            "Points on the diagonal mean what they say: of the tiles given 0.8, 80 % are positive. "
            "Bars are 95 % intervals over tiles; below, the number of tiles.",
        ),
    ]
