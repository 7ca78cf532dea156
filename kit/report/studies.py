"""The pages of studies: the verdict first, then what it rests on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from scipy.special import expit

from kit import runs, stats
from kit.base import counted
from kit.data import KnownSlides, Store
from kit.report import plots
from kit.report.galleries import choose_gallery, gallery_section
from kit.report.page import Drawing, Page, Section, Table
from kit.report.plots import Predictions
from kit.report.rebuild import rebuild_section
from kit.study import RECALIBRATED, Histories, Study, StudyTable, curve_name

Tables = Mapping[str, StudyTable]

_LINES = (
    "Thin lines are seeds, the thick one their mean; the shade is the mean's 95 % interval. "
    "Validation is of the weights as they were after each epoch, and of one view."
)
_JUDGED = (
    "Validation figures are of the model that a run keeps, predicts with and submits: averaged "
    "weights where the recipe has them, and the recipe's views. The last epoch counts, never the "
    "best of noisy ones; training figures are the last epoch's."
)
_PAIRED = (
    f"{_JUDGED} The difference is the first arm less the second; its interval and p rest on sign "
    "flips of the paired differences, and speak of these tiles."
)
_SEEDS_LIMIT = (
    "Pairs differ by their seed: split, initial weights, data order and augmentation. They share "
    "the tiles that splits are drawn from, so no interval here speaks of other hospitals or "
    "scanners."
)
_POPULATIONS = (
    "These tiles: other seeds on the same pool of tiles; exact, and narrower with each seed. New "
    "tiles or new slides: the pool itself is one draw of many, and more seeds do not tell how such "
    "draws differ (Nadeau and Bengio 2003; where all seeds hold out the same tiles, Obuchowski and "
    "Rockette 1995)."
)

_JUDGED_BY = "Of what the verdict speaks"


def compare_page(
    comparison: Study,
    histories: Histories,
    predictions: pd.DataFrame,
    tables: Tables,
    verdict: str,
    *,
    store: Store,
    slides: KnownSlides,
    command: str,
) -> Page:
    """Describe a comparison of arms.

    Parameters
    ----------
    predictions
        From `study.pooled_predictions`.
    tables
        As `study` makes them: `verdict`, `table1`, `delong` and `pooled` of two arms, `differences`
        and `arms` of three or more; `spread` where slides are known.
    slides
        From `find_slides`.
    command
        What was typed.
    """
    are_two = len(comparison.arms) == 2
    judged, figures, held_out = (_two_arms if are_two else _several_arms)(
        comparison, predictions, tables
    )
    arms = " against ".join(comparison.arms) if are_two else f"{len(comparison.arms)} arms"
    return Page(
        title=f"{arms}, {counted(len(comparison.seeds), 'seed')}",
        verdict=verdict,
        limits=[_SEEDS_LIMIT, *slides.notes],
        sections=[
            judged,
            figures,
            *_spread_sections(tables),
            Section("Accuracy and loss", drawings=_plots_one_to_four(histories)),
            held_out,
            *_last_runs(comparison, store, slides, command),
        ],
        is_standin=store.is_standin,
    )


def _two_arms(
    comparison: Study, predictions: pd.DataFrame, tables: Tables
) -> tuple[Section, Section, Section]:
    """Show what two arms are judged by, their figures, and their held-out tiles."""
    caption = "Validation AUC: the first arm less the second."
    figures = _table(tables["table1"], "Table 1: both arms, paired by seed.")
    return (
        Section(_JUDGED_BY, text=[_POPULATIONS], tables=[_table(tables["verdict"], caption)]),
        Section("Figures", text=[_PAIRED], tables=[figures]),
        _held_out_section(tables, _prediction_drawings(comparison, predictions)),
    )


def _several_arms(
    comparison: Study, predictions: pd.DataFrame, tables: Tables
) -> tuple[Section, Section, Section]:
    """Show what three arms or more are judged by, their figures, and their held-out tiles."""
    differences = _table(tables["differences"], "Validation AUC, paired by seed.")
    figures = _table(tables["arms"], "Means over the seeds of each arm.")
    seeds = _seeds_by_arm(comparison, predictions)
    drawings = _prediction_drawings(comparison, predictions)
    return (
        Section(_JUDGED_BY, text=[_POPULATIONS], tables=[differences], drawings=[seeds]),
        Section("Figures", text=[_JUDGED], tables=[figures]),
        Section("On the held-out tiles", drawings=drawings),
    )


def _seeds_by_arm(comparison: Study, predictions: pd.DataFrame) -> Drawing:
    by_seed = [table for _, table in predictions.groupby("seed")]
    aucs = {
        arm: [stats.auc(table["label"], table[arm]) for table in by_seed] for arm in comparison.arms
    }
    points = plots.seeds_by_arm(aucs, title="Seeds by arm")
    return Drawing(points, "A line joins the runs of one seed; the bars are means.")


def _last_runs(comparison: Study, store: Store, slides: KnownSlides, command: str) -> list[Section]:
    """Show the tiles of each arm's run of the last seed, and how these runs are made again."""
    last = {arm: comparison.run_folder(arm, comparison.seeds[-1]) for arm in comparison.arms}
    seed = comparison.seeds[-1]
    galleries = [
        one_run_gallery(f"{arm}, seed {seed}", folder, store, slides)
        for arm, folder in last.items()
    ]
    return [*galleries, rebuild_section(command, last)]


