"""Everything that talks to Kaggle, through its own command line run as a child process.

Importing the client authenticates, prints and may call the network, so it is never imported.
Its exit status proves nothing: 0 also follows Ctrl-C and an upload that failed. What counts is
what lies on disk, and what Kaggle itself lists.
"""

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

from kit.base import ARCHIVE, LOCK_NAME, RULES_PAGE, SLUG, TILE_BYTES, FileLock, KitError

SETTINGS_PAGE = "https://www.kaggle.com/settings"
SUBMISSIONS_PAGE = f"https://www.kaggle.com/c/{SLUG}/submissions"

PATIENCE = 300.0
"""Seconds without a word or a byte after which the client is given up: it would wait for ever."""

Status = Literal["PENDING", "COMPLETE", "ERROR"]


class _SilenceError(KitError):
    """Nothing came for `PATIENCE` seconds."""


@dataclass(frozen=True)
class Submission:
    """One row of Kaggle's list of submissions.

    Attributes
    ----------
    date
        ISO 8601, UTC.
    public_score, private_score
        As Kaggle writes them; empty while there is none.
    """

    ref: int
    date: str
    file_name: str
    description: str
    status: Status
    public_score: str
    private_score: str


def credential() -> str:
    """Name the credential that the client sends, and where it comes from; never its value.

    Raises
    ------
    KitError
        If there is none, saying how to get one.
    """
    found = next(_credentials(), None)
    if found is None:
        file = _config_folder() / "kaggle.json"
        broken = f"\n({file} is there, but holds no username and key)" if file.exists() else ""
        raise KitError(
            f"no Kaggle credential found.{broken}\nCreate an API token at {SETTINGS_PAGE} "
            "(API, Create New Token), then save the token as ~/.kaggle/access_token, or the "
            "kaggle.json that Kaggle sends as ~/.kaggle/kaggle.json, or type `kaggle auth login`"
        )
    return found


def is_downloaded(folder: Path) -> bool:
    """Whether a folder holds the archive, and not the part of one that a bare client leaves."""
    archive = folder / ARCHIVE
    return archive.exists() and not _marker(archive).exists()


def download(folder: Path) -> Path:
    """Fetch the competition's archive into a folder, with progress on stderr.

    The client writes into `folder`/download, and the archive moves up when it is there in full:
    nothing half-written ever bears its name. A partial one is resumed. An archive that is there
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
            _drop_unless_zip(partial)
            _require_space(folder, held=_size(partial))
            _fetch(partial, lock)
            partial.replace(archive)
        finally:
            if not partial.exists():
                shutil.rmtree(staging)
    return archive


def submit(file: Path, message: str, *, patience: float = 30) -> Submission:
    """Upload a submission, and return it as Kaggle lists it.

    Parameters
    ----------
    patience
        Seconds to wait for the new row in Kaggle's list.

    Raises
    ------
    KitError
        If the upload fails, or Kaggle does not list the submission.
    """
    before = {row.ref for row in submissions()}
    try:
        said = _run("submit", SLUG, f"--file={file}", f"--message={message}", "--quiet")
    except _SilenceError as error:
        # It may have come through all the same.
        said = str(error)
    if "Could not submit" in said:
        raise KitError(_explain(said))
    for _ in _attempts(patience):
        new = [row for row in submissions() if row.ref not in before]
        # A team mate may have submitted in the same seconds.
        mine = [row for row in new if row.description == message] or new
        if mine:
            return mine[0]
    raise KitError(
        f"the client says {' '.join(said.split())!r}, but Kaggle lists no new submission.\n"
        f"Look at {SUBMISSIONS_PAGE} before you submit again: each try may count for the limit"
    )


def submissions() -> list[Submission]:
    """List the account's last 200 submissions as Kaggle orders them, the newest first."""
    said = _run("submissions", SLUG, "--format", "json", "--page-size", "200")
    return [] if "No submissions found" in said else [_submission(row) for row in _parse(said)]


