"""Choose a mean of runs by their held-out predictions, and say what it gains.

The runs must have been validated on the same tiles: cross-validated ones (train.py --folds), or
runs with the same holdout. Runs are added greedily while the AUC rises; the gain over the best
single run is judged on tiles that the choice has not seen.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kit import base, data, runs, stats
from kit.base import KitError, exit_on_error


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions:
    """Which runs, and how they are averaged."""

    runs: base.Positional[tuple[Path, ...]]
    """Folders of finished runs, or of cross-validations."""
    out: Path = Path("ensembles/all")
    """Folder of the ensemble.json to write."""
    mean: Literal["probability", "rank"] = "probability"
    """Of the probabilities, or of the tiles' ranks."""
    slides: Path | None = None
    """CSV of id,slide: the gain is judged by slides."""


def main(options: EnsembleOptions) -> None:
    """Choose, judge and write."""
    folders, mean = options.runs, options.mean
    if len(folders) < 2:
        raise KitError("an ensemble needs two runs or more: ensemble.py runs/ONE runs/OTHER")
    everything = replace(runs.average(folders), mean=mean)
    tiles, predictions = runs.read_predictions(folders)
    labels = tiles["label"].to_numpy()
    slides = slides_of(options.slides, tiles["id"].to_numpy(str)) if options.slides else None
    chosen = runs.choose_ensemble(folders, labels, predictions, mean)
    figures: dict[str, Any] = {}
    try:
        gain = runs.judge_gain(labels, predictions, mean, slides=slides)
        figures, judged = asdict(gain), describe_gain(gain, slides is not None)
    except KitError as error:
        # The ensemble itself is chosen on all tiles.
        judged = f"what choosing gains is not known: {error}"
    path = runs.write_ensemble(options.out, chosen, figures)
    aucs = {run: stats.auc(labels, one) for run, one in zip(folders, predictions, strict=True)}
    print("held-out AUC by run:")
    print("\n".join(describe(aucs, chosen)))
    together = stats.auc(labels, everything.combine(predictions))
    print(f"{together:.4f}  all {len(folders)}, equally weighted")
    print(judged)
    if chosen_by_holdout := [str(run) for run in folders if runs.keeps_best(run)]:
        print(
            "note: the held-out tiles chose the epochs of "
            f"{', '.join(chosen_by_holdout)}: AUC and weight there are too high"
        )
    print(path)
    standins = runs.trained_on_standin(chosen)
    if standins:
        print(runs.standin_notice(standins), file=sys.stderr)
    words = ("--ensemble", path, "--out", options.out / "submission.csv")
    print(f"next: {base.command('predict', *words)}")


def slides_of(path: Path, ids: base.Strings) -> base.Strings:
    """Read the slide of each tile, all of which must be known: the gain is judged by slides."""
    slides = data.read_slides(path, ids)
    if missing := int((slides == data.UNKNOWN).sum()):
        name = shlex.quote(str(path))
        raise KitError(
            f"{path} has no slide for {missing:,} of the {len(ids):,} held-out tiles, the first "
            f"{ids[slides == data.UNKNOWN][0]}: train with --slides {name}, which leaves them out, "
            "or judge without --slides"
        )
    return slides


def describe(aucs: dict[Path, float], chosen: runs.Ensemble) -> Iterator[str]:
    """Tell each run's AUC and weight, the best one first."""
    for folder, auc in sorted(aucs.items(), key=lambda item: -item[1]):
        yield f"{auc:.4f}  weight {chosen.weights.get(str(folder), 0.0):.2f}  {folder}"


def describe_gain(gain: runs.Gain, by_slide: bool) -> str:
    """Tell what choosing gains, and on what."""
    p = gain.comparison.p_value
    p_value = "" if p is None else f", {base.format_p(p)}"
    where = "new slides" if by_slide else "new tiles of these slides"
    return (
        f"chosen and judged on different tiles, 95 % intervals for {where}: the mean {gain.auc}, "
        f"the best run {gain.best_run}; gain {gain.comparison.difference}{p_value}"
    )


if __name__ == "__main__":
    with exit_on_error():
        main(base.parse_options(EnsembleOptions, __doc__, sys.argv[1:]))
