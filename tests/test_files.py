import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kit.base import KitError, atomic_path, write_text


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "one\ntwo\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"one\ntwo\r\n"


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(KitError, match=r"cannot write .*a/b\.txt"):
        write_text(tmp_path / "a" / "b.txt", "text")


def test_a_full_disk_is_a_message_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with (
        pytest.raises(KitError, match=r"cannot write .*a\.txt: No space left on device"),
        atomic_path(tmp_path / "a.txt"),
        Path("/dev/full").open("w") as full,
    ):
        full.write("new")
        full.flush()
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_reader_that_goes_away_ends_a_command_silently() -> None:
    code = (
        "from kit.base import exit_on_error\n"
        "with exit_on_error():\n"
        "    for line in range(10**6):\n"
        "        print(line)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
