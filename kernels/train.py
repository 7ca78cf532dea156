"""Train a model and keep everything about it in a run folder.

With no other option this is the study's protocol and network (recipe `notebook`) on data/.
Several GPUs: torchrun --standalone --nproc-per-node=2 kernels/train.py ... trains the same run:
--batch-size is that of all processes together, and BatchNorm normalises by the whole batch. On
CPUs it cannot: each process normalises by its own share, and the first one's running
statistics are kept.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kit import base, data, models, report, runs, study, training
from kit.base import KitError, exit_on_error, write_text

# In here as well, since Ctrl-C may come while the libraries of command lines load.
with exit_on_error():
    from kit.base import RunOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """A recipe, the data it meets, the hardware that runs it, and where it writes."""

    out: Path | None = None
    """The run's new folder; runs/RECIPE-ARM-SEED by default."""
    resume: bool = False
    """Go on with the run in --out, where it stands and with its own options."""
    refit: Path | None = None
    """A finished run or cross-validation: train its recipe on its training and its held-out tiles
    together, for the submission. What is said of the holdout stays that run's."""
    force: bool = False
    """With --resume: go on although epochs, device, precision, versions or slides have changed."""
    checkpoint_steps: base.Count = 500
    """Steps between two checkpoints within an epoch; there is one after each epoch, too."""
    log: base.LogKind = "none"
    """Log each epoch, and figures and pictures at the end, on this machine: see docs/runs.md."""
    cam_layer: str | None = None
    """Layer of the page's Grad-CAM (layers.txt names them); by default the last convolution's, or
    a ViT's last norm1."""


# Options beside the recipe that a run goes on with where the command line gives none.
KEPT = (
    "data",
    "device",
    "devices",
    "workers",
    "deterministic",
    "cuda_graphs",
    "checkpoint_steps",
    "log",
    "cam_layer",
)


def read_options(argv: list[str]) -> TrainOptions:
    """Read a command line; a run that goes on has its own options where the line gives none."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--resume", action=argparse.BooleanOptionalAction)
    peek.add_argument("--out", type=Path)
    peek.add_argument("--recipe")
    peek.add_argument("--refit", type=Path)
    seen = peek.parse_known_args(argv)[0]
    if not seen.resume:
        default = None if seen.refit is None else refit_options(seen.refit, argv)
        options = base.parse_options(TrainOptions, __doc__, argv, default=default)
        refuse_unused(options, base.given_options(argv))
        return options
    folder = seen.out or default_folder(base.parse_options(TrainOptions, __doc__, argv))
    begun = begun_options(folder)
    settled = begun.recipe.precision
    if base.given_options(argv) & {"device", "devices"}:
        begun = replace(begun, device=TrainOptions.device, devices=())
    if seen.recipe is not None:
        name, recipe = base.named_recipe(argv)
        begun = replace(begun, recipe=recipe, recipe_name=name)
    options = base.parse_options(TrainOptions, __doc__, argv, default=begun)
    if "precision" in base.given_options(argv):
        return options
    # What was measured when the run began stands.
    return replace(options, recipe=training.with_precision(options.recipe, settled))


def refuse_unused(options: TrainOptions, given: set[str]) -> None:
    """Refuse what a new training makes nothing of."""
    base.refuse_unused(given, ["force"], "without --resume")
    options.recipe.reject_unused(given)


def refit_options(run: Path, argv: list[str]) -> TrainOptions:
    """Return the options of a run that is refitted, of whose recipe nothing may change."""
    own = {"recipe", *(field.name for field in fields(base.Recipe))}
    base.refuse_unused(base.given_options(argv), own, "with --refit, which takes its run's recipe")
    # It is one run, also where folds were trained side by side.
    return replace(
        begun_options(run), recipe=runs.refit_recipe(run), refit=run, out=None, devices=()
    )


def begun_options(folder: Path) -> TrainOptions:
    """Return the options that a run, or a cross-validation, was begun with."""
    begun = runs.begun_config(folder)
    recipe = base.parse_recipe(begun["recipe"], source=f"{folder}/config.json")
    refit = runs.refit_of(folder)
    kept = {name: value for name, value in begun.get("options", {}).items() if name in KEPT}
    if "data" in kept:
        kept["data"] = Path(kept["data"])
    # A fold that goes on by itself is one run, which other folds were trained beside.
    kept["devices"] = tuple(kept.get("devices", ())) if recipe.fold is None else ()
    return TrainOptions(recipe=recipe, out=folder, refit=refit, **kept)


def main(options: TrainOptions) -> None:
    """Train one run, or one per fold."""
    folder = options.out or default_folder(options)
    devices = training.choose_devices(options.device, options.devices)
    check(options, folder, devices)
    training.prepare_process(deterministic=options.deterministic, cuda_graphs=options.cuda_graphs)
    with base.going_on(lambda *more: how_to_go_on(folder, *more)):
        with training.distributed.rank_zero_first():
            tiles = data.open_store(options.data)
        if is_new(options) and training.leaves_precision_open(options.recipe):
            precision = training.settle_precision([options.recipe], device=devices.device)
            options = replace(options, recipe=replace(options.recipe, precision=precision))
        if is_one_run(options):
            # Asked now: the processes part when the last epoch is over.
            rank = training.distributed.rank()
            with training.TrainingBar() as bar:
                train(options, tiles, folder, bar, device=devices.device)
            if rank == 0:
                print(next_command(folder, options))
        else:
            train_folds(options, tiles, folder, devices)


def is_one_run(options: TrainOptions) -> bool:
    """Whether there is one run to train, and not one per fold."""
    return options.recipe.folds is None or options.recipe.fold is not None


def is_new(options: TrainOptions) -> bool:
    """Whether the recipe is that of the command line, and no earlier run's."""
    return not options.resume and options.refit is None


