"""Measured processes: started one after another, asked for their rounds in turn, one at a time."""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kit.base import KitError

HERE = Path(__file__).resolve().parent
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Peer:
    """A script of this folder, what it is given, and who runs it."""

    script: str
    options: Mapping[str, Any]
    python: str = sys.executable


@dataclass
class Result:
    """What a peer did in all its rounds.

    Attributes
    ----------
    tiles
        Per round; 0 where tiles are not what it counts in.
    seconds
        Of each round.
    setup_seconds
        From starting the process to the end of its warm-up.
    peak_rss, peak_anonymous
        Bytes, over set-up and rounds, summed over the process and those it started.
    unavailable
        Why there is nothing else here.
    """

    measurement: str
    case: str
    peer: str
    tiles: int = 0
    seconds: list[float] = field(default_factory=list)
    setup_seconds: float = 0.0
    peak_rss: int = 0
    peak_anonymous: int = 0
    settings: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    unavailable: str = ""

    @property
    def median(self) -> float:
        """The median round's seconds."""
        return statistics.median(self.seconds)

    @property
    def rates(self) -> list[float]:
        """Tiles per second of each round."""
        return [self.tiles / seconds for seconds in self.seconds]


class Child:
    """A running peer."""

    def __init__(self, peer: Peer, result: Result, log: Path) -> None:
        self.result = result
        self.log = log
        command = [peer.python, str(HERE / peer.script), json.dumps(dict(peer.options))]
        self.started = time.perf_counter()
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Leaves when its questions end; one that has crashed has left already.
        with suppress(BrokenPipeError):
            self.process.communicate()

    def warm_up(self) -> None:
        """Wait until the peer is ready, or says why it cannot be had."""
        reply = self._listen()
        self.result.setup_seconds = time.perf_counter() - self.started
        self.result.settings = reply.get("settings", "")
        self.result.versions = reply.get("versions", {})
        self.result.unavailable = reply.get("unavailable", "")

    def round(self) -> None:
        """Let the peer do one round and keep its time."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write("round\n")
            self.process.stdin.flush()
        reply = self._listen()
        self.result.tiles = reply["tiles"]
        self.result.seconds.append(reply["seconds"])

    def _listen(self) -> dict[str, Any]:
        """Wait for an answer, watching the peer's memory."""
        assert self.process.stdout is not None
        with watch_memory(self.process.pid, self.result):
            line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-15:])
            raise KitError(f"{self.result.peer} ({self.result.case}) failed:\n{tail}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def interleave(
    measurement: str, case: str, peers: Mapping[str, Peer], *, rounds: int, work: Path
) -> list[Result]:
    """Start every peer, then give each one round in turn, `rounds` times over.

    Only one peer works at a time; what slows the machine for a while slows all of them.

    Raises
    ------
    KitError
        If a peer fails, with the end of what it said.
    """
    results = [Result(measurement, case, name) for name in peers]
    with ExitStack() as stack:
        children = []
        for number, (result, peer) in enumerate(zip(results, peers.values(), strict=True)):
            print(f"{measurement}, {case}: starting {result.peer}", file=sys.stderr)
            child = stack.enter_context(Child(peer, result, work / f"peer-{number}.log"))
            child.warm_up()
            if not result.unavailable:
                children.append(child)
        for number in range(rounds):
            print(f"{measurement}, {case}: round {number + 1} of {rounds}", file=sys.stderr)
            for child in children:
                child.round()
    return results


@contextmanager
def watch_memory(pid: int, result: Result) -> Iterator[None]:
    """Raise a result's peaks to the memory of a process and its descendants."""
    done = threading.Event()

    def sample() -> None:
        finished = False
        while not finished:
            # Once more at the end, for what is over in less than a sample.
            finished = done.wait(SAMPLE_SECONDS)
            resident, anonymous = tree_memory(pid)
            result.peak_rss = max(result.peak_rss, resident)
            result.peak_anonymous = max(result.peak_anonymous, anonymous)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def tree_memory(pid: int) -> tuple[int, int]:
    """Return the resident and the anonymous bytes of a process and its descendants, from /proc.

    A page that several of them share counts in each. Both are 0 where there is no /proc.
    """
    resident = anonymous = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                resident = 1024 * int(line.split()[1])
            elif line.startswith("RssAnon:"):
                anonymous = 1024 * int(line.split()[1])
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                more = tree_memory(int(child))
                resident, anonymous = resident + more[0], anonymous + more[1]
    except (FileNotFoundError, ProcessLookupError):
        # It ended while it was looked at.
        pass
    return resident, anonymous
