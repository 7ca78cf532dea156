"""Results as a table, as ratios against the reach, as JSON and as a plot."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl

mpl.use("agg")

from children import Result
from matplotlib import pyplot as plt

from kit.base import write_text

KIT = "kit"
KERAS = "Keras, TIFF files"
TORCH = "PyTorch, TIFF files"
TIMM = "timm's loader, TIFF files"
CEILING = "ceiling"
EAGER = "ceiling, eager fp32"
EIGHT = "kit, eight views"
ONE = "one training"
SWEEP = "sweep of four"
FOUR = "four trainings"
EPOCH = "train one epoch"

COLUMNS = ("tiles", "tiles/s", "range", "seconds", "MB", "anon", "set-up")

# Okabe and Ito's colours, which the colour-blind tell apart; the kit's alone is warm.
COLOURS = {KIT: "#D55E00", CEILING: "#56B4E9", EAGER: "#56B4E9"}
OTHERS = "#999999"


@dataclass(frozen=True)
class Ratio:
    """How much of one result another is, and what was to be reached.

    Attributes
    ----------
    of
        `speed` divides the first peer's tiles per second by the second's, and more is better;
        `time` divides its seconds, and less is better.
    """

    name: str
    measurement: str
    case: str
    first: str
    second: str
    of: Literal["speed", "time"]
    reach: float | None = None
    aim: float | None = None


def train_ratios(case: str, share: tuple[float, float]) -> list[Ratio]:
    """Return the ratios of one training case; `share` is of the ceiling, at least and as an aim."""
    return [
        Ratio(f"kit / Keras: {case}", "train", case, KIT, KERAS, "speed", 3, 5),
        Ratio(f"kit / PyTorch: {case}", "train", case, KIT, TORCH, "speed", 3, 5),
        Ratio(f"kit / timm's loader: {case}", "train", case, KIT, TIMM, "speed"),
        Ratio(f"kit / ceiling: {case}", "train", case, KIT, CEILING, "speed", *share),
        Ratio(f"ceiling / eager fp32: {case}", "train", case, CEILING, EAGER, "speed", 1.5, 2.5),
    ]


BACKBONE = "resnet18, 96 px, none"
RATIOS = [
    *train_ratios("small, 32 px, none", (0.90, 0.97)),
    *train_ratios("small, 32 px, d4", (0.80, 0.95)),
    *train_ratios("small, 32 px, stain", (0.60, 0.90)),
    # Arithmetic is nearly all of its time, so nothing was to be reached but the ceiling.
    Ratio(f"kit / PyTorch: {BACKBONE}", "train", BACKBONE, KIT, TORCH, "speed"),
    Ratio(f"kit / ceiling: {BACKBONE}", "train", BACKBONE, KIT, CEILING, "speed"),
    Ratio(f"ceiling / eager fp32: {BACKBONE}", "train", BACKBONE, CEILING, EAGER, "speed"),
    Ratio("pack / testzip", "packing", "archive", KIT, "testzip", "time", 1.5, 1.0),
    Ratio("predict: kit / Keras", "predict", "test tiles", KIT, KERAS, "speed", 5, 15),
    Ratio("predict: eight views / one", "predict", "test tiles", EIGHT, KIT, "time"),
    Ratio("sweep of four / one training", "study", "momentum", SWEEP, ONE, "time", 1.3, 1.1),
    Ratio("four trainings / one training", "study", "momentum", FOUR, ONE, "time"),
    *(
        Ratio(f"GPU: kit / ceiling: {case}", "gpu", case, KIT, CEILING, "speed", *share)
        for case, share in {
            "small, batch 64": (0.90, 0.97),
            "compact, batch 32": (0.90, 0.97),
            "compact, batch 512": (0.90, 0.97),
            "resnet50, 224 px": (0.95, 0.98),
        }.items()
    ),
]


def compare(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return every ratio whose two sides were measured: the median of the rounds' own, and range.

    Rounds of one number were run one after the other, so that a ratio of theirs stands even
    where the machine was slower for a while.
    """
    found = {
        (result.measurement, result.case, result.peer): result
        for result in results
        if result.seconds
    }
    compared = []
    for ratio in RATIOS:
        first = found.get((ratio.measurement, ratio.case, ratio.first))
        second = found.get((ratio.measurement, ratio.case, ratio.second))
        if first and second:
            values = _round_ratios(ratio, first, second)
            low, high = min(values), max(values)
            measured = {"median": statistics.median(values), "low": low, "high": high}
            compared.append(asdict(ratio) | measured)
    return compared


def memory(results: Sequence[Result]) -> dict[str, float]:
    """Return the peak anonymous gigabytes of training, by the size of the data."""
    return {
        result.case: result.peak_anonymous / 1e9
        for result in results
        if result.measurement == "scale" and result.peer == EPOCH and result.seconds
    }


