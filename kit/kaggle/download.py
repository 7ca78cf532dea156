"""The competition's archive: fetched by Kaggle's client, resumed, and believed when it is there."""

import json
import os
import re
import select
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kit.base import ARCHIVE, LOCK_NAME, SLUG, TILE_BYTES, FileLock, KitError
from kit.kaggle import client
from kit.kaggle.client import (
    SilenceError,
    client_command,
    client_environment,
    count,
    parse_rows,
    run_client,
)
from kit.kaggle.credentials import credential, without_secrets
from kit.kaggle.faults import GATEWAY, SILENCE, explain

TILES = 277_483
ARCHIVE_BYTES = 6_800_000_000
"""The competition's zip, which clients show as 6.31 GiB."""


def is_downloaded(folder: Path) -> bool:
    """Whether a folder holds the archive, and not the part of one that a bare client leaves."""
    archive = folder / ARCHIVE
    return archive.exists() and not _marker(archive).exists()


def download_archive(folder: Path) -> Path:
    """Fetch the competition's archive into a folder, with progress on stderr.

    The client writes into `folder`/download, and the archive moves up when it is there in full:
    no half-written file ever has its name. A partial one is resumed. An archive that is there
    already is returned as it is; its bytes are proved by packing it.

    Raises
    ------
    KitError
        If there is no credential or too little space, or if the client fails.
    KeyboardInterrupt
        On Ctrl-C, which the client itself takes for a success. The partial file stays.
    """
    archive = folder / ARCHIVE
    if is_downloaded(folder):
        return archive
    credential()
    staging = folder / "download"
    partial = staging / ARCHIVE
    with _lock(staging) as lock:
        try:
            _adopt(archive, staging)
            if not _came_repacked(partial):
                _drop_unless_resumable(partial)
                _require_space(folder, kept=_size(partial))
                _fetch(partial, lock)
            partial.replace(archive)
        finally:
            if not partial.exists():
                shutil.rmtree(staging)
    return archive


def _marker(archive: Path) -> Path:
    """Return the file by which the client knows that an archive is partial, and of what."""
    return archive.with_name(f"{archive.name}.kaggle-partial")


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Keep a second download out of a folder.

    The client inherits the lock: if it outlives this process, no other one can write there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME, wait=False)
    except BlockingIOError as error:
        raise KitError(f"another download into {folder} is under way: wait for it") from error
    except OSError as error:
        raise KitError(f"cannot write into {folder}: {error.strerror}") from error
    with lock as descriptor:
        yield descriptor


def _adopt(archive: Path, staging: Path) -> None:
    """Go on with a partial archive that the bare client has left behind."""
    if _marker(archive).exists():
        # The archive first: without its marker it would pass for whole.
        for path in (archive, _marker(archive)):
            if path.exists():
                path.replace(staging / path.name)


def _drop_unless_resumable(partial: Path) -> None:
    """Delete a partial file that must not be resumed.

    One that is larger than it may become is not: the client takes it for whole.

    When a link expires under a download, kaggle 2.2.4 writes the server's error page over the
    partial file, from its first byte, and resumes onto that the next time: the size comes out
    right and the bytes wrong. A zip begins with its first member's signature; a page never does.
    What does begin so is worth keeping: if it is wrong nevertheless, packing finds out.
    """
    noted = _noted_size(partial)
    too_large = noted is not None and _size(partial) > noted
    if partial.exists() and (too_large or not _is_zip(partial)):
        partial.unlink()
        _marker(partial).unlink(missing_ok=True)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _require_space(folder: Path, kept: int) -> None:
    """Check that what is still to come fits: the client would fail hours later, or never end."""
    archive, store = _sizes()
    needed = archive - kept + store
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise KitError(
            f"{folder} needs {needed / 1e9:.1f} GB ({(archive - kept) / 1e9:.1f} to download and "
            f"{store / 1e9:.1f} for the packed tiles), and its disk has {free / 1e9:.1f} GB "
            "free.\nMake room, or name a folder on another disk with --data"
        )


