"""What a kernel has left: fetched file by file, checked, moved to where the commands expect it.

.pull-NAME/    beside runs/ and studies/: what has come so far, kept until all of it has
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kit.base import LOCK_NAME, FolderLock, KitError, printable, write_text
from kit.kaggle.client import run_client
from kit.kaggle.credentials import masked
from kit.kaggle.job import FOLDERS, RECORD, SUBMISSION
from kit.kaggle.sums import CHECKSUMS, read_checksums, whole_files

LOG = "kaggle.log"
_MARKER = ".kaggle-partial"


@dataclass(frozen=True)
class Output:
    """What was brought back.

    Attributes
    ----------
    folder
        The run's or the study's; None if the kernel has left none.
    damaged
        Names of files that are not what their checksums say, and were left behind.
    log
        What the kernel printed; None if Kaggle has no log of it.
    """

    folder: Path | None
    damaged: tuple[str, ...]
    log: Path | None


def require_name(name: str) -> None:
    """Refuse a name that Kaggle does not take for a kernel.

    Raises
    ------
    KitError
        With what it takes.
    """
    if not re.fullmatch("[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or not 5 <= len(name) <= 50:
        raise KitError(
            f"--name {name}: give 5 to 50 lower-case letters, digits and single hyphens, a letter "
            "first (Kaggle was seen not to find a name that begins with a digit)"
        )


def require_free(folder: Path, name: str) -> None:
    """Refuse to bring back what is there already.

    Raises
    ------
    KitError
        Naming the folder; or if the name is not one that Kaggle takes.
    """
    require_name(name)
    for place in _places(folder, name):
        if place.exists():
            raise KitError(f"{place} exists: move it away, or name another folder with --out")


def bring_back(kernel: str, folder: Path, *, ended_well: bool) -> Output:
    """Fetch a kernel's output, and move the run or the study in it to its place.

    What has come stays in `folder`/.pull-NAME until all of it has, and the next call goes on.

    Parameters
    ----------
    kernel
        OWNER/NAME.
    folder
        That of runs/ and studies/.
    ended_well
        Whether Kaggle says that it is complete. Then no file may be missing; of any other kernel,
        which may have been ended at any instant, what is whole is taken.

    Raises
    ------
    KitError
        If the client fails, or files came damaged.
    """
    name = kernel.rpartition("/")[2]
    require_free(folder, name)
    staging = folder / f".pull-{name}"
    with FolderLock(staging) as lock:
        damaged = _fetch(kernel, staging, lock)
        if damaged and ended_well:
            raise KitError(
                f"{len(damaged)} files came damaged or not at all, first {damaged[0]}: type "
                "`make pull` again, which goes on with the others"
            )
        output = _move(staging, folder, name, damaged)
    shutil.rmtree(staging)
    return output


def log_lines(log: Path) -> list[str]:
    """Return the lines of a kernel's log, as plain text that steers no terminal."""
    text = masked(log.read_text("utf-8", "replace"))
    # Of a progress bar, which a carriage return draws over itself, the last state counts.
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return [printable(line) for line in lines if line.strip()]


def _places(folder: Path, name: str) -> list[Path]:
    return list(dict.fromkeys(folder / kind / name for kind in FOLDERS.values()))


def _fetch(kernel: str, staging: Path, lock: int) -> list[str]:
    """Fetch a kernel's output until it is whole, or a try brings nothing; return what is not."""
    name = kernel.rpartition("/")[2]
    # Of another version of the kernel, perhaps.
    (staging / CHECKSUMS).unlink(missing_ok=True)
    _run(kernel, staging, lock, f"^{re.escape(CHECKSUMS)}$")
    if not (staging / CHECKSUMS).is_file():
        return []
    pattern = _wanted(name)
    sums = read_checksums(staging).items()
    expected = {file: value for file, value in sums if re.search(pattern, file)}
    error: KitError | None = None
    # Of another version, too.
    _drop_others(staging, expected)
    missing = sorted(expected.keys() - _keep_whole(staging, expected))
    while missing:
        before, error = _size(staging), None
        try:
            with _progress(staging, expected) as show:
                _run(kernel, staging, lock, pattern, show)
        except KitError as failure:
            error = failure
        missing = sorted(expected.keys() - _keep_whole(staging, expected))
        if _size(staging) <= before:
            break
    if missing and error is not None:
        kept = f"\n{before / 1e6:,.1f} MB are kept: the same command goes on from there"
        raise KitError(f"{error}{kept}") from error
    return missing + _drop_others(staging, expected)


