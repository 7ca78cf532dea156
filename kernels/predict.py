"""Predict the test tiles and write a submission.

Several runs are averaged, and so are the folds of a cross-validation. Their own preprocessing is
used; nothing needs to be repeated. FILE.json beside the submission remembers how it was made.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from kit import base, data, runs, stats, study, training
from kit.base import KitError, exit_on_error


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What predicts, how, and where the submission goes."""

    run: base.Repeated[Path] = ()
    """Folder of a finished run or cross-validation; may be given several times."""
    ensemble: Path | None = None
    """An ensemble.json of kernels/ensemble.py, in place of runs."""
    data: Path = Path("data")
    """Folder of the competition's data."""
    out: Path = Path("submission.csv")
    """The submission to write."""
    views: base.Views | None = None
    """8 averages the eight symmetries of the square, at eight times the cost; by default what
    each run's recipe says."""
    adapt_bn: bool = False
    """Give BatchNorm the statistics of the unlabelled test tiles, whose slides are stained
    otherwise. It does not help every network."""
    calibrate: bool = False
    """Scale logits by the temperature of each run's holdout, for people who need
    probabilities; a single run's AUC stays as it is."""
    labels: Literal["probability", "hard"] = "probability"
    """hard writes 0 or 1, as the study did; it costs AUC, and the command says how much."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    devices: tuple[str, ...] = ()
    """In place of --device, for several models (runs, folds): a process on each takes a share of
    them. auto takes all GPUs, cuda:0 cuda:1 these two; cpu:2 is two processes that share the CPU's
    cores."""
    trust: bool = False
    """Run code that came with a run, a network of somebody's own: read it before."""


def main(options: PredictOptions) -> None:
    """Predict and write."""
    base.trust_code(options.trust)
    if bool(options.run) == (options.ensemble is not None):
        raise KitError("name runs (--run runs/NAME, several times) or one --ensemble FILE")
    devices = training.choose_devices(options.device, options.devices)
    training.prepare_process(deterministic=True)
    if options.ensemble is not None:
        chosen = runs.read_source(options.ensemble)
    else:
        chosen = runs.average(options.run)
    manner = runs.Manner(
        views=options.views,
        adapt_bn=options.adapt_bn,
        calibrate=options.calibrate,
        hard=options.labels == "hard",
    )
    base.output_file(options.out)
    for run in chosen.weights:
        for model in runs.members(Path(run)):
            runs.read_config(model)
    tiles = data.open_store(options.data)
    values, made = runs.predict_submission(
        options.out,
        chosen,
        tiles,
        manner,
        device=devices.device,
        predicted=predict_on(devices, chosen, tiles, manner),
    )
    if manner.hard:
        for folder in chosen.weights:
            print(cost_of_hard_labels(Path(folder)))
    print(f"{options.out}: predicted by {made.by}, {made.manner}")
    print(f"{options.out}: {len(values):,} tiles, mean {values.mean():.4f}; it is valid")
    if made.standins:
        print(runs.standin_notice(made.standins), file=sys.stderr)
    elif not tiles.is_standin:
        words = ("--file", options.out, "--data", options.data)
        print(f"next: {base.command('submit', *words)}")


def predict_on(
    devices: training.Devices, chosen: runs.Ensemble, tiles: data.Store, manner: runs.Manner
) -> dict[Path, base.Floats] | None:
    """Predict by each model on one of several devices; None where there is nothing to share out."""
    models = [model for run in chosen.weights for model in runs.members(Path(run))]
    if not devices.workers or len(models) == 1:
        return None
    with tempfile.TemporaryDirectory(dir=base.temporary_folder()) as folder:
        return training.share_out(
            devices,
            partial(study.predict_shared, models, tiles, manner, Path(folder)),
            runs=len(models),
            how_to_go_on=lambda: "type the command again",
        )


def cost_of_hard_labels(folder: Path) -> str:
    """Say what 0 and 1 in place of probabilities cost in AUC on a run's holdout."""
    valid = runs.read_valid(folder)
    labels, probabilities = valid["label"].to_numpy(), valid["probability"].to_numpy()
    soft = stats.auc(labels, probabilities)
    hard = stats.auc(labels, (probabilities > 0.5).astype(float))
    return f"{folder}: hard labels lower the holdout's AUC from {soft:.4f} to {hard:.4f}"


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(PredictOptions, __doc__, sys.argv[1:]))
