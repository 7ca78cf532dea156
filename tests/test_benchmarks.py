"""The benchmarks: how peers are timed, what is made of it, and every measurement in the small."""

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import competition_files, write_zip
from simulated_gpu import simulated_gpu

from kit.base import KitError
from kit.models import SmallCNN

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import kit_tasks  # noqa: E402
import measurements  # noqa: E402
import plain  # noqa: E402
import results  # noqa: E402
from children import Peer, Result, interleave  # noqa: E402
from measurements import Place  # noqa: E402
from results import CEILING, EAGER, KERAS, KIT, TORCH  # noqa: E402
from serve import UnavailableError  # noqa: E402

PEER = """
import sys
sys.path.append({folder!r})
from serve import Task, UnavailableError, serve

def prepare(options):
    if "needs" in options:
        __import__(options["needs"])
    held = b"x" * options["hold"]
    def run(held=held):
        with open(options["diary"], "a") as diary:
            diary.write(options["name"])
        if options["name"] == "C":
            sys.exit("out of ideas")
        return 10
    return Task(run, "as it comes", ("numpy",))

serve(prepare)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "peer.py"
    path.write_text(PEER.format(folder=str(BENCHMARKS)))
    return str(path)


def peers(script: str, diary: Path, names: str, **options: object) -> dict[str, Peer]:
    common = {"diary": str(diary), "hold": 0, **options}
    return {name: Peer(script, {**common, "name": name}) for name in names}


def test_peers_warm_up_and_take_turns(tmp_path: Path, script: str) -> None:
    diary = tmp_path / "diary"
    found = interleave("m", "c", peers(script, diary, "AB"), rounds=3, work=tmp_path)
    assert diary.read_text() == "AB" + "AB" * 3
    for result in found:
        assert len(result.seconds) == 3
        assert result.tiles == 10
        assert result.settings == "as it comes"
        assert "numpy" in result.versions
        assert result.setup_seconds > max(result.seconds)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_peak_memory_is_the_peers_own(tmp_path: Path, script: str) -> None:
    big = peers(script, tmp_path / "diary", "A", hold=200_000_000)
    (small,) = interleave("m", "c", peers(script, tmp_path / "diary", "B"), rounds=1, work=tmp_path)
    (large,) = interleave("m", "c", big, rounds=1, work=tmp_path)
    assert 150e6 < large.peak_anonymous - small.peak_anonymous < 250e6
    assert large.peak_rss > large.peak_anonymous


def test_a_peer_that_is_not_installed_is_named_and_the_others_go_on(
    tmp_path: Path, script: str
) -> None:
    both = peers(script, tmp_path / "diary", "A", needs="no_such_library")
    both |= peers(script, tmp_path / "diary", "B")
    missing, other = interleave("m", "c", both, rounds=2, work=tmp_path)
    assert missing.unavailable == "no_such_library is not installed"
    assert missing.seconds == []
    assert len(other.seconds) == 2
    assert "no_such_library is not installed" in results.table([missing, other], {})


def test_a_peer_that_fails_says_why(tmp_path: Path, script: str) -> None:
    with pytest.raises(KitError, match=r"C \(c\) failed:\n(.*\n)*out of ideas"):
        interleave("m", "c", peers(script, tmp_path / "diary", "AC"), rounds=1, work=tmp_path)


def made_up() -> list[Result]:
    case = "small, 32 px, none"
    return [
        Result("train", case, KERAS, unavailable="tensorflow is not installed"),
        Result("train", case, TORCH, tiles=640, seconds=[0.4, 0.8, 0.4]),
        Result("train", case, KIT, tiles=640, seconds=[0.1, 0.2, 0.2]),
        Result("train", case, CEILING, tiles=640, seconds=[0.08, 0.16, 0.1]),
        Result("train", case, EAGER, tiles=640, seconds=[0.2, 0.2, 0.2]),
        Result("packing", "archive", KIT, tiles=100, seconds=[3, 3, 3]),
        Result("packing", "archive", "testzip", tiles=100, seconds=[2, 1, 3]),
        Result("scale", "10 + 3", "train one epoch", 7, [1.0], peak_anonymous=750_000_000),
    ]


def test_ratios_are_the_medians_of_rounds_side_by_side() -> None:
    found = {ratio["name"]: ratio for ratio in results.compare(made_up())}
    case = "small, 32 px, none"
    # 0.4 / 0.1, 0.8 / 0.2 and 0.4 / 0.2.
    against_torch = found[f"kit / PyTorch: {case}"]
    assert against_torch["median"] == pytest.approx(4)
    assert against_torch["low"] == pytest.approx(2)
    assert against_torch["high"] == pytest.approx(4)
    assert found[f"kit / ceiling: {case}"]["median"] == pytest.approx(0.8)
    assert found[f"ceiling / eager fp32: {case}"]["median"] == pytest.approx(2)
    assert found["pack / testzip"]["median"] == pytest.approx(1.5)
    assert f"kit / Keras: {case}" not in found
    assert results.memory(made_up()) == {"10 + 3": 0.75}


def test_results_are_written_as_table_json_and_plot(tmp_path: Path) -> None:
    results.write(tmp_path, made_up(), {"cpu": "an abacus", "unset": ""})
    text = (tmp_path / "table.txt").read_text()
    assert text.startswith("cpu: an abacus\n")
    assert "tensorflow is not installed" in text
    kit = next(line for line in text.splitlines() if KIT in line.split())
    # 640 tiles in 0.1, 0.2 and 0.2 seconds.
    assert "3,200 to 6,400" in kit
    assert kit.split()[6:8] == ["640", "3,200"]
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["results"][2]["seconds"] == [0.1, 0.2, 0.2]
    assert len(values["ratios"]) == len(results.compare(made_up()))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_plain_network_is_the_kits() -> None:
    kit = SmallCNN("before").eval()
    own = plain.create_network("small").eval()
    own.load_state_dict(dict(zip(own.state_dict(), kit.state_dict().values(), strict=True)))
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(own(images), kit(images))


class OneProcess(Place):
    """A place whose peers run in this process, one round each; other programs are left out."""

    def interleave(
        self, measurement: str, case: str, peers: Mapping[str, Peer], *, rounds: int | None = None
    ) -> list[Result]:
        found = []
        for name, peer in peers.items():
            if name not in (KERAS, "compare.py"):
                assert rounds in (None, 1)
                prepare = importlib.import_module(Path(peer.script).stem).prepare
                tiles = prepare(dict(peer.options)).run()
                found.append(Result(measurement, case, name, tiles=tiles, seconds=[1.0]))
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    work = tmp_path_factory.mktemp("work")
    made = OneProcess(
        archive=write_zip(work / "given", competition_files(train=192, test=9)),
        work=work,
        rounds=1,
        train_tiles=128,
        predict_tiles=20,
        loader_workers=0,
        study_epochs=1,
        study_seeds=1,
        scale="hundredth",
        keras_python=sys.executable,
    )
    kit_tasks.KINDS["train"](
        {"kind": "train", "data": made.data, "work": work, "epochs": 1, "per_class": None}
    ).run()
    (work / "train-0").rename(made.work / "run")
    return made


# timm leaves it to the garbage collector to close the files it has read.
timm_files = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@timm_files
@pytest.mark.parametrize("augment", ["none", "d4", "stain"])
def test_training_takes_the_same_tiles_by_every_peer(place: Place, augment: str) -> None:
    options = {"model": "small", "size": 32, "batch": 64, "augment": augment}
    found = measurements.train_case(place, "train", options, tiles=128)
    assert [result.tiles for result in found] == [128] * 5


@timm_files
def test_backbones_train_by_every_peer_but_keras(place: Place) -> None:
    options = {"model": "test_resnet", "size": 96, "batch": 32, "augment": "none"}
    found = measurements.train_case(place, "train", options, tiles=32)
    assert [result.tiles for result in found] == [32] * 5


def test_packing_and_predicting(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measurements.SIZES, "hundredth", 2000)
    taken = {
        (result.measurement, result.peer): result.tiles
        for name in ("packing", "predict", "scale")
        for found in measurements.MEASUREMENTS[name](place)
        for result in found
    }
    assert taken == {
        ("packing", KIT): 201,
        ("packing", "testzip"): 201,
        ("predict", KIT): 20,
        ("predict", "kit, eight views"): 20,
        # 220,025 and 57,458 divided by 2,000; a batch of 64 fits once into 70 % of 111.
        ("scale", "pack"): 111 + 29,
        ("scale", "train one epoch"): 64,
        ("scale", "predict"): 29,
    }


def test_momenta_in_one_training_and_in_four(place: Place) -> None:
    found = [result.peer for shown in measurements.study(place) for result in shown]
    assert found == ["one training", "sweep of four", "four trainings"]
    made = {path.name for path in (place.work / "study").iterdir()}
    assert made == {"train-0", "sweep-0", "independent-0"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_are_no_figures_of_one(place: Place) -> None:
    with pytest.raises(UnavailableError, match="no GPU"):
        list(measurements.gpu(place))


def test_everything_is_measured_on_a_gpu(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in measurements.GPU_CASES.values():
        monkeypatch.setitem(case, "batch", 4)
        monkeypatch.setitem(case, "tiles", 8)
    # Of the simulated GPU's minutes.
    monkeypatch.delitem(measurements.GPU_CASES, "compact, batch 512")
    monkeypatch.delitem(measurements.GPU_CASES, "resnet50, 224 px")
    for task in measurements.GPU_TASKS.values():
        monkeypatch.setitem(task, "epochs", 1)
        monkeypatch.setitem(task, "batch_size", 3)
        monkeypatch.setitem(task, "count", 24)
    monkeypatch.setattr(measurements, "FULL_SIZE", (24, 11))
    with simulated_gpu():
        found = [result for case in measurements.gpu(place) for result in case]
    assert [(result.case, result.peer, result.tiles) for result in found] == [
        ("small, batch 64", KIT, 8),
        ("small, batch 64", CEILING, 8),
        ("compact, batch 32", KIT, 8),
        ("compact, batch 32", CEILING, 8),
        ("notebook's protocol", "train", 15),
        ("compact, 176,020 tiles", "train", 18),
        ("compact, all test tiles", "predict", 11),
    ]


def test_command_measures_prints_and_writes(tmp_path: Path) -> None:
    write_zip(tmp_path / "data", competition_files())
    command = [sys.executable, BENCHMARKS / "run.py", "--only", "packing", "--rounds", "2"]
    done = subprocess.run([*command, "--out", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "24 + 7, the competition's tiles" in done.stdout
    assert (tmp_path / "out" / "table.txt").read_text() in done.stdout
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(result["seconds"]) for result in values["results"]] == [2, 2]
    assert [ratio["name"] for ratio in values["ratios"]] == ["pack / testzip"]