def _wanted(name: str) -> str:
    """Return a pattern of the files to fetch: a run or study and its submission, nothing else.

    No sum vouches for files under the names by which they are begun, and none may lead outside.
    """
    places = "|".join(dict.fromkeys(FOLDERS.values()))
    return rf"^(?!.*(\.partial|\.\./))(({places})/{name}/|{SUBMISSION})"


def _drop_others(staging: Path, expected: dict[str, str]) -> list[str]:
    """Delete what came without a sum, as a kernel was ended before that; return its names."""
    dropped = []
    for place in _places(staging, staging.name.removeprefix(".pull-")):
        for path in place.rglob("*"):
            file = path.relative_to(staging).as_posix()
            if path.is_file() and file not in expected and not path.name.endswith(_MARKER):
                path.unlink()
                dropped += [file] if path.name != LOCK_NAME else []
    return dropped


def _run(kernel: str, staging: Path, lock: int, pattern: str, show: "_Show | None" = None) -> None:
    """Have the client fetch files, less those that are there."""
    options = (kernel, f"--path={staging}", f"--file-pattern={pattern}")
    run_client("output", *options, group="kernels", lock=lock, watch=show or (lambda: None))


def _keep_whole(staging: Path, expected: dict[str, str]) -> set[str]:
    """Delete what is damaged, apart from what the client can go on with; return what is whole."""
    whole = whole_files(staging, expected)
    for name in expected.keys() - whole:
        path = staging / name
        if not path.with_name(f"{path.name}{_MARKER}").exists():
            path.unlink(missing_ok=True)
    return whole


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _Show:
    """How far a download is, in files and bytes."""

    def __init__(self, staging: Path, names: list[str], bar: "tqdm[Any]") -> None:
        self._staging, self._names, self._bar = staging, names, bar

    def __call__(self) -> None:
        self._bar.n = sum((self._staging / name).is_file() for name in self._names)
        self._bar.set_postfix_str(f"{_size(self._staging) / 1e6:,.1f} MB", refresh=True)


@contextmanager
def _progress(staging: Path, expected: dict[str, str]) -> Iterator[_Show]:
    bar: tqdm[Any]
    with tqdm(total=len(expected), desc="fetching", unit=" files", file=sys.stderr) as bar:
        show = _Show(staging, list(expected), bar)
        yield show
        show()


def _move(staging: Path, folder: Path, name: str, damaged: list[str]) -> Output:
    """Move what has come to its place, the log with it."""
    log = staging / f"{name}.log"
    if log.is_file():
        write_text(log, _plain_log(log.read_text("utf-8", "replace")))
    found = next((place for place in _places(staging, name) if place.is_dir()), None)
    if found is None or not any(path.is_file() for path in found.rglob("*")):
        kept = folder / f"{name}.log"
        if not log.is_file():
            return Output(None, tuple(damaged), None)
        return Output(None, tuple(damaged), log.replace(kept))
    for extra, place in {SUBMISSION: SUBMISSION, RECORD: RECORD, log.name: LOG}.items():
        if (staging / extra).is_file():
            (staging / extra).replace(found / place)
    for marker in found.rglob(f"*{_MARKER}"):
        marker.with_name(marker.name.removesuffix(_MARKER)).unlink(missing_ok=True)
        marker.unlink()
    target = folder / found.relative_to(staging)
    target.parent.mkdir(parents=True, exist_ok=True)
    found.rename(target)
    return Output(target, tuple(damaged), target / LOG if (target / LOG).is_file() else None)


def _plain_log(text: str) -> str:
    """Return a log's text; Kaggle gives it as a JSON list of pieces, with stream and time."""
    try:
        pieces = json.loads(text)
        return "".join(piece["data"] for piece in pieces)
    except (ValueError, TypeError, KeyError, RecursionError):
        return text