def submissions_left() -> int | None:
    """Return how many submissions Kaggle still allows today, None if it does not tell."""
    try:
        limits = _parse(_run("submission-limits", SLUG, "--json"))
    except KitError:
        # Only Kaggle's refusal of the submission itself should stop anyone.
        return None
    allowed: int = limits.get("numAllowedNow", 0)
    # All three are 0 for whoever has not joined yet, and nothing is used up.
    told = allowed or limits.get("numToday") or limits.get("limitedByTotal")
    return allowed if told else None


def wait_for_score(ref: int, *, timeout: float = 600) -> Submission:
    """Poll a submission until it is scored, or cannot be, or `timeout` seconds have passed.

    Returns
    -------
    Submission
        As it was last seen. It is still PENDING if the time ran out.
    """
    row = None
    for _ in _attempts(timeout):
        row = next((row for row in submissions() if row.ref == ref), None)
        if row is None or row.status != "PENDING":
            break
    if row is None:
        raise KitError(f"Kaggle no longer lists submission {ref}: see {SUBMISSIONS_PAGE}")
    return row


def scoring_error(ref: int) -> str:
    """Return why Kaggle could not score a submission, or where that can be read."""
    if tuple(map(int, version("kaggle").split(".")[:3])) >= (2, 2, 5):
        found = re.search(r"^Error:(.*?)^Public", _run("submission", str(ref)), re.M | re.S)
        if found:
            return " ".join(found[1].split())
    return f"this version of the client does not tell why; {SUBMISSIONS_PAGE} does"


def _credentials() -> Iterator[str]:
    """Name the credentials there are in the order in which the client takes them (2.2.4)."""
    home = Path.home() / ".kaggle"
    if "KAGGLE_DATA_PROXY_URL" in os.environ and "KAGGLE_API_V1_TOKEN" in os.environ:
        yield "the Kaggle notebook's own token"
    if os.environ.get("KAGGLE_API_TOKEN"):
        yield "the API token in KAGGLE_API_TOKEN"
    for file in (home / "access_token", home / "access_token.txt"):
        if _size(file):
            yield f"the API token in {file}"
    legacy = _legacy_key()
    if legacy:
        yield legacy
    if (home / "credentials.json").is_file():
        yield f"the login in {home / 'credentials.json'}"


def _legacy_key() -> str | None:
    """Say where username and key come from: the environment overrides the file key by key."""
    file = _config_folder() / "kaggle.json"
    saved = _saved(file)
    sources = []
    for name in ("username", "key"):
        variable = f"KAGGLE_{name.upper()}"
        if os.environ.get(variable):
            sources.append(variable)
        elif saved.get(name):
            readable = file.stat().st_mode & 0o044
            advice = f" (others on this machine can read it: chmod 600 {file})" if readable else ""
            sources.append(f"{file}{advice}")
    if len(sources) < 2:
        return None
    return f"the username and key in {' and '.join(dict.fromkeys(sources))}"


def _saved(file: Path) -> dict[str, Any]:
    """Read a file of credentials; nothing if there is none in it."""
    try:
        saved = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _config_folder() -> Path:
    """Return where the client looks for kaggle.json (2.2.4)."""
    home = Path.home() / ".kaggle"
    if os.environ.get("KAGGLE_CONFIG_DIR"):
        return Path(os.environ["KAGGLE_CONFIG_DIR"])
    if sys.platform.startswith("linux") and not home.exists():
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"
    return home


TILES = 277_483
ARCHIVE_BYTES = 6_800_000_000
"""The competition's zip, which clients show as 6.31 GiB."""


def _marker(archive: Path) -> Path:
    """Return the file by which the client knows that an archive is partial, and of what."""
    return archive.with_name(f"{archive.name}.kaggle-partial")


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Keep a second download out of a folder.

    The client inherits the lock: should it outlive this process, nobody writes beside it.
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