def _round_ratios(ratio: Ratio, first: Result, second: Result) -> list[float]:
    if ratio.of == "time":
        return [one / other for one, other in zip(first.seconds, second.seconds, strict=True)]
    return [one / other for one, other in zip(first.rates, second.rates, strict=True)]


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    shown = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: os.environ[name] for name in shown if name in os.environ}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "environment": environment,
    }


def table(results: Sequence[Result], header: Mapping[str, Any]) -> str:
    """Return all that was measured, and the ratios, as text."""
    versions: dict[str, str] = {}
    for result in results:
        versions |= result.versions
    lines = [
        *(f"{name}: {value}" for name, value in header.items() if value),
        "versions: " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items())),
        "",
        _row("measurement", "case", "peer", *COLUMNS) + "  settings",
        *(_result_row(result) for result in results),
    ]
    compared = compare(results)
    if compared:
        lines += ["", f"{'ratio':42} {'measured':>9} {'range':>15} {'reach':>7} {'aim':>7}"]
        lines += [_ratio_row(ratio) for ratio in compared]
    for case, gigabytes in memory(results).items():
        lines.append(f"{'anonymous GB, training ' + case:42} {gigabytes:9.2f}")
    return "\n".join(lines)


def _row(*cells: str) -> str:
    measurement, case, peer, *numbers = cells
    widths = (7, 9, 17, 8, 6, 6, 7)
    figures = " ".join(f"{cell:>{width}}" for cell, width in zip(numbers, widths, strict=True))
    return f"{measurement:11} {case:22} {peer:26} {figures}"


def _result_row(result: Result) -> str:
    names = (result.measurement, result.case, result.peer)
    if result.unavailable:
        return f"{names[0]:11} {names[1]:22} {names[2]:26} {result.unavailable}"
    tiles = rate = spread = ""
    if result.tiles:
        tiles = f"{result.tiles:,}"
        rate = f"{statistics.median(result.rates):,.0f}"
        spread = f"{min(result.rates):,.0f} to {max(result.rates):,.0f}"
    megabytes = (f"{size / 1e6:,.0f}" for size in (result.peak_rss, result.peak_anonymous))
    figures = (tiles, rate, spread, f"{result.median:.2f}", *megabytes)
    return f"{_row(*names, *figures, f'{result.setup_seconds:.1f}')}  {result.settings}"


def _ratio_row(ratio: Mapping[str, Any]) -> str:
    sign = "<" if ratio["of"] == "time" else ""
    goals = (ratio["reach"], ratio["aim"])
    reach, aim = ("" if goal is None else f"{sign}{goal:.2f}" for goal in goals)
    spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
    return f"{ratio['name']:42} {ratio['median']:9.2f} {spread:>15} {reach:>7} {aim:>7}"


def write(folder: Path, results: Sequence[Result], header: Mapping[str, Any]) -> None:
    """Write results.json, table.txt and, where speeds were measured, plot.png."""
    values = {
        "header": dict(header),
        "results": [asdict(result) for result in results],
        "ratios": compare(results),
        "anonymous_gigabytes_of_training": memory(results),
    }
    write_text(folder / "results.json", json.dumps(values, indent=2) + "\n")
    write_text(folder / "table.txt", table(results, header) + "\n")
    plot(results, folder / "plot.png")


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw each case's tiles per second, a bar a peer, from the slowest round to the fastest."""
    panels: dict[str, list[Result]] = {}
    for result in results:
        if result.tiles and result.measurement in ("train", "predict", "gpu"):
            panels.setdefault(f"{result.measurement}: {result.case}", []).append(result)
    if not panels:
        return
    figure, grid = plt.subplots(
        len(panels), 1, figsize=(8, 2.2 * len(panels)), squeeze=False, layout="constrained"
    )
    for axes, (title, shown) in zip(grid[:, 0], panels.items(), strict=True):
        _draw_bars(axes, shown)
        axes.set_title(title, loc="left", fontsize=10)
    grid[-1, 0].set_xlabel("tiles per second, median of the rounds and their range")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_bars(axes: Any, shown: Sequence[Result]) -> None:
    rates = [statistics.median(result.rates) for result in shown]
    below = [rate - min(result.rates) for rate, result in zip(rates, shown, strict=True)]
    above = [max(result.rates) - rate for rate, result in zip(rates, shown, strict=True)]
    names = [result.peer for result in shown]
    colours = [COLOURS.get(name, COLOURS[KIT] if KIT in name else OTHERS) for name in names]
    bars = axes.barh(names, rates, xerr=(below, above), color=colours, ecolor="black", height=0.7)
    axes.bar_label(bars, labels=[f"{rate:,.0f}" for rate in rates], padding=4, fontsize=9)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
