"""Each time the figures of a study were shown, and what a verdict is worth that was seen before.

OUT/looks.json   seeds, time and verdict of each showing
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from kit import stats
from kit.base import FolderLock, read_json, write_json

LOOKS_FILE = "looks.json"


@dataclass(frozen=True)
class Look:
    """A showing of a study's figures.

    Attributes
    ----------
    verdict
        What was said.
    conclusive
        Whether it could have shown a difference. Looks that could not cost nothing: whatever
        they showed, the first that could keeps its 5 %.
    time
        In UTC.
    """

    seeds: tuple[int, ...]
    verdict: str
    conclusive: bool
    time: str


def read_looks(folder: Path) -> list[Look]:
    """Read when a study's figures were shown, in that order; nothing if never.

    Raises
    ------
    KitError
        If the file is damaged.
    """
    path = folder / LOOKS_FILE
    if not path.exists():
        return []
    return read_json(path, list[Look], what="the record of a study's looks")


def record_look(
    folder: Path,
    seeds: Sequence[int],
    verdict: str,
    *,
    conclusive: bool,
    held_out_to_trained: float | None = None,
) -> str:
    """Record that a study's figures are shown, and return what its verdict is worth.

    The verdict of the first look that could show a difference is the one that errs in 5 %. If the
    seeds are others than at that look, it stands, and the new one is told beside it with how often
    such a one is false.

    Parameters
    ----------
    verdict
        Of all seeds.
    held_out_to_trained
        As in `Holdouts`.

    Raises
    ------
    KitError
        If the record of earlier looks is damaged.
    """
    time = datetime.now(UTC).isoformat(timespec="seconds")
    with FolderLock(folder, wait=True):
        looks = [*read_looks(folder), Look(tuple(seeds), verdict, conclusive, time)]
        write_json(folder / LOOKS_FILE, [asdict(look) for look in looks])
    counting = [look for look in looks if look.conclusive]
    if not conclusive or set(counting[0].seeds) == set(seeds):
        return verdict
    numbers = list(dict.fromkeys(len(look.seeds) for look in counting))
    share = stats.false_share(numbers, held_out_to_trained or 0.0)
    first = counting[0]
    return (
        f"The verdict that counts is that of the first look, with {len(first.seeds)} seeds: "
        f"{first.verdict} Seeds were added or changed after it was seen. Of studies of two equal "
        f"arms looked at with {_list(numbers)} seeds {share:.0%} call one better, not 5 %; so of "
        f"{len(seeds)} seeds this is no verdict: {verdict} A study in another --out, with other "
        "seeds (--seed) and their number fixed before, could give one."
    )


def _list(numbers: Sequence[int]) -> str:
    *some, last = map(str, numbers)
    return f"{', '.join(some)} and {last}" if some else last