def _spread_sections(tables: Tables) -> list[Section]:
    if "spread" not in tables:
        return []
    caption = "Validation AUC: parts of the variance, and what more seeds or more slides would do."
    return [Section("More seeds or more slides?", tables=[_table(tables["spread"], caption)])]


def _held_out_section(tables: Tables, drawings: Sequence[Drawing]) -> Section:
    pooled = (
        "All seeds' held-out tiles together, each compared with those of its own run. The more "
        "alike the units are, the more an interval that takes them for independent flatters. It "
        "speaks of these trained runs: what another seed would do is not in it."
    )
    return Section(
        "On the held-out tiles",
        tables=[
            _table(
                tables["delong"],
                "The two runs of each seed, on new tiles of these slides (DeLong et al. 1988).",
            ),
            _table(tables["pooled"], pooled),
        ],
        drawings=drawings,
    )


def momentum_page(
    histories: Histories,
    tables: Tables,
    verdict: str,
    *,
    store: Store,
    slides: KnownSlides,
    folders: Mapping[str, Path],
    command: str,
) -> Page:
    """Describe a sweep of BatchNorm's momentum.

    Parameters
    ----------
    tables
        From `study.sweep_tables`.
    folders
        Run folders to give the fingerprints of, and the first one's gallery.
    """
    return Page(
        title=f"BatchNorm's momentum, {counted(len(next(iter(histories.values()))), 'seed')}",
        verdict=verdict,
        limits=[_SEEDS_LIMIT, *slides.notes],
        sections=[
            _momentum_section(tables["table2"]),
            *_notebook_sections(tables),
            Section("Accuracy by epoch", drawings=_plots_five_and_six(histories)),
            one_run_gallery(*next(iter(folders.items())), store, slides),
            rebuild_section(command, folders),
        ],
        is_standin=store.is_standin,
    )


def _momentum_section(table: StudyTable) -> Section:
    caption = (
        "Table 2: means over the seeds. The intervals of what is gained hold together in 95 %, p "
        "is corrected for the number of momenta, and both speak of what the verdict names. Momenta "
        "that are picked because they are shown look better than they are: count on the low end, "
        "or on the shrunk gain."
    )
    return Section(
        "Figures",
        text=[
            "Momentum is the share of a running statistic that is kept at each step, as Keras "
            "counts it; PyTorch's is 1 minus it. It never touches training, so the training "
            f"figures are one. {_JUDGED} {RECALIBRATED.capitalize()} statistics, which know no "
            "momentum, are computed over the whole training side for the table, and over about "
            "1,000 of its tiles for each epoch of the curve."
        ],
        tables=[_table(table, caption)],
    )


def _notebook_sections(tables: Tables) -> list[Section]:
    if "notebook" not in tables:
        return []
    text = (
        "Seed noise is how far two single runs, one of each momentum, lie apart by their seeds "
        "alone in 95 of 100 cases (Student's quantile)."
    )
    table = _table(tables["notebook"], "One run each there, paired seeds here.")
    return [Section("The notebook's differences", text=[text], tables=[table])]


def one_run_gallery(name: str, folder: Path, store: Store, slides: KnownSlides) -> Section:
    tiles = choose_gallery(
        runs.load(folder), store, runs.read_valid(folder), slides.of_tiles, count=6
    )
    shown = gallery_section({f"{heading}: {name}": one for heading, one in tiles.items()})
    return Section(f"{shown.heading}, {name}", shown.text, gallery=shown.gallery)


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


def _plots_five_and_six(histories: Histories) -> list[Drawing]:
    by_momentum = {curve_name(name): seeds for name, seeds in histories.items()}
    titles = {
        "train_accuracy": "Plot 5: training accuracy",
        "valid_accuracy": "Plot 6: validation accuracy",
        "valid_auc": "Validation AUC",
    }
    return [
        Drawing(plots.arms(by_momentum, field, title=title), _LINES)
        for field, title in titles.items()
    ]


def _prediction_drawings(comparison: Study, predictions: pd.DataFrame) -> list[Drawing]:
    by_seed = [table for _, table in predictions.groupby("seed")]
    all_seeds = {
        arm: [(table["label"], table[arm]) for table in by_seed] for arm in comparison.arms
    }
    last: Predictions = {
        arm: (by_seed[-1]["label"], expit(by_seed[-1][arm])) for arm in comparison.arms
    }
    return [
        Drawing(plots.mean_roc(all_seeds), "Thin lines are seeds, the thick one their mean."),
        Drawing(plots.calibration(last), f"The runs of seed {comparison.seeds[-1]}."),
    ]


def _table(table: StudyTable, caption: str) -> Table:
    """Show a study's table with its index."""
    return Table(table.shown.reset_index(), caption, table.notes)