def _sizes() -> tuple[int, int]:
    """Return the bytes of the archive and of the packed tiles, the first as an upper bound.

    Kaggle lists files by the page, which says nothing of a total unless there is one page only.
    """
    said = run_client("files", SLUG, "--format", "json", "--page-size", "200")
    if "Next Page Token" not in said:
        files = [(str(row.get("name")), count(row.get("size"))) for row in parse_rows(said)]
        tiles = sum(name.endswith(".tif") for name, _ in files)
        sizes = [size for _, size in files if size is not None]
        if tiles and len(sizes) == len(files):
            return sum(sizes), tiles * TILE_BYTES
    return ARCHIVE_BYTES, TILES * TILE_BYTES


def _fetch(partial: Path, lock: int) -> None:
    """Run the client's download, and believe its result only when it lies on disk."""
    command = client_command("download", SLUG, f"--path={partial.parent}")
    with subprocess.Popen(
        command,
        env=client_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(lock,),
    ) as process:
        try:
            assert process.stdout
            said = _relay(_lines(process.stdout))
        except SilenceError as error:
            process.terminate()
            said = str(error)
        except BaseException:
            process.terminate()
            raise
    if "User cancelled operation" in said:
        raise KeyboardInterrupt
    if _came_repacked(partial):
        return
    if process.returncode or not _is_whole(partial) or not _is_zip(partial):
        _drop_unless_resumable(partial)
        reason = explain(said) if process.returncode else GATEWAY
        kept = _size(partial) / 1e6
        resume = f"\n{kept:,.1f} MB are kept: the same command goes on from there"
        raise KitError(f"{reason}{resume if kept else ''}")


def _is_whole(archive: Path) -> bool:
    """Whether an archive has its full size, as far as the client has noted it."""
    noted = _noted_size(archive)
    return archive.exists() if noted is None else noted == _size(archive)


def _came_repacked(archive: Path) -> bool:
    """Whether an archive is whole though it is larger than the client was told.

    A proxy that compresses what it passes on tells the compressed size. Packing proves the bytes.
    """
    noted = _noted_size(archive)
    is_larger = noted is not None and _size(archive) > noted
    return is_larger and _is_zip(archive) and zipfile.is_zipfile(archive)


def _noted_size(archive: Path) -> int | None:
    """Return the size that an archive will have, as the client was told; None if it was not."""
    try:
        noted = json.loads(_marker(archive).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return count(noted.get("size")) if isinstance(noted, dict) else None


def _lines(pipe: IO[bytes]) -> Iterator[str]:
    """Yield what a process says by lines, a progress bar's states among them.

    Raises
    ------
    SilenceError
        When it has said nothing for too long.
    """
    begun = b""
    while select.select([pipe], [], [], client.PATIENCE)[0]:
        content = os.read(pipe.fileno(), 65_536)
        *lines, begun = re.split(rb"[\r\n]", begun + content)
        yield from (f"{line.decode('utf-8', 'replace')}\n" for line in lines)
        if not content:
            yield begun.decode("utf-8", "replace")
            return
    raise SilenceError(SILENCE.format(client.PATIENCE))


_NEWS = re.compile("Resuming|Retry|Rate limited|Connection error")


def _relay(lines: Iterable[str]) -> str:
    """Pass the client's progress on to stderr as it comes; return all else that it says."""
    said = []
    bar = False
    for line in lines:
        if "%|" in line:
            print(f"\r{line.rstrip()}", end="", file=sys.stderr, flush=True)
            bar = True
        elif _NEWS.match(line):
            print("\n" * bar + without_secrets(line.rstrip()), file=sys.stderr, flush=True)
            bar = False
        else:
            said.append(line)
    print("\n" * bar, end="", file=sys.stderr)
    return "".join(said)
