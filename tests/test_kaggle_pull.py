"""Bringing back what a kernel has left, with the unmodified client, against a server of our own."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from conftest import ROOT, kernel
from kaggle_server import (
    KEY,
    SIGNATURE,
    Cut,
    KaggleServer,
    Stall,
    Trickle,
    move_in,
    page,
    refusal,
    serve,
    until,
)
from warm_client import start_for_real

from kit import kaggle
from kit.base import LOCK_NAME, KitError
from kit.kaggle import client
from kit.kaggle.sums import CHECKSUMS, Checksums

CLIENT = tuple(map(int, version("kaggle").split(".")[:3]))
NAME = "hcd-before"
KERNEL = f"nobody/{NAME}"
RUN = f"runs/{NAME}"
LAST = f"{RUN}/last.pt"
# The client writes in steps of 1 MiB.
CONTENT = bytes(range(256)) * 16_000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """Return a server that this process and its children take for Kaggle, with an output."""
    with serve() as fake:
        move_in(fake, tmp_path, monkeypatch)
        fake.output = output()
        yield fake


def output() -> dict[str, bytes]:
    """Return what a kernel leaves that has made a run, over several pages of a listing."""
    files = {f"{RUN}/figures/{number}.json": b"%d" % number for number in range(42)}
    files |= {LAST: CONTENT, f"{RUN}/metrics.json": b"{}", "submission.csv": b"id,label\n"}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    others = {"__results__.html": b"<html>", f"{RUN}/last.pt.partial": b"begun"}
    return others | files | {CHECKSUMS: json.dumps(sums).encode()}


def pull(*options: str) -> CompletedProcess[str]:
    done = kernel("pull", "--name", NAME, *options)
    assert_discreet(done.stdout + done.stderr)
    return done


def assert_discreet(said: str) -> None:
    assert "Traceback" not in said
    assert KEY not in said
    assert SIGNATURE not in said


def listing(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return {str(path.relative_to(folder)) for path in files}


def test_brings_back_a_run_of_many_files_and_overwrites_nothing(server: KaggleServer) -> None:
    done = pull()
    assert done.returncode == 0, done.stderr
    assert f"{RUN}: checked, of a kernel that ended as COMPLETE" in done.stdout
    assert f"next: python kernels/submit.py --run {RUN}" in done.stdout
    names = {name.removeprefix(f"{RUN}/") for name in json.loads(server.output[CHECKSUMS])}
    assert listing(Path(RUN)) == names | {"kaggle.log"}
    assert Path(LAST).read_bytes() == CONTENT
    assert not server.asked("__results__.html")
    assert not list(Path().glob(".pull-*"))
    server.requests.clear()
    again = pull()
    assert again.returncode == 1
    assert f"{RUN} exists: move it away" in again.stderr
    assert not server.requests


def test_the_submission_of_a_notebook_is_found(server: KaggleServer) -> None:
    files = {name: content for name, content in output().items() if name == "submission.csv"}
    files |= {f"studies/{NAME}/bn/study.json": b"{}"}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    server.output = files | {CHECKSUMS: json.dumps(sums).encode()}
    done = pull()
    assert done.returncode == 0, done.stderr
    sent = f"--file studies/{NAME}/submission.csv"
    assert f"next: python kernels/submit.py {sent}" in done.stdout


def test_only_silence_ends_it(server: KaggleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that comes slowly is waited for, far longer than silence would be."""
    start_for_real(monkeypatch)
    monkeypatch.setattr(client, "PATIENCE", 2.5)
    server.output_faults = {LAST: [Trickle(5)]}
    got = kaggle.bring_back(KERNEL, Path(), ended_well=True)
    assert got.folder == Path(RUN)
    assert Path(LAST).read_bytes() == CONTENT


def test_a_stall_ends_it_and_what_has_come_is_kept(
    server: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_for_real(monkeypatch)
    monkeypatch.setattr(client, "PATIENCE", 3)
    server.output_faults = {LAST: [Stall(2_500_000), *[Stall(0)] * 9]}
    with pytest.raises(KitError, match=r"nothing came for 3 s.*\n.*MB are kept: the same command"):
        kaggle.bring_back(KERNEL, Path(), ended_well=True)
    server.requests.clear()
    server.output_faults.clear()
    kaggle.bring_back(KERNEL, Path(), ended_well=True)
    assert Path(LAST).read_bytes() == CONTENT
    starts = [headers.get("Range") for headers in server.asked(LAST)]
    assert any(starts) == (CLIENT >= (2, 2, 5)), "2.2.4 begins each file from its start"


@pytest.mark.parametrize("fault", [Cut(2_500_000), page(403, "the link has expired")])
def test_goes_on_by_itself_while_anything_comes(server: KaggleServer, fault: object) -> None:
    """kaggle 2.2.4 writes an error page as if it were the file."""
    server.output_faults = {LAST: [fault]}  # type: ignore[list-item]
    kaggle.bring_back(KERNEL, Path(), ended_well=True)
    assert Path(LAST).read_bytes() == CONTENT


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_request_to_stop_keeps_what_has_come(
    server: KaggleServer, number: signal.Signals, status: int
) -> None:
    server.output_faults = {LAST: [Stall(2_500_000)]}
    line = [sys.executable, ROOT / "kernels" / "pull.py", "--name", NAME]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: server.asked(LAST))
        with pytest.raises(KitError, match="another process is at work in"):
            kaggle.bring_back(KERNEL, Path(), ended_well=True)
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == status
    assert "what has come is kept, and the same command goes on" in said
    assert_discreet(said)
    server.requests.clear()
    assert pull().returncode == 0
    assert Path(LAST).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LAST, b"<html>the link has expired</html>", f"1 files came damaged .*first {LAST}"),
        (LAST, None, f"1 files came damaged or not at all, first {LAST}"),
        (CHECKSUMS, b"<html>the link has expired</html>", f"{CHECKSUMS} came damaged"),
    ],
)
def test_a_complete_kernel_has_to_come_whole(
    server: KaggleServer, name: str, content: bytes | None, message: str
) -> None:
    server.output = {k: v for k, v in server.output.items() if k != name}
    server.output |= {name: content} if content else {}
    with pytest.raises(KitError, match=message):
        kaggle.bring_back(KERNEL, Path(), ended_well=True)
    assert not Path(RUN).exists()


