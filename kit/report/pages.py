"""The pages of studies: the verdict first, then what it rests on."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kit import runs
from kit.data import split
from kit.data.store import Store
from kit.report import plots, report
from kit.report.plots import Predictions
from kit.report.report import Drawing, Page, Section, Slides, Table
from kit.study import IMPORTANCE_TRIALS, RECALIBRATED, Histories, SearchResult, Study

Tables = Mapping[str, pd.DataFrame]

_LINES = "Thin lines are seeds, the thick one their mean; the shade is the mean's 95 % interval."
_SEEDS_LIMIT = (
    "Pairs differ by their seed: split, initial weights, data order and augmentation. They share "
    "the tiles that splits are drawn from, so the intervals say little of other hospitals or "
    "scanners."
)


def compare_page(
    comparison: Study,
    histories: Histories,
    predictions: pd.DataFrame,
    tables: Tables,
    verdict: str,
    *,
    store: Store,
    slides: Slides | None,
    command: str,
) -> Page:
    """Describe a comparison of two arms.

    Parameters
    ----------
    predictions
        From `study.pooled_predictions`.
    tables
        `table1`, `delong` and `pooled`, as `study` makes them.
    slides
        The slide of each training tile, where it is known.
    command
        What was typed.
    """
    last = {arm: comparison.run_folder(arm, comparison.seeds[-1]) for arm in comparison.arms}
    return Page(
        title=f"{' against '.join(comparison.arms)}, {len(comparison.seeds)} seeds",
        verdict=verdict,
        limits=[_SEEDS_LIMIT],
        sections=[
            Section(
                "Figures",
                text=[
                    "The last epoch counts, never the best of noisy ones. The difference is the "
                    "first arm less the second; its interval and p rest on sign flips of the "
                    "paired differences. The BCa bootstrap's interval stands beside them and is "
                    "too narrow for few seeds. Only the first row decides the verdict."
                ],
                tables=[_table(tables["table1"], "Table 1: both arms, paired by seed.")],
            ),
            Section("Accuracy and loss", drawings=_plots_one_to_four(histories)),
            Section(
                "On the held-out tiles",
                tables=[
                    _table(tables["delong"], "The two runs of each seed (DeLong et al. 1988)."),
                    _table(
                        tables["pooled"],
                        "All seeds' held-out tiles together: the less the units are alike, the "
                        "narrower the interval seems.",
                    ),
                ],
                drawings=_prediction_drawings(comparison, predictions),
            ),
            *(_gallery(arm, folder, store, slides) for arm, folder in last.items()),
            report.rebuild_section(command, last),
        ],
        is_standin=store.is_standin,
    )


def momentum_page(
    histories: Histories,
    tables: Tables,
    verdict: str,
    *,
    store: Store,
    slides: Slides | None,
    folders: Mapping[str, Path],
    command: str,
) -> Page:
    """Describe a sweep of BatchNorm's momentum.

    Parameters
    ----------
    tables
        `table2` and `notebook`, as `momentum` makes them.
    folders
        Run folders to give the fingerprints of, and the first one's gallery.
    """
    by_momentum = {f"momentum {name}": seeds for name, seeds in histories.items()}
    return Page(
        title=f"BatchNorm's momentum, {len(next(iter(histories.values())))} seeds",
        verdict=verdict,
        limits=[_SEEDS_LIMIT],
        sections=[
            Section(
                "Figures",
                text=[
                    "Momentum is the share of a running statistic that is kept at each step, as "
                    "Keras counts it; PyTorch's is 1 minus it. It never touches training, so the "
                    f"training figures are one; {RECALIBRATED} statistics, which know no "
                    "momentum, are computed over the whole training side after the last epoch and "
                    "over about 1,000 of its tiles after each other one."
                ],
                tables=[_table(tables["table2"], "Table 2: the last epoch, means over the seeds.")],
            ),
            Section(
                "The notebook's differences",
                text=[
                    "Seed noise is how far two single runs of one momentum lie apart by their "
                    "seeds alone in 95 of 100 cases."
                ],
                tables=[_table(tables["notebook"], "One run each there, paired seeds here.")],
            ),
            Section(
                "Accuracy by epoch",
                drawings=[
                    Drawing(plots.arms(by_momentum, field, title=title), _LINES)
                    for field, title in (
                        ("train_accuracy", "Plot 5: training accuracy"),
                        ("valid_accuracy", "Plot 6: validation accuracy"),
                        ("valid_auc", "Validation AUC"),
                    )
                ],
            ),
            _gallery(*next(iter(folders.items())), store, slides),
            report.rebuild_section(command, folders),
        ],
        is_standin=store.is_standin,
    )


def search_verdict(result: SearchResult) -> str:
    """Say what a search found, and how much to believe of it."""
    return (
        f"The best of {result.complete} finished trials ({result.pruned} more were stopped early) "
        f"reached {result.auc:.4f} validation AUC: optimistic, as it was chosen on that holdout."
    )


def search_page(result: SearchResult, out: Path, store: Store, command: str) -> Page:
    """Describe a search from its folder."""
    trials = pd.read_csv(out / "trials.csv")
    valid = runs.read_valid(result.folder)
    shown: Predictions = {"best trial": (valid["label"], valid["probability"])}
    slides = split.slides_of(store, result.recipe.slides)
    return Page(
        title=f"Search, {result.complete + result.pruned} trials",
        verdict=search_verdict(result),
        limits=[
            "Train the recipe with other seeds, or compare it with the base recipe, before you "
            "believe in its gain."
        ],
        sections=[
            _importance_section(result),
            Section(
                "The best recipe",
                code=(out / "best.toml").read_text("utf-8"),
                drawings=[
                    Drawing(plots.roc(shown), "Held-out tiles of the best trial."),
                    Drawing(plots.calibration(shown), "Held-out tiles of the best trial."),
                ],
            ),
            Section("All trials", tables=[Table(trials, "In the order of their numbers.")]),
            _gallery("best trial", result.folder, store, slides),
            report.rebuild_section(command, {"best trial": result.folder}),
        ],
        is_standin=store.is_standin,
    )


def _importance_section(result: SearchResult) -> Section:
    if not result.importances:
        text = [
            f"{result.complete} trials were trained to the end; it takes "
            f"{IMPORTANCE_TRIALS} to say which parameters matter."
        ]
        return Section("What decided", text)
    shares = pd.DataFrame(
        {"parameter": result.importances.keys(), "importance": result.importances.values()}
    )
    caption = "Shares of what sets the best quarter of the trials apart."
    return Section("What decided", tables=[Table(shares, caption)])


def _plots_one_to_four(histories: Histories) -> list[Drawing]:
    titles = {
        "train_accuracy": "Plot 1: training accuracy",
        "valid_accuracy": "Plot 2: validation accuracy",
        "train_loss": "Plot 3: training loss",
        "valid_loss": "Plot 4: validation loss",
    }
    return [
        Drawing(plots.arms(histories, field, title=title), _LINES)
        for field, title in titles.items()
    ]


def _prediction_drawings(comparison: Study, ranks: pd.DataFrame) -> list[Drawing]:
    pooled: Predictions = {arm: (ranks["label"], ranks[arm]) for arm in comparison.arms}
    last = {
        arm: runs.read_valid(comparison.run_folder(arm, comparison.seeds[-1]))
        for arm in comparison.arms
    }
    one_seed: Predictions = {
        arm: (valid["label"], valid["probability"]) for arm, valid in last.items()
    }
    return [
        Drawing(plots.roc(pooled), "All seeds' held-out tiles, ranked within each run."),
        Drawing(plots.calibration(one_seed), f"The runs of seed {comparison.seeds[-1]}."),
    ]


def _gallery(name: str, folder: Path, store: Store, slides: Slides | None) -> Section:
    tiles = report.gallery(runs.load(folder), store, runs.read_valid(folder), slides, count=6)
    shown = report.gallery_section({f"{heading}: {name}": one for heading, one in tiles.items()})
    return Section(f"{shown.heading}, {name}", shown.text, gallery=shown.gallery)


def _table(frame: pd.DataFrame, caption: str) -> Table:
    """Show a table with its index, each mean and its standard deviation in one cell."""
    shown = frame.copy()
    for spread in [name for name in frame.columns if name.endswith(" sd")]:
        mean = spread.removesuffix(" sd")
        mean = mean if mean in frame else f"{mean} mean"
        pairs = zip(frame[mean], frame[spread], strict=True)
        shown[mean] = [f"{value:.4g} ({sd:.2g})" for value, sd in pairs]
        shown = shown.drop(columns=spread).rename(columns={mean: f"{mean} (sd)"})
    return Table(shown.reset_index(), caption)