def check(options: TrainOptions, folder: Path, devices: training.Devices) -> None:
    """Refuse what can be refused before data is opened, and packed if need be."""
    one_run, several = is_one_run(options), training.distributed.world_size() > 1
    if devices.workers and (one_run or several):
        raise nothing_to_share(options)
    if several and not one_run:
        raise KitError("--folds under torchrun: start one fold at a time, with --fold 0, 1, ...")
    runs.require_logger(options.log)
    if is_new(options):
        # What an earlier run began from may be gone by now.
        runs.check_without_data(
            [options.recipe], device=devices.device, cam_layer=options.cam_layer
        )
        base.require_file("weights", options.recipe.weights)
        runs.require_teachers(options.recipe)
    if one_run and not options.resume and training.distributed.rank() == 0:
        runs.require_free(folder)


def nothing_to_share(options: TrainOptions) -> KitError:
    """Return the error of several devices for one run."""
    return KitError(
        f"--devices {' '.join(options.devices)} shares out the runs of --folds, and there is "
        "one run: choose a --device, or train it on several with torchrun (docs/scale.md)"
    )


def how_to_go_on(folder: Path, *options: str) -> str:
    """Say how a training goes on that has ended early, with further options."""
    try:
        begun = runs.begun_config(folder)
    except KitError:
        more = f" with {shlex.join(options)}" if options else ""
        return f"nothing was begun: type the command again{more}"
    if begun.get("custom"):
        # It was run just now.
        options += ("--trust",)
    return f"go on with: {runs.resume_command(folder, *options)}"


def train_folds(
    options: TrainOptions, tiles: data.Store, folder: Path, devices: training.Devices
) -> None:
    """Train a run per fold, those apart that are finished, and pool their predictions.

    All are checked before the first is trained.
    """
    recipes = runs.check_folds(
        options.recipe,
        tiles,
        folder,
        device=devices.device,
        resume=options.resume,
        force=options.force,
    )
    if devices.workers:
        training.share_out(
            devices,
            partial(share_folds, options, tiles, folder, recipes),
            runs=len(recipes),
            how_to_go_on=lambda: how_to_go_on(folder),
        )
    else:
        train_in_turn(options, tiles, recipes, devices.device)
    for part in recipes:
        if not (part / PAGE).exists():
            # It was stopped between its figures and its page.
            with runs.open_log(options.log, part) as log:
                write_page(part, tiles, log, options.figures)
    pooled = runs.pool_folds(folder, force=options.force)
    conclusion = report.folds_conclusion(pooled, folder, tiles, options.recipe.slides)
    print(conclusion, next_command(folder, options), sep="\n")


def train_in_turn(
    options: TrainOptions, tiles: data.Store, recipes: Mapping[Path, base.Recipe], device: str
) -> None:
    """Train the folds that are not finished, one after the other."""
    finished = [part for part in recipes if is_finished(part)]
    with training.TrainingBar(len(recipes)) as bar:
        bar.skip(len(finished))
        for number, (part, recipe) in enumerate(recipes.items(), 1):
            bar.label = f"fold {number} of {len(recipes)}"
            bar.say(f"{bar.label}: {part}")
            if part not in finished:
                resume = options.resume and (part / "config.json").exists()
                own = replace(options, recipe=recipe, resume=resume)
                train(own, tiles, part, bar, device=device)