def _drop_unless_zip(partial: Path) -> None:
    """Delete a partial file that must not be resumed.

    When a link expires under a download, kaggle 2.2.4 writes the server's error page over the
    partial file, from its first byte, and resumes onto that the next time: the size comes out
    right and the bytes wrong. A zip begins with its first member's signature; a page never does.
    What does begin so is worth keeping: if it is wrong all the same, packing will find out.
    """
    if partial.exists() and not _is_zip(partial):
        partial.unlink()
        _marker(partial).unlink(missing_ok=True)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _require_space(folder: Path, held: int) -> None:
    """Check that what is still to come fits: the client would fail hours later, or never end."""
    archive, store = _sizes()
    needed = archive - held + store
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise KitError(
            f"{folder} needs {needed / 1e9:.1f} GB ({(archive - held) / 1e9:.1f} to download and "
            f"{store / 1e9:.1f} for the packed tiles), and its disk has {free / 1e9:.1f} GB "
            "free.\nMake room, or name a folder on another disk with --data"
        )


def _sizes() -> tuple[int, int]:
    """Return the bytes of the archive and of the packed tiles, the first as an upper bound.

    Kaggle lists files by the page, which says nothing of a total unless there is one page only.
    """
    said = _run("files", SLUG, "--format", "json", "--page-size", "200")
    if "Next Page Token" not in said:
        files = _parse(said)
        tiles = sum(file["name"].endswith(".tif") for file in files)
        if tiles:
            return sum(file["size"] for file in files), tiles * TILE_BYTES
    return ARCHIVE_BYTES, TILES * TILE_BYTES


def _fetch(partial: Path, lock: int) -> None:
    """Run the client's download, and believe its result only when it lies on disk."""
    command = _command("download", SLUG, f"--path={partial.parent}")
    with subprocess.Popen(
        command,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(lock,),
    ) as client:
        try:
            assert client.stdout
            said = _relay(_lines(client.stdout))
        except _SilenceError as error:
            client.terminate()
            said = str(error)
        except BaseException:
            client.terminate()
            raise
    if "User cancelled operation" in said:
        raise KeyboardInterrupt
    if client.returncode or not _is_whole(partial) or not _is_zip(partial):
        _drop_unless_zip(partial)
        reason = _explain(said) if client.returncode else _GATEWAY
        kept = _size(partial) / 1e6
        resume = f"\n{kept:,.1f} MB are kept: the same command goes on from there"
        raise KitError(f"{reason}{resume if kept else ''}")


def _is_whole(archive: Path) -> bool:
    """Whether an archive has its full size, as far as the client has noted it."""
    try:
        noted = json.loads(_marker(archive).read_text("utf-8"))
    except (OSError, ValueError):
        return archive.exists()
    return bool(noted["size"] == _size(archive))


def _lines(pipe: IO[bytes]) -> Iterator[str]:
    """Yield what a process says by lines, a progress bar's states among them.

    Raises
    ------
    _SilenceError
        When it has said nothing for too long.
    """
    begun = b""
    while select.select([pipe], [], [], PATIENCE)[0]:
        content = os.read(pipe.fileno(), 65_536)
        *lines, begun = re.split(rb"[\r\n]", begun + content)
        yield from (f"{line.decode('utf-8', 'replace')}\n" for line in lines)
        if not content:
            yield begun.decode("utf-8", "replace")
            return
    raise _SilenceError(_SILENCE.format(PATIENCE))


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
            print("\n" * bar + _without_secrets(line.rstrip()), file=sys.stderr, flush=True)
            bar = False
        else:
            said.append(line)
    print("\n" * bar, end="", file=sys.stderr)
    return "".join(said)


def _command(*arguments: str, group: str = "competitions") -> list[str]:
    # -P keeps a folder named kaggle, wherever the user stands, from passing for the client;
    # -W silences the news of later versions.
    return [sys.executable, "-P", "-m", "kaggle", "-W", group, *arguments]


