"""The whole way: a token, a push that is killed, one that goes on, a pull, a submission, a score.

The unmodified client talks to a server of our own, and the pushed script runs in an imitation of
Kaggle's container.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import competition_files, write_folder
from kaggle_server import KEY, TOKEN, KaggleServer, move_in, serve, until

from kit.kaggle.sums import CHECKSUMS

ROOT = Path(__file__).parents[1]
NAME = "my-first-run"
RUN = f"runs/{NAME}"
OPTIONS = [
    "--no-gpu",
    "--",
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--folds",
    "2",
    "--checkpoint-steps",
    "1",
]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """Return a server; the account has a token of today, and nothing else."""
    with serve() as fake:
        move_in(fake, tmp_path, monkeypatch)
        monkeypatch.delenv("KAGGLE_USERNAME")
        monkeypatch.delenv("KAGGLE_KEY")
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
        yield fake


def command(name: str, *options: str) -> str:
    argv = [sys.executable, ROOT / "kernels" / f"{name}.py", *options]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [secret for secret in (KEY, TOKEN) if secret in done.stdout + done.stderr]
    return done.stdout + done.stderr


class Container:
    """A container of Kaggle's that runs what was pushed, with the output of the version before."""

    def __init__(self, folder: Path, server: KaggleServer) -> None:
        self.root = folder / "kaggle"
        self.folder = folder
        self.working = self.root / "working"
        for made in (self.working, self.root / "temp"):
            made.mkdir(parents=True)
        mount = self.root / "input/competitions/histopathologic-cancer-detection"
        write_folder(mount, competition_files(train=120, test=9))
        for kernel in server.pushed.get("kernelDataSources", []):
            write_folder(self.root / "input/notebooks" / kernel, server.output)
        (folder / "script.py").write_text(server.pushed["text"])

    def start(self) -> "subprocess.Popen[bytes]":
        environment = {"HCD_KAGGLE_ROOT": str(self.root), "TMPDIR": str(self.folder)}
        return subprocess.Popen(
            [sys.executable, self.folder / "script.py"],
            cwd=self.folder,
            env=os.environ | environment,
            start_new_session=True,
        )

    def output(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.working).as_posix(): path.read_bytes()
            for path in self.working.rglob("*")
            if path.is_file()
        }


@pytest.mark.soak
def test_from_the_token_to_the_score(server: KaggleServer, tmp_path: Path) -> None:
    said = command("push", "--name", NAME, *OPTIONS)
    assert "with the API token in KAGGLE_API_TOKEN" in said
    assert f"next, once it has ended: python kernels/pull.py --name {NAME}" in said

    first = Container(tmp_path / "first", server)
    with first.start() as process:
        sums = first.working / CHECKSUMS
        until(lambda: sums.exists() and "fold-0/last.pt" in sums.read_text(), seconds=120)
        os.killpg(process.pid, signal.SIGKILL)
    server.output, server.kernel_status = first.output(), "CANCEL_ACKNOWLEDGED"
    said = command("pull", "--name", NAME, "--out", "before")
    assert "of a kernel that ended as CANCEL_ACKNOWLEDGED" in said

    command("push", "--name", NAME, "--resume", *OPTIONS)
    second = Container(tmp_path / "second", server)
    with second.start() as process:
        assert process.wait() == 0
    server.output, server.kernel_status = second.output(), "COMPLETE"
    said = command("pull", "--name", NAME)
    assert f"next: python kernels/submit.py --run {RUN}" in said

    write_folder(Path("data"), competition_files(train=120, test=9))
    said = command("submit", "--run", RUN)
    assert "public score  0.95123" in said
    assert len(pd.read_csv(Path(RUN, "submission.csv"))) == 9
    assert server.uploaded == Path(RUN, "submission.csv").read_bytes()
