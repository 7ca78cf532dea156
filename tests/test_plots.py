"""Figures hold the numbers that they were given; what matters is read back from them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from scipy import stats

from kit.base import EpochResult
from kit.report import plots, save_figure, tile_plots
from kit.report.learning import learning_figure

RESULT = EpochResult(1, 0.6, 0.7, 0.5, 0.75, 0.8, 1.0, 1000.0, 0.1)


def history(accuracies: Sequence[float]) -> list[EpochResult]:
    return [
        replace(RESULT, epoch=epoch, valid_accuracy=value)
        for epoch, value in enumerate(accuracies, 1)
    ]


def bounds_of_shade(figure: Figure, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest value of a shade at each epoch."""
    vertices = figure.axes[0].collections[number].get_paths()[0].vertices
    by_epoch = pd.DataFrame(vertices, columns=["epoch", "value"]).groupby("epoch")["value"]
    return by_epoch.min().to_numpy(), by_epoch.max().to_numpy()


def legend_colours(figure: Figure) -> dict[str, str]:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {
        label.partition(" (")[0]: to_hex(line.get_color())
        for line, label in zip(lines, labels, strict=True)
    }


def test_arms_show_seeds_mean_and_interval() -> None:
    seeds = np.array([[0.5, 0.6], [0.6, 0.7], [0.55, 0.75]])
    figure = plots.arms({"before": [history(seed) for seed in seeds]}, "valid_accuracy", title="t")
    *thin, thick = figure.axes[0].lines
    np.testing.assert_allclose([line.get_ydata() for line in thin], seeds)
    np.testing.assert_allclose(thick.get_ydata(), seeds.mean(axis=0))
    assert thick.get_linewidth() > max(line.get_linewidth() for line in thin)

    margin = stats.t.ppf(0.975, df=2) * seeds.std(axis=0, ddof=1) / np.sqrt(3)
    low, high = bounds_of_shade(figure, 0)
    np.testing.assert_allclose(low, seeds.mean(axis=0) - margin)
    np.testing.assert_allclose(high, seeds.mean(axis=0) + margin)
    assert figure.axes[0].get_ylabel() == "validation accuracy"


def test_a_single_epoch_is_seen() -> None:
    axes = plots.arms({"one": [history([0.5]), history([0.7])]}, "valid_accuracy", title="t").axes[
        0
    ]
    assert {line.get_marker() for line in axes.lines} == {"o"}
    axes.figure.draw_without_rendering()
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_lines_not_shades_set_the_scale() -> None:
    """Two seeds' interval spans 12.7 standard errors, which would flatten every line."""
    arms = {"after": [history([0.5, 0.6]), history([0.6, 0.8])], "one": [history([0.7, 0.7])]}
    figure = plots.arms(arms, "valid_accuracy", title="t")
    assert len(figure.axes[0].collections) == 1
    low, high = figure.axes[0].get_ylim()
    assert 0.45 < low < 0.5
    assert 0.8 < high < 0.85


def test_an_arm_has_one_colour_everywhere() -> None:
    predictions = ([0, 1, 0, 1], [0.2, 0.6, 0.7, 0.9])
    seen = [
        legend_colours(figure)
        for names in (["before", "after"], ["after", "other"], ["other", "after", "before"])
        for figure in (
            plots.roc(dict.fromkeys(names, predictions)),
            plots.calibration(dict.fromkeys(names, predictions)),
            plots.arms(
                {name: [history([0.5, 0.6])] for name in names}, "valid_accuracy", title="t"
            ),
        )
    ]
    for name in ("before", "after"):
        assert len({colours[name] for colours in seen if name in colours}) == 1
    for colours in seen:
        arms = [colour for name, colour in colours.items() if name not in ("chance", "perfect")]
        assert len(set(arms)) == len(arms)


def test_many_arms_keep_their_lines_apart() -> None:
    styles = plots._arm_styles([f"momentum {number}" for number in range(12)])
    assert len(set(styles.values())) == 12