def _environment() -> dict[str, str]:
    """Return the client's environment.

    Made verbose by one of two common variables, it prints its authorization header.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("VERBOSE", "VERBOSE_OUTPUT")}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def _run(*arguments: str, group: str = "competitions") -> str:
    """Run one of a group of the client's commands and return what it prints.

    Raises
    ------
    KitError
        If it fails, with the reason and the next step.
    """
    credential()
    try:
        done = subprocess.run(
            _command(*arguments, group=group),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise _SilenceError(_explain(_SILENCE.format(PATIENCE))) from error
    if done.returncode:
        raise KitError(_explain(f"{done.stderr}\n{done.stdout}"))
    return done.stdout


def _parse(said: str) -> Any:
    """Parse the JSON in what the client prints; warnings may stand before it."""
    start = re.search(r"^[\[{]", said, re.M)
    if start is None:
        raise KitError(f"the Kaggle client gave no list, but: {_without_secrets(said.strip())}")
    return json.JSONDecoder().raw_decode(said, start.start())[0]


def _submission(row: dict[str, Any]) -> Submission:
    return Submission(
        ref=row["ref"],
        date=row["date"],
        file_name=row["fileName"],
        description=row["description"],
        # "SubmissionStatus.COMPLETE"
        status=row["status"].rpartition(".")[2],
        public_score=row["publicScore"],
        private_score=row["privateScore"],
    )


def _attempts(timeout: float) -> Iterator[None]:
    """Yield at once, then after pauses of 1, 2, 4 to 30 seconds until `timeout` has passed."""
    deadline = time.monotonic() + timeout
    pause = 1.0
    yield
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        pause = min(2 * pause, 30)
        yield


_GATEWAY = (
    "the answer came from some gateway or proxy, not from Kaggle: see whether "
    "https://www.kaggle.com opens on this machine without a sign-in page, then try again"
)
_SILENCE = "timed out: nothing came for {:g} s"
# What the client's own words mean. It prints a status only when the answer has no JSON body,
# and otherwise the server's message alone, so both are known here. The first match counts.
_FAILURES = {
    "No module named": "the Kaggle client does not start: pip install 'kaggle>=2.2.4,<3' six",
    r"Max retries|RemoteDisconnected|Connection (aborted|broken|refused|reset)|timed out|\b408 ": (
        "no connection to Kaggle, or it was cut: see to the network (and to https_proxy, if you "
        "use one), then try again"
    ),
    "does not match expected size": (
        "the download broke off: an error page or another file came in the archive's place, as "
        "happens when a download link expires. Try again"
    ),
    r"\b401 |Authentication required|Unauthori[sz]ed|Unauthenticated|Invalid credentials": (
        "Kaggle does not accept {credential}.\n"
        f"Create a new API token at {SETTINGS_PAGE} (API, Create New Token) and put it there"
    ),
    r"\b4\d\d Client Error.* url: (?!.*ApiService)": (
        "Kaggle's file store refused the link that Kaggle gave, as it does once a link has "
        "expired. Try again"
    ),
    "Cannot access kernel": (
        "the account has no kernel of that name on Kaggle: push it first, or mend --name"
    ),
    r"\b403 |Forbidden|accept this competition|permission '": (
        f"Kaggle forbids it, most often because the rules are not accepted.\nOpen {RULES_PAGE}, "
        "join the competition and accept its rules, then try again. The account is that of "
        "{credential}"
    ),
    "submission (limit|allowance)|daily (limit|allowance|submission)": (
        "Kaggle takes no more submissions today: try again after 00:00 UTC"
    ),
    r"\b404 |Not ?Found|Could not find": (
        f"Kaggle does not find it. See whether https://www.kaggle.com/c/{SLUG} opens, and bring "
        "the client up to date: pip install --upgrade 'kaggle<3'"
    ),
    r"\b429 |Too Many Requests|Rate limit": (
        "Kaggle has had too many requests from this account: wait some minutes, then try again"
    ),
    r"\b5\d\d (Server )?Error|Internal.*error|Bad Gateway|Service Unavailable|Gateway Time": (
        "Kaggle itself has a fault just now: try again in some minutes"
    ),
    "No space left": "the disk is full: make room, then try again",
    "Expecting value": _GATEWAY,
    "Could not submit": "Kaggle's file store refused the upload, nothing was submitted: try again",
}


def _explain(said: str) -> str:
    """Turn the client's words for a failure into one plain message with the next step."""
    # Indented lines are a traceback's source code, or more of a text already begun.
    lines = [line for line in _without_secrets(said).splitlines() if line[:1].strip()]
    for pattern, meaning in _FAILURES.items():
        for line in lines:
            if re.search(pattern, line, re.I):
                known = ", which hides ".join(_credentials()) or "the credential"
                return f"{meaning.replace('{credential}', known)}\n(the client said: {line})"
    last = lines[-1] if lines else "it did not say why"
    return (
        f"the Kaggle client failed: {last}\nTry again, and see whether "
        f"https://www.kaggle.com/c/{SLUG} opens in a browser"
    )


