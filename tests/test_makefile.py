"""The Makefile hands words over whole, and says where things are."""

import os
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
# In the order in which `make demo` makes them.
DEMO = [
    "demo/data/store/manifest.json",
    "demo/runs/before/metrics.json",
    "demo/submission.csv",
]


def make(folder: Path, *words: str) -> list[str]:
    """Run make where `python` tells each of its words on a line, and nothing is to be installed."""
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    for name in (".venv/installed", *DEMO):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("setup.cfg", "pyproject.toml"):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    done = subprocess.run(
        ["make", "--silent", "-f", str(MAKEFILE), *words],
        cwd=folder,
        env=os.environ | {"HOME": "/home/me"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("given", "handed"),
    [
        ("My Drive/d", "My Drive/d"),
        ('it\'s "here"; $$HOME', 'it\'s "here"; $HOME'),
        ("~/My Drive/d", "/home/me/My Drive/d"),
    ],
)
@pytest.mark.parametrize("target", ["download", "pack", "train", "best"])
def test_a_folder_may_have_any_name(tmp_path: Path, target: str, given: str, handed: str) -> None:
    said = make(tmp_path, target, f"DATA={given}")
    assert said == [f"kernels/{target}.py", "--data", handed]


def test_a_second_demo_says_where_things_are(tmp_path: Path) -> None:
    said = "\n".join(make(tmp_path, "demo"))
    assert "kernels/" not in said
    for place in ("demo/data", "demo/runs/before", "demo/submission.csv"):
        assert place in said


@pytest.mark.parametrize(
    ("target", "handed"),
    [
        ("push", ["--command", "train", "--name", "my run", "--", "--slides", "a b.csv"]),
        ("pull", ["--name", "my run", "--slides", "a b.csv"]),
    ],
)
def test_a_kernel_that_is_misnamed_is_named_whole(
    tmp_path: Path, target: str, handed: list[str]
) -> None:
    said = make(tmp_path, target, "NAME=my run", "ARGS=--slides 'a b.csv'")
    assert said == [f"kernels/{target}.py", *handed]


@pytest.mark.parametrize(
    ("words", "handed"),
    [
        ((), ["--run", "runs/notebook-before-0"]),
        (("RUN=runs/a b/",), ["--run", "runs/a b/"]),
        (("FILE=my best.csv",), ["--file", "my best.csv"]),
        # The command says that one is enough.
        (("FILE=a.csv", "RUN=runs/a"), ["--run", "runs/a", "--file", "a.csv"]),
    ],
)
def test_submit_hands_over_what_is_named(
    tmp_path: Path, words: tuple[str, ...], handed: list[str]
) -> None:
    said = make(tmp_path, "submit", *words, "MESSAGE=it's mine")
    assert said == ["kernels/submit.py", *handed, "--data", "data", "--message", "it's mine"]
