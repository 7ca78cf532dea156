from pathlib import Path

import pytest

from kit import files
from kit.errors import KitError


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    files.write_text(tmp_path / "new" / "a.txt", "one\ntwo\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"one\ntwo\r\n"


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), files.atomic_path(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(KitError, match=r"cannot write .*a/b\.txt"):
        files.write_text(tmp_path / "a" / "b.txt", "text")


def test_a_full_disk_is_a_message_and_keeps_the_old_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "old")
    with (
        pytest.raises(KitError, match=r"cannot write .*a\.txt: No space left on device"),
        files.atomic_path(tmp_path / "a.txt"),
        Path("/dev/full").open("w") as full,
    ):
        full.write("new")
        full.flush()
    assert (tmp_path / "a.txt").read_text() == "old"
