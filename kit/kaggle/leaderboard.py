"""The competition's final leaderboard, fetched once, and the rank that a score would have there."""

import os
import tempfile
import zipfile
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from kit.base import ARCHIVE, SLUG, KitError, read_table, write_text
from kit.kaggle.client import run_client

_COLUMN = "score"


@dataclass(frozen=True)
class Leaderboard:
    """The teams' scores.

    Attributes
    ----------
    kind
        `private` or `public`: which of a submission's scores is compared with it.
    scores
        In ascending order.
    """

    kind: str
    scores: tuple[float, ...]

    def rank(self, score: str) -> int | None:
        """Return the rank that a score would have had, 1 the best; None if it is no number."""
        try:
            return 1 + len(self.scores) - bisect_right(self.scores, float(score))
        except ValueError:
            return None


def read_leaderboard() -> Leaderboard:
    """Return the leaderboard, from this account's cache if it is there: it is final.

    Raises
    ------
    KitError
        If it cannot be fetched or read.
    """
    for kind in ("private", "public"):
        cached = _cache() / f"{kind}.csv"
        if cached.is_file():
            return _parse(cached.read_bytes(), kind)
    kind, content = _fetch()
    found = _parse(content, kind)
    write_text(_cache() / f"{kind}.csv", content.decode("utf-8"))
    return found


def _cache() -> Path:
    top = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(top, "histopathologic-cancer-kit", "leaderboard")


def _fetch() -> tuple[str, bytes]:
    """Return the kind of the leaderboard that Kaggle gives, and its table."""
    # In a folder of its own: the client calls it by the name of the competition's data.
    with tempfile.TemporaryDirectory() as folder:
        run_client("leaderboard", SLUG, "--download", f"--path={folder}", "--quiet")
        try:
            with zipfile.ZipFile(Path(folder, ARCHIVE)) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith(".csv"))
                content = archive.read(name)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise KitError(f"Kaggle's leaderboard is no zip of one table: {error}") from error
    return ("public" if "public" in name.lower() else "private"), content


def _parse(content: bytes, kind: str) -> Leaderboard:
    table = read_table(content, [_COLUMN], source=f"{kind} leaderboard")
    try:
        scores = sorted(float(value) for value in table[_COLUMN] if value)
    except ValueError as error:
        raise KitError(f"the {kind} leaderboard has a score that is no number: {error}") from error
    return Leaderboard(kind, tuple(scores))
