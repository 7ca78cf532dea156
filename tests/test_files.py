import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.base import KitError, atomic_folder, atomic_path, output_file, temporary_folder, write_text


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


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null"), os.mkdir])
def test_what_is_no_regular_file_is_not_replaced_by_one(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "submission.csv"
    make(path)
    before = path.lstat()
    for write in (output_file, lambda path: write_text(path, "new")):
        with pytest.raises(KitError, match=r"cannot write .*submission\.csv: it is a"):
            write(path)
    assert path.lstat() == before
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_link_that_a_user_names_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("away/there.csv")
    write_text(output_file(tmp_path / "link.csv"), "new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "away" / "there.csv").read_text() == "new"


@pytest.mark.parametrize("name", ["long" * 100 + ".csv", "a.txt/b.csv", "loop/b.csv"])
def test_what_cannot_be_written_is_known_early(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "loop").symlink_to("loop")
    for write in (output_file, lambda path: write_text(path, "new")):
        with pytest.raises(KitError, match="cannot write"):
            write(tmp_path / name)


def test_a_link_to_a_folder_stays_where_its_content_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "store").symlink_to("large")
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "store", marker="whole") as partial:
            assert partial.parent == tmp_path
            (partial / "whole").write_text(text)
        assert (tmp_path / "large" / "whole").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "store"]


def test_a_folder_that_others_have_filled_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis").write_text("mine")
    with (
        pytest.raises(KitError, match=r"store holds other files than the kit's: move it away"),
        atomic_folder(tmp_path / "store", marker="whole"),
    ):
        pass
    assert (tmp_path / "store" / "thesis").read_text() == "mine"


def test_no_usable_temporary_folder_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may write nothing finds none: /tmp and the like are tried by writing."""
    assert temporary_folder().is_dir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(KitError, match="no usable temporary folder: set TMPDIR to a folder"):
            temporary_folder()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
