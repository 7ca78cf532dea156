"""What a training says on a terminal: what it trains on what, its epochs, its final figures."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit import models, runs, stats
from kit.base import EpochResult
from kit.data import Store, find_slides, find_slides_table
from kit.runs import Run

LAYERS_FILE = "layers.txt"
_MOST_LAYERS = 10


def describe_run(run: Run) -> str:
    """Say what is about to be trained, on what."""
    recipe = run.recipe
    lines = [_layers(run)]
    if recipe.is_built_in and recipe.norm == "batch":
        lines.append(
            f"BatchNorm {recipe.bn} the activation, momentum {recipe.bn_momentum} as Keras "
            f"counts it ({1 - recipe.bn_momentum:.4g} as PyTorch does)"
        )
    elif recipe.is_built_in:
        where = "" if recipe.norm == "none" else f" {recipe.bn} the activation"
        lines.append(f"norm {recipe.norm}{where}")
    held_out = f"{len(run.holdout.valid):,} held out"
    if run.is_refit:
        held_out = "none held out"
    lines.append(
        f"{len(run.holdout.train):,} tiles to train on, {held_out}; "
        f"{str(run.dtype).removeprefix('torch.')} on {run.device}"
        f"{', which holds the tiles' if run.loaders.holds_tiles else ''}; into {run.folder}"
    )
    if recipe.is_taught:
        lines.append(
            f"towards what {', '.join(map(str, recipe.teacher))} says of the same tiles, with a "
            f"weight of {recipe.teacher_weight:g} beside the labels' "
            f"{1 - recipe.teacher_weight:.4g}"
        )
    if recipe.slides is None and not run.is_refit:
        table = find_slides_table(run.store) or "TABLE"
        lines.append(
            "note: tiles of one slide look alike, and this holdout is one of single tiles: its "
            f"figures are too high. --slides {shlex.quote(str(table))} keeps slides apart"
        )
    return "\n".join(lines)


def _layers(run: Run) -> str:
    """Give the table of layers: all of the kit's own networks, the parts of other models."""
    size = run.recipe.size
    if run.recipe.is_built_in:
        return models.layer_table(run.state.model, size)
    heading, *layers, sums = models.layer_table(run.state.model, size, depth=1).splitlines()
    if len(layers) > _MOST_LAYERS:
        more = len(layers) - _MOST_LAYERS + 1
        layers = [*layers[: _MOST_LAYERS - 1], f"... and {more} more"]
    return "\n".join([heading, *layers, f"{sums}; each layer: {run.folder / LAYERS_FILE}"])


def epoch_line(result: EpochResult, epochs: int) -> str:
    """Tell an epoch's figures in one line; a refit has none of validation."""
    line = (
        f"epoch {result.epoch:>{len(str(epochs))}}/{epochs}"
        f"  loss {result.train_loss:.4f}  accuracy {result.train_accuracy:.4f}"
    )
    if result.valid_auc is not None:
        line += (
            f"  valid loss {result.valid_loss:.4f}  accuracy {result.valid_accuracy:.4f}"
            f"  AUC {result.valid_auc:.4f}"
        )
    return f"{line}  {result.tiles_per_second:,.0f} tiles/s"


def kept_note(run: Run) -> str:
    """Say which epoch was kept or could have been, unless the last one was the best as well."""
    aucs = {epoch.epoch: epoch.valid_auc for epoch in run.history if epoch.valid_auc is not None}
    if not aucs:
        return ""
    last, best = max(aucs), max(aucs, key=lambda epoch: aucs[epoch])
    if run.recipe.keep == "best":
        kept = runs.read_metrics(run.folder)["kept_epoch"]
        return (
            f"note: kept are the weights after epoch {kept} of {last}, which did best on the "
            "held-out tiles: the figures above are optimistic; the last epoch, which nothing "
            f"picked, had AUC {aucs[last]:.4f}"
        )
    if aucs[best] <= aucs[last]:
        return ""
    which = ", of weights that were not averaged yet" if run.recipe.ema else ""
    return (
        f"note: the last epoch was not the best one: AUC {aucs[best]:.4f} after epoch "
        f"{best}, {aucs[last]:.4f} after the last{which}. --keep best keeps the best, "
        "which makes its figures optimistic"
    )


def run_conclusion(folder: Path, tiles: Store) -> str:
    """Give the final figures."""
    final = runs.read_metrics(folder)
    slides = runs.read_config(folder)["recipe"]["slides"]
    origin = runs.refit_of(folder)
    whose = "" if origin is None else f"no figures of its own; those of {origin}, which chose it: "
    return (
        f"{folder}: {whose}AUC {_auc(folder, tiles, slides)}, "
        f"accuracy {final['accuracy']:.4f}, log loss {final['log_loss']:.4f} on "
        f"{final['tiles']:,} held-out tiles"
    )


def _auc(folder: Path, tiles: Store, slides: Path | str | None) -> str:
    """Give the AUC with the interval of each population that the holdout can speak of."""
    over_tiles = stats.Interval(**runs.read_metrics(folder)["auc"])
    here = f"{over_tiles} (95 % interval for new tiles of these slides)"
    if slides is None:
        return here
    known = find_slides(tiles, slides).of_tiles
    over_slides = runs.auc_over_slides(runs.read_valid(folder), tiles, known)
    if over_slides is None:
        return f"{here}, nothing for new slides: not all are known"
    wide = f"{over_slides}{'' if over_slides.note else ' (95 % interval for new slides)'}"
    bounds = str(over_tiles).partition(" ")[2]
    return f"{wide}, for new tiles of these slides {bounds}"


def folds_conclusion(
    figures: Mapping[str, Any], folder: Path, tiles: Store, slides: Path | None
) -> str:
    """Give the pooled figures of a cross-validation."""
    by_fold = ", ".join(f"{auc:.4f}" for auc in figures["auc_by_fold"])
    note = "; optimistic, since these tiles chose the epochs" if runs.keeps_best(folder) else ""
    return (
        f"{folder}: out-of-fold AUC {_auc(folder, tiles, slides)} on "
        f"{figures['tiles']:,} tiles; by fold {by_fold}, mean "
        f"{figures['mean_auc_of_folds']:.4f}{note}"
    )