def share_folds(
    options: TrainOptions,
    tiles: data.Store,
    folder: Path,
    recipes: Mapping[Path, base.Recipe],
    *,
    device: str,
) -> None:
    """Train the folds that are not finished, together with the processes on other devices."""
    parts = {part.name: part for part in recipes}

    def train_one(name: str, bar: training.TrainingBar) -> Iterator[base.EpochResult]:
        part = parts[name]
        # What another process has begun that is gone is this one's to go on with.
        own = replace(options, recipe=recipes[part], resume=(part / "config.json").exists())
        run = open_run(own, tiles, part, device)
        with runs.log_run(options.log, run) as log:
            yield from run.train(progress=bar)
            bar.say(f"{report.run_conclusion(part, tiles)}\n{report.kept_note(run)}".rstrip())
            write_page(part, tiles, log, options.figures)

    study.share_runs(list(parts), folder, train_one, is_done=lambda name: is_finished(parts[name]))


def is_finished(folder: Path) -> bool:
    """Whether a run has its figures."""
    return (folder / "metrics.json").exists()


def open_run(options: TrainOptions, tiles: data.Store, folder: Path, device: str) -> runs.Run:
    """Open a run, and keep the table of its layers."""
    run = runs.begin_run(
        options.recipe,
        tiles,
        folder,
        device=device,
        workers=options.workers,
        resume=options.resume,
        force=options.force,
        checkpoint_steps=options.checkpoint_steps,
        refit_of=options.refit,
        record={"options": base.plain_values({name: getattr(options, name) for name in KEPT})},
    )
    if options.cam_layer is not None:
        # Asked now: its page is drawn when the training is over.
        models.find_map_layer(run.state.model, run.recipe.size, options.cam_layer)
    if run.rank == 0:
        layers = models.layer_table(run.state.model, run.recipe.size)
        write_text(folder / report.LAYERS_FILE, layers + "\n")
    return run


def train(
    options: TrainOptions,
    tiles: data.Store,
    folder: Path,
    bar: training.TrainingBar,
    *,
    device: str,
) -> None:
    """Train a run, telling each epoch's figures."""
    run = open_run(options, tiles, folder, device)
    bar.say(report.describe_run(run))
    with runs.log_run(options.log, run) as log:
        for result in run.train(progress=bar):
            bar.say(f"{report.epoch_line(result, run.recipe.epochs)}  {bar.time_left()}".rstrip())
        if run.rank > 0:
            return
        bar.say(f"{report.run_conclusion(folder, tiles)}\n{report.kept_note(run)}".rstrip())
        write_page(folder, tiles, log, options.figures)
    bar.say(f"the whole run: {folder / PAGE}")


def write_page(
    folder: Path, tiles: data.Store, log: runs.SafeLog, kinds: tuple[base.FigureKind, ...]
) -> None:
    """Draw a finished run's curves, write its page, and log its figures and pictures."""
    report.plots.curves(runs.read_history(folder), folder / "curves.png", title=folder.name)
    page = report.run_page(folder, tiles)
    report.write_page(folder / PAGE, page, kinds)
    if log.is_open:
        log.on_end(folder, report.page_images(page))


def default_folder(options: TrainOptions) -> Path:
    """Name a run by its recipe, its arm and its seed, a refit by its run."""
    recipe = options.recipe
    if options.refit is not None:
        return options.refit.with_name(f"{options.refit.name}-refit")
    if "model" in recipe.custom:
        arm = base.custom_name(recipe.model)
    elif recipe.is_backbone:
        arm = recipe.model
    else:
        arm = {"batch": recipe.bn, "none": "none"}.get(recipe.norm, f"{recipe.norm}-{recipe.bn}")
    return Path("runs") / f"{Path(options.recipe_name).stem}-{arm}-{recipe.seed}"


def next_command(folder: Path, options: TrainOptions) -> str:
    """Give the next command to type."""
    words = ("--run", folder, "--data", options.data, "--out", folder / "submission.csv")
    return f"next: {base.command('predict', *words)}"


if __name__ == "__main__":
    with exit_on_error():
        given = read_options(sys.argv[1:])
        with training.distributed.process_group():
            main(given)
