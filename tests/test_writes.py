"""Full disks, kills and second processes: each file is there whole, or as it was."""

import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from conftest import Forked, competition_files, contents, write_zip

from kit.base import KitError, atomic_path, competition, exit_on_error, write_text
from kit.data import Store, open_store, pack_tiles

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KIT_KILLS", "4"))
STARTED = ("config.json", "split.csv", "layers.txt")
TRAINED = (*STARTED, "last.pt", "history.jsonl")
# In the order in which an epoch, and what follows it, writes them.
FINISHED = (
    *TRAINED,
    "model.safetensors",
    "valid.csv",
    "metrics.json",
    "curves.png",
    "report.html",
)
# How long an epoch took stands in these.
TIMED = ("last.pt", "history.jsonl", "curves.png", "report.html")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs to be root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def leave(disk: Path, room: int) -> None:
    """Fill a disk up to some bytes, or empty it of what filled it."""
    (disk / "filler").unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with (disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, free - room)


def run_kernel(
    arguments: list[str], log: Path, file_limit: int | None, scratch: Path | None
) -> None:
    """Be a command: what it says on stderr goes to `log`."""
    if scratch is not None:
        tempfile.tempdir = str(scratch)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    with log.open("w") as stderr, Path(os.devnull).open("w") as stdout:
        sys.stdout, sys.stderr = stdout, stderr
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def spawn(work: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process, forked from one that has imported torch."""
    process = Forked(target=work, args=arguments)
    process.start()
    return process


def train(
    tiles: Store,
    folder: Path,
    log: Path,
    *,
    file_limit: int | None = None,
    scratch: Path | None = None,
) -> tuple[int | None, str]:
    """Train for an epoch, or go on; return the exit status and what stderr says."""
    again = ["--resume"] if (folder / "config.json").exists() else []
    arguments = ["--data", str(tiles.folder.parent), "--out", str(folder), "--device", "cpu"]
    kernel = [str(ROOT / "kernels" / "train.py"), "--epochs", "1", "--batch-size", "8"]
    process = spawn(run_kernel, [*kernel, *arguments, *again], log, file_limit, scratch)
    process.join()
    return process.exitcode, log.read_text()


@pytest.fixture(scope="module")
def whole(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    place = tmp_path_factory.mktemp("whole")
    status, said = train(tiles, place / "run", place / "log")
    assert status == 0, said
    return place / "run"


def room_before(whole: Path, name: str, present: tuple[str, ...]) -> int:
    """Return what just suffices for all that is written before `name`, in bytes."""
    sizes = {name: -(-(whole / name).stat().st_size // 4096) * 4096 for name in FINISHED}
    earlier = FINISHED[: FINISHED.index(name)]
    # What is there already is written beside itself.
    again = max((sizes[one] for one in present if one in ("split.csv", "history.jsonl")), default=0)
    return max(again, sum(sizes[one] for one in earlier if one not in present))


def error_line(said: str) -> str:
    """Return the message of a command: one line, whatever progress bars were drawn before."""
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said.endswith(f"{lines[0]}\n")
    return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def assert_whole_or_absent(left: dict[str, bytes], before: dict[str, bytes], said: str) -> None:
    """A full disk is one line, the old files are as they were, and none is half a file."""
    assert "No space left on device" in error_line(said)
    assert not [name for name in left if name.endswith(".partial")]
    assert {name: left.get(name) for name in before} == before


@pytest.mark.parametrize("present", [(), TRAINED])
def test_a_disk_that_is_full_at_any_file_is_a_message_and_room_a_remedy(
    tiles: Store, whole: Path, disk: Path, tmp_path: Path, present: tuple[str, ...]
) -> None:
    """Train from the start, then finish a trained run, with room for one file more each time."""
    folder = disk / whole.name
    for name in TRAINED if not present else FINISHED[len(TRAINED) :]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for one in present:
            shutil.copyfile(whole / one, folder / one)
        before = snapshot(folder)
        leave(disk, room_before(whole, name, present))
        status, said = train(tiles, folder, tmp_path / "log")
        assert status == 1
        assert error_line(said) == f"error: cannot write {folder / name}: No space left on device"
        left = snapshot(folder)
        assert_whole_or_absent(left, before, said)
        assert set(left) == set(FINISHED[: FINISHED.index(name)])
    (disk / "filler").unlink()
    status, said = train(tiles, folder, tmp_path / "log")
    assert status == 0, said
    assert contents(folder) == contents(whole)
    assert set(snapshot(folder)) == set(FINISHED)


@pytest.mark.soak
def test_a_disk_with_any_room_is_a_message_and_room_a_remedy(
    tiles: Store, whole: Path, disk: Path, tmp_path: Path
) -> None:
    """Forty amounts of room up to what a run takes, each given in three parts, then enough."""
    folder, rng = disk / whole.name, np.random.default_rng(0)
    largest = sum(path.stat().st_size for path in whole.iterdir())
    failures = 0
    for room in rng.integers(0, largest, 40):
        for part in (1, 2, 3):
            leave(disk, int(room * part / 3))
            status, said = train(tiles, folder, tmp_path / "log")
            if status == 0:
                break
            failures += 1
            assert_whole_or_absent(snapshot(folder), {}, said)
            for name, content in snapshot(folder).items():
                assert name in TIMED or content == (whole / name).read_bytes()
        (disk / "filler").unlink()
        status, said = train(tiles, folder, tmp_path / "log")
        assert status == 0, said
        assert contents(folder) == contents(whole)
        shutil.rmtree(folder)
    print(f"{failures} full disks survived")
    assert failures >= 40


def test_a_file_that_may_grow_no_further_is_a_message(
    tiles: Store, whole: Path, tmp_path: Path
) -> None:
    limit = (whole / "last.pt").stat().st_size - 1
    status, said = train(tiles, tmp_path / "run", tmp_path / "log", file_limit=limit)
    assert status == 1
    assert error_line(said) == f"error: cannot write {tmp_path}/run/last.pt: File too large"
    assert set(snapshot(tmp_path / "run")) == set(STARTED)
    status, said = train(tiles, tmp_path / "run", tmp_path / "log")
    assert status == 0, said
    assert contents(tmp_path / "run") == contents(whole)


def test_resized_tiles_that_find_no_room_are_a_message(
    tiles: Store, disk: Path, tmp_path: Path
) -> None:
    """They are mapped: to write them onto a full disk would kill the process (SIGBUS)."""
    leave(disk, 100_000)
    status, said = train(tiles, tmp_path / "run", tmp_path / "log", scratch=disk)
    assert status == 1
    assert "bytes of resized tiles in" in error_line(said)
    assert "set TMPDIR to a folder with room" in error_line(said)


def pack_in_process(data: Path, log: Path) -> None:
    with log.open("w") as sys.stderr, exit_on_error():
        pack_tiles(data)


def pack(data: Path, log: Path) -> tuple[int | None, str]:
    process = spawn(pack_in_process, data, log)
    process.join()
    return process.exitcode, log.read_text()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_packing_onto_a_full_disk_is_a_message_and_keeps_the_old_store(
    disk: Path, tmp_path: Path, share: float
) -> None:
    data = disk / "data"
    write_zip(data, competition_files(train=20, test=4))
    old = pack_tiles(data)
    write_zip(data, competition_files(train=60, test=10))
    needed = 70 * competition.TILE_BYTES
    leave(disk, int(share * needed))
    status, said = pack(data, tmp_path / "log")
    assert status == 1
    assert error_line(said) == f"error: cannot write {data}/store: No space left on device"
    assert not (data / "store.partial").exists()
    assert json.loads((data / "store/manifest.json").read_text())["fingerprint"] == old.fingerprint
    assert np.array_equal(np.load(data / "store" / "train.npy"), old.train.tiles)
    (disk / "filler").unlink()
    status, said = pack(data, tmp_path / "log")
    assert status == 0, said
    assert len(open_store(data).train) == 60


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zip(tmp_path_factory.mktemp("archive"), competition_files(train=600, test=60))


def stored(data: Path) -> dict[str, bytes]:
    """Return what a store consists of."""
    return {path.name: path.read_bytes() for path in sorted((data / "store").iterdir())}


def test_packing_that_is_killed_at_any_instant_packs_the_same_store(
    archive: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy2(archive, data)
    pack(data, tmp_path / "log")
    expected = stored(data)
    shutil.rmtree(data / "store")
    began = time.perf_counter()
    status, said = pack(data, tmp_path / "log")
    length = time.perf_counter() - began
    assert (status, stored(data)) == (0, expected), said
    instants = np.random.default_rng(0)
    for _ in range(KILLS):
        shutil.rmtree(data / "store")
        process = spawn(pack_in_process, data, tmp_path / "log")
        process.join(instants.uniform(0, 1) * length)
        process.kill()
        process.join()
        if (data / "store").exists():
            assert stored(data) == expected
        status, said = pack(data, tmp_path / "log")
        assert (status, stored(data)) == (0, expected), said
        assert not (data / "store.partial").exists()


def test_two_processes_packing_one_folder_are_one_too_many(archive: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy2(archive, data)
    first = spawn(pack_in_process, data, tmp_path / "first.log")
    while first.is_alive() and not (data / "store.partial").exists():
        time.sleep(0.001)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)
    try:
        status, said = pack(data, tmp_path / "second.log")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert status == 1
    assert f"another process is at work in {data}: wait for it" in error_line(said)
    first.join()
    assert first.exitcode == 0, (tmp_path / "first.log").read_text()
    assert len(open_store(data).train) == 600


def write_slowly(path: Path, log: Path) -> None:
    with log.open("w") as sys.stderr, exit_on_error(), atomic_path(path) as partial:
        partial.write_text("first")
        signal.pause()


def test_two_processes_writing_one_file_are_one_too_many(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_text(path, "old")
    first = spawn(write_slowly, path, tmp_path / "log")
    partial = tmp_path / "submission.csv.partial"
    while first.is_alive() and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.001)
    with pytest.raises(KitError, match=r"another process writes .*submission\.csv: wait for it"):
        write_text(path, "second")
    assert partial.read_text() == "first"
    first.kill()
    first.join()
    assert path.read_text() == "old"
    write_text(path, "second")
    assert path.read_text() == "second"
    assert not partial.exists()


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("other")
    (tmp_path / "a.txt.partial").symlink_to(tmp_path / "other.txt")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "other.txt").read_text() == "other"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_the_kit_writes_no_file_in_its_place() -> None:
    """What writes has a temporary file of `kit.base`, or memory, before it."""
    writing = re.compile(r""".*(?:\.write_text\(|\.write_bytes\(|savefig\(|open\("[wx]).*""")
    sources = [*(ROOT / "kit").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]
    lines = [line.strip() for path in sources for line in writing.findall(path.read_text())]
    assert len(lines) > 5
    harmless = ("partial", "buffer", "os.devnull")
    assert not [line for line in lines if not any(word in line for word in harmless)]