def test_nothing_outside_is_fetched_or_deleted(server: KaggleServer) -> None:
    """Whatever a kernel has listed and summed."""
    Path("mine").write_text("mine")
    names = (f"{RUN}/../../../mine", "../mine", str(Path("mine").absolute()))
    sums = json.loads(server.output[CHECKSUMS]) | dict.fromkeys(names, "0")
    server.output |= dict.fromkeys(names, b"theirs")
    server.output[CHECKSUMS] = json.dumps(sums).encode()
    kaggle.bring_back(KERNEL, Path(), ended_well=True)
    assert Path("mine").read_text() == "mine"
    assert Path(LAST).read_bytes() == CONTENT


def test_of_a_kernel_that_was_stopped_what_is_whole_is_taken(server: KaggleServer) -> None:
    """It was ended between a checkpoint and its sum, say."""
    server.kernel_status = "CANCEL_ACKNOWLEDGED"
    server.output[LAST] = b"a later checkpoint"
    server.output.pop(f"{RUN}/metrics.json")
    server.output[f"{RUN}/valid.csv"] = b"not summed yet"
    server.output[f"{RUN}/.lock"] = b""
    done = pull()
    assert done.returncode == 0, done.stderr
    left_out = f"{LAST}, {RUN}/metrics.json, {RUN}/valid.csv"
    assert f"not whole, and left out: {left_out}\n" in done.stdout
    assert "push it again with the same options and --resume" in done.stdout
    assert len(listing(Path(RUN))) == 42 + 2
    assert "the kernel ended as CANCEL_ACKNOWLEDGED" in done.stderr


LOG = [f"line {number}\n" for number in range(40)] + ["error: no GPU that\n", "\x1b[2Jhello\n"]
PIECES = [{"stream_name": "stdout", "time": 1.0, "data": line} for line in LOG]


@pytest.mark.parametrize(
    ("left", "log"), [("a run", json.dumps(PIECES)), ("nothing", "".join(LOG))]
)
def test_the_log_of_a_kernel_that_failed_is_told_and_kept(
    server: KaggleServer, left: str, log: str
) -> None:
    server.kernel_status, server.failure, server.log = "ERROR", "exit code 1", log
    server.output = output() if left == "a run" else {"__results__.html": b""}
    done = pull()
    kept = Path(f"{RUN}/kaggle.log" if left == "a run" else f"{NAME}.log")
    assert done.returncode == (0 if left == "a run" else 1)
    assert "the kernel ended as ERROR exit code 1" in done.stderr
    assert "  error: no GPU that\n  \\x1b[2Jhello\n" in done.stderr
    assert "line 20\n" not in done.stderr
    assert f"the whole log: {kept}" in done.stderr
    assert kept.read_text() == "".join(LOG)


def test_takes_no_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"--name \.\./escape: give 5 to 50 lower-case letters"):
        kaggle.require_free(tmp_path, "../escape")
    with pytest.raises(KitError, match=r"--name 1st-run.*begins with a digit"):
        kaggle.require_free(tmp_path, "1st-run")


@pytest.mark.usefixtures("server")
def test_says_where_it_cannot_write() -> None:
    Path("taken").touch()
    done = pull("--out", "taken")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write into taken/.pull-{NAME}: ")


def test_waits_for_the_kernel_to_end(server: KaggleServer) -> None:
    server.kernel_status = "RUNNING"
    done = pull()
    assert done.returncode == 1
    assert f"{KERNEL} is RUNNING: wait for its end" in done.stderr


def test_tells_of_a_kernel_that_is_not_there(server: KaggleServer) -> None:
    server.refusals = {"GetKernelSessionStatus": refusal(403, "Permission 'kernels.get' denied")}
    with pytest.raises(KitError, match="has no kernel of that name on Kaggle"):
        kaggle.kernel_status(KERNEL)


class TestChecksums:
    def test_are_those_of_all_finished_files(self, tmp_path: Path) -> None:
        for name in (LAST, f"{RUN}/.lock", f"{RUN}/log.partial", f"{RUN}/a.partial/b", "other"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        sums = Checksums(tmp_path, [RUN, "submission.csv"])
        sums.update()
        assert written(tmp_path) == {LAST: digest(LAST)}
        (tmp_path / "submission.csv").write_text("1")
        (tmp_path / LAST).write_text("2")
        sums.update()
        assert written(tmp_path) == {LAST: digest("2"), "submission.csv": digest("1")}
        (tmp_path / LAST).unlink()
        sums.update()
        assert written(tmp_path) == {"submission.csv": digest("1")}

    def test_a_file_is_summed_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "submission.csv").write_text("1")
        sums = Checksums(tmp_path, ["submission.csv"])
        sums.update()
        monkeypatch.setattr(hashlib, "file_digest", None)
        (tmp_path / CHECKSUMS).unlink()
        sums.update()
        assert not (tmp_path / CHECKSUMS).exists()


def written(folder: Path) -> dict[str, str]:
    sums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text())
    return sums


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