def test_roc_shows_the_curve_and_its_area() -> None:
    figure = plots.roc({"run": ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])})
    curve = figure.axes[0].lines[1]
    points = [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    np.testing.assert_allclose(np.transpose(curve.get_data()), points)
    assert curve.get_label() == "run (AUC 0.7500)"


def test_mean_roc_is_the_mean_of_curves_not_of_mixed_scores() -> None:
    """Two runs that order their tiles rightly, one of them on a lower scale."""
    right = ([0, 0, 1, 1], [0.6, 0.7, 0.8, 0.9])
    lower = ([0, 1, 1, 1], [0.1, 0.2, 0.3, 0.4])
    axes = plots.mean_roc({"run": [right, lower]}).axes[0]
    *_, mean = axes.lines
    np.testing.assert_allclose(mean.get_ydata()[1:], 1)
    assert mean.get_label() == "run (mean AUC 1.0000, 2 seeds)"
    half = ([0, 1], [0.5, 0.5])
    *_, mean = plots.mean_roc({"run": [right, half]}).axes[0].lines
    np.testing.assert_allclose(mean.get_ydata()[1:], (1 + mean.get_xdata()[1:]) / 2)


def test_calibration_shows_shares_intervals_and_counts() -> None:
    """Two bins: 1 of 4 positive near 0.1, 9 of 10 near 0.9, with Wilson's interval."""
    labels = np.array([1, 0, 0, 0] + [1] * 9 + [0])
    probabilities = np.array([0.09, 0.1, 0.11, 0.1] + [0.9] * 10)
    upper, lower = plots.calibration({"run": (labels, probabilities)}).axes
    points, _, (bars,) = upper.containers[0]
    np.testing.assert_allclose(np.transpose(points.get_data()), [(0.1, 0.25), (0.9, 0.9)])

    z, p, n = stats.norm.ppf(0.975), np.array([0.25, 0.9]), np.array([4, 10])
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    drawn = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(drawn, np.transpose([centre - margin, centre + margin]))
    heights = lower.patches[0].get_xy()[:, 1]
    assert set(heights) >= {4, 10}


@pytest.mark.parametrize("name", ["costs $5 & <b>", r"$\frac$"])
def test_names_are_text_not_mathematics(name: str, tmp_path: Path) -> None:
    plots.curves([RESULT, replace(RESULT, epoch=2)], tmp_path / "curves.png", title=name)
    assert imread(tmp_path / "curves.png").shape[:2] == (480, 1200)
    counts = pd.DataFrame({"negative": [1], "positive": [2]}, index=[name])
    for figure in (
        plots.roc({name: ([0, 1], [0.2, 0.9])}, title=name),
        tile_plots.classes_by_slide(counts, title=name),
    ):
        save_figure(figure, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_figure_is_written_as_its_name_ends_and_the_same_each_time(
    kind: str, begins: bytes, tmp_path: Path
) -> None:
    written = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.{kind}"
        save_figure(plots.roc({"a run": ([0, 1], [0.2, 0.9])}), path)
        written.append(path.read_bytes())
    assert written[0] == written[1] and written[0].startswith(begins)


def test_class_counts_stack_columns() -> None:
    counts = pd.DataFrame({"train": [6, 7], "valid": [2, 3]}, index=["negative", "positive"])
    axes = tile_plots.class_counts(counts, title="t").axes[0]
    spans = [(bar.get_y(), bar.get_height()) for bar in axes.patches]
    assert spans == [(0, 6), (0, 7), (6, 2), (7, 3)]
    texts = {text.get_text() for text in axes.texts}
    assert {"8 (44.4 %)", "10 (55.6 %)", "train\n6", "valid\n3"} <= texts


def test_tile_sheet_outlines_the_central_square() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    axes = tile_plots.tile_sheet(tiles, title="t", columns=4).axes[0]
    sheet = np.asarray(axes.images[0].get_array())
    squares = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(squares) == 2 * 5
    for tile, square in zip(tiles, squares[::2], strict=True):
        # A pixel's middle is a whole number: its edge lies half a pixel before.
        left, top = (int(edge + 0.5) for edge in square.get_xy())
        assert (square.get_width(), square.get_height()) == (32, 32)
        np.testing.assert_array_equal(sheet[top : top + 32, left : left + 32], tile[32:64, 32:64])


def test_distributions_are_shares_of_each_group() -> None:
    groups = {"negative": [0.1] * 10, "positive": [0.1, 0.9], "test": []}
    axes = tile_plots.distributions(groups, xlabel="x", title="t").axes[0]
    shares = [patch.get_xy()[:, 1].max() for patch in axes.patches]
    assert sorted(shares) == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(("slides", "named"), [(5, 5), (216, 0)])
def test_slides_are_named_where_there_is_room(slides: int, named: int) -> None:
    names = [f"slide-{number}" for number in range(slides)]
    counts = pd.DataFrame({"negative": 3, "positive": 2}, index=names)
    axes = tile_plots.classes_by_slide(counts, title="t").axes[0]
    assert len(axes.patches) == 2 * slides
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert len([label for label in labels if label in names]) == named


PREDICTIONS = ([0, 1, 0, 1], [0.2, 0.6, 0.7, 0.9])
CURVES = pd.DataFrame(
    {"recipe": "probe", "tiles": [100, 300], "auc": [0.8, 0.9], "low": 0.7, "high": 0.95}
)


@pytest.mark.parametrize(
    "figure",
    [
        plots.roc({"run": PREDICTIONS}),
        plots.mean_roc({name: [PREDICTIONS] * 2 for name in ("before", "after", "other")}),
        plots.precision_recall({"run": PREDICTIONS}),
        plots.calibration({"run": PREDICTIONS, "other": PREDICTIONS}),
        plots.arms({"before": [history([0.5, 0.6])]}, "valid_accuracy", title="t"),
        learning_figure(CURVES),
    ],
    ids=["roc", "mean_roc", "precision_recall", "calibration", "arms", "learning"],
)
def test_no_legend_lies_on_what_is_drawn(figure: Figure) -> None:
    """It stands below all axes and within the figure."""
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [axes.get_legend() for axes in figure.axes] == [None] * len(figure.axes)
    place = legend.get_window_extent()
    assert place.y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)
    assert figure.bbox.x0 <= place.x0
    assert place.x1 <= figure.bbox.x1


def test_five_arms_differ_in_grey_print() -> None:
    """The sweep of BatchNorm's momentum has five."""
    dashes = [dashes for _, dashes in plots._arm_styles("abcde").values()]
    assert len(set(dashes)) == 5