def _without_secrets(text: str) -> str:
    """Drop credentials, and what a URL holds beside its address: a signature, a password."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = re.sub(r"(Basic|Bearer) \S+", r"\1 ***", text)
    return re.sub(r"\?[^\s'\")]+", "", re.sub(r"://[^/\s@]+@", "://", text))


def username() -> str:
    """Return the name of the account whose credential the client sends.

    Raises
    ------
    KitError
        If there is no credential, or the client does not know the name.
    """
    said = _run("view", group="config")
    found = re.search(r"^- username: (\S+)$", said, re.M)
    if not found or found[1] == "None":
        raise KitError(
            f"the Kaggle client does not know whose {credential()} is: set KAGGLE_USERNAME as well"
        )
    return found[1]


def push_kernel(folder: Path) -> str:
    """Push the script and metadata of a folder as a kernel, which then runs on Kaggle.

    Returns
    -------
    str
        Its version and its address.

    Raises
    ------
    KitError
        If Kaggle does not take it, or takes it without one of its inputs.
    """
    said = _run("push", f"--path={folder}", group="kernels")
    # The client exits with 0 either way.
    pushed = re.search(r"^Kernel version (\d+) successfully pushed.* at (\S+)$", said, re.M)
    if not pushed:
        reason = _without_secrets(said).strip().removeprefix("Kernel push error: ")
        raise KitError(
            f"Kaggle has not taken the kernel: {reason or 'the client does not say why'}\n"
            f"See at {SETTINGS_PAGE} what the account may run (phone number, GPU hours), then try "
            "again"
        )
    refused = re.search(r"^The following are not valid (\w+) sources.*: (.*)$", said, re.M)
    if refused:
        kind, names = refused.groups()
        step = {
            "competition": f"accept the rules at {RULES_PAGE}, then push again",
            "kernel": "push it without --resume the first time",
        }.get(kind, "mend the name, then push again")
        raise KitError(
            f"Kaggle runs version {pushed[1]} without its {kind} {names}, so it will fail: {step}"
        )
    return f"version {pushed[1]}, {pushed[2]}"


def kernel_status(kernel: str) -> str:
    """Return how far a kernel's latest version is: QUEUED, RUNNING, COMPLETE, ERROR, ...

    Parameters
    ----------
    kernel
        OWNER/NAME.
    """
    said = _run("status", kernel, group="kernels")
    found = re.search(r'has status "(?:\w+\.)?(\w+)"', said)
    if not found:
        raise KitError(_explain(said))
    return found[1]


def pull_kernel(kernel: str, folder: Path) -> None:
    """Fetch what a kernel's latest version has left, and its log.

    The client checks nothing that it fetches: not even whether it is an error page.

    Parameters
    ----------
    kernel
        OWNER/NAME.
    """
    _run("output", kernel, f"--path={folder}", "--force", "--quiet", group="kernels")


def _secrets() -> set[str]:
    """Return the values of all credentials there are: a server may echo what it was sent."""
    home = Path.home() / ".kaggle"
    variables = ("KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_API_V1_TOKEN")
    found = [os.environ.get(name, "") for name in variables]
    for file in (home / "access_token", home / "access_token.txt"):
        found += [file.read_text("utf-8", "replace").strip()] if _size(file) else []
    for file in (_config_folder() / "kaggle.json", home / "credentials.json"):
        entries = _saved(file).items()
        found += [str(value) for name, value in entries if re.search("key|token", name)]
    return {value for value in found if value}
