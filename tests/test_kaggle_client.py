"""The commands that talk to Kaggle, with the unmodified client, against a server of our own."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest
from conftest import kernel
from kaggle_server import (
    ETAG,
    KEY,
    SECRETS,
    TOKEN,
    Answer,
    Cut,
    KaggleServer,
    Stall,
    competition_zip,
    move_in,
    page,
    refusal,
    serve,
    until,
)
from warm_client import start_for_real

from kit import kaggle
from kit.base import ARCHIVE, LOCK_NAME, RULES_PAGE, KitError, competition
from kit.data import open_store, pack_tiles
from kit.kaggle import client

KERNELS = Path(__file__).parents[1] / "kernels"
CLIENT = tuple(map(int, version("kaggle").split(".")[:3]))
MARKER = f"{ARCHIVE}.kaggle-partial"
LIMIT = "Submission not allowed: your team has used its daily submission allowance (5) today"
UNSCORED = {"status": "ERROR", "errorDescription": "Submission must have\n57458 rows"}
REASON = (
    "Submission must have 57458 rows" if CLIENT >= (2, 2, 5) else "the client does not tell why"
)
RULES = "You must accept this competition's rules before you'll be able to download files."


@pytest.fixture(scope="session")
def archive() -> bytes:
    """Return a competition of nearly 4 MB: the client writes in steps of 1 MiB."""
    return competition_zip(train=120, test=20)


@pytest.fixture(scope="session")
def packed(archive: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder that is packed."""
    data = tmp_path_factory.mktemp("packed")
    (data / ARCHIVE).write_bytes(archive)
    pack_tiles(data)
    return data


@pytest.fixture
def server(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KaggleServer]:
    """Return a server that this process and its children take for Kaggle."""
    with serve(archive) as fake:
        move_in(fake, tmp_path, monkeypatch)
        yield fake


@pytest.fixture
def submission_file(packed: Path, tmp_path: Path) -> Path:
    ids = list(open_store(packed).test.ids)
    kaggle.write_submission(
        tmp_path / "submission.csv", ids, [i / len(ids) for i in range(len(ids))]
    )
    return tmp_path / "submission.csv"


def hurry(server: KaggleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a silent server a short time; a slow client is waited for as ever."""
    start_for_real(monkeypatch)
    long = client.PATIENCE
    monkeypatch.setattr(client, "PATIENCE", long)
    server.on_silence = lambda silent: setattr(client, "PATIENCE", SHORT if silent else long)


def run(name: str, *arguments: str | Path) -> CompletedProcess[str]:
    """Run a command, the client in a process of its own, and see that it betrays no secret."""
    done = kernel(name, *arguments)
    assert_discreet(done.stdout + done.stderr)
    return done


def assert_discreet(output: str) -> None:
    assert not [secret for secret in SECRETS if secret in output]
    assert "Traceback" not in output


def files(folder: Path) -> set[str]:
    """Return what lies in a folder, by name."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return {str(path.relative_to(folder)) for path in found}


def last_start(server: KaggleServer) -> int:
    """Return from where the archive was fetched last.

    The client asks for all of it before it asks for the rest of it.
    """
    last = server.asked("archive")[-1].get("Range", "bytes=0-")
    return int(last.removeprefix("bytes=").rstrip("-"))


@pytest.mark.usefixtures("server")
def test_the_client_is_one_whose_traps_are_known() -> None:
    """And it is the one that the tests start, wherever it lies."""
    assert (2, 2, 4) <= CLIENT < (3,)
    line = [client.client_command()[0], "-P", "-m", "kaggle", "--version"]
    told = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert f"Kaggle CLI {version('kaggle')}\n" in told


def flip(archive: bytes, position: int) -> bytes:
    """Flip one bit."""
    return archive[:position] + bytes([archive[position] ^ 1]) + archive[position + 1 :]


def with_another_tile(archive: bytes) -> bytes:
    """Return a sound zip in which the first tile's pixels are the second's."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(buffer, "w") as target,
    ):
        first, second, *_ = source.namelist()
        for name in source.namelist():
            target.writestr(name, source.read(second if name == first else name))
    return buffer.getvalue()


def with_a_long_note(archive: bytes) -> bytes:
    """Return an archive that becomes smaller when it is compressed once more."""
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as target:
        target.writestr("notes.txt", b" " * 1_000_000)
    return buffer.getvalue()


def in_a_folder(archive: bytes) -> bytes:
    """Return an archive as macOS packs a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(f"cancer/{name}", source.read(name))
            target.writestr(f"__MACOSX/cancer/._{name.replace('/', '_')}", b"Mac OS X")
    return buffer.getvalue()


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and what its user sees of it.

    Attributes
    ----------
    arrange
        Puts the fault into the server.
    message
        Part of what the command says.
    left
        What lies in the data folder afterwards.
    """

    what: str
    command: str
    arrange: Callable[[KaggleServer], object]
    message: str
    status: int = 1
    left: frozenset[str] = frozenset()


Change = Callable[[KaggleServer], object]


def refuses(method: str, answer: Answer | Cut | Stall) -> Change:
    return lambda server: server.refusals.update({method: answer})


def transfers(*faults: Answer | Cut | Stall) -> Change:
    return lambda server: server.transfers.extend(faults)


def has(**state: object) -> Change:
    return lambda server: vars(server).update(state)


def serves(change: Callable[[bytes], bytes]) -> Change:
    return lambda server: vars(server).update(
        archive=change(server.archive), file_sizes={"train/a.tif": 27_935}
    )


PARTIAL = frozenset({f"download/{ARCHIVE}", f"download/{MARKER}"})
UNKNOWN_KEY = (
    "does not accept the username and key in KAGGLE_USERNAME and KAGGLE_KEY.\n"
    "Create a new API token at https://www.kaggle.com/settings"
)
BUSY = "Kaggle itself has a fault"
GATEWAY = "from some gateway or proxy"
LINK = "Kaggle's file store refused the link"
# Seconds of silence after which the client is given up, once the server has fallen silent.
SHORT = 3
SILENCE = f"(the client said: timed out: nothing came for {SHORT} s)"
S3_ERROR = Answer(400, b"<Error><Code>ExpiredToken</Code></Error>", "application/xml")
INTERNAL = "An internal server error occurred."
DATA = "DownloadDataFiles"

FAULTS = [
    # Statuses, with the API's own words or a gateway's page.
    Fault(
        "the key is unknown", "download", refuses("*", refusal(401, "Unauthenticated")), UNKNOWN_KEY
    ),
    Fault(
        "the token has expired", "scores", refuses("*", refusal(401, "Token expired")), UNKNOWN_KEY
    ),
    Fault(
        "the refusal echoes the key",
        "scores",
        refuses("*", refusal(400, f"bad key {KEY}")),
        "bad key ***",
    ),
    Fault(
        "the rules are not accepted",
        "download",
        refuses(DATA, refusal(403, RULES)),
        f"Open {RULES_PAGE}",
    ),
    Fault(
        "403 without a reason",
        "download",
        refuses("*", page(403, "Forbidden")),
        f"Open {RULES_PAGE}",
    ),
    Fault("404", "download", refuses("*", refusal(404, "NotFound")), "Kaggle does not find it"),
    Fault("408", "scores", refuses("*", page(408, "Request Timeout")), "no connection to Kaggle"),
    Fault("429", "download", refuses("*", refusal(429, "Too many requests")), "wait some minutes"),
    Fault("500", "download", refuses("*", refusal(500, INTERNAL)), BUSY),
    Fault("502", "download", refuses("*", page(502, "Bad Gateway")), BUSY),
    Fault("503", "scores", refuses("*", page(503, "Service Unavailable")), BUSY),
    Fault("504", "scores", refuses("*", page(504, "Gateway Timeout")), BUSY),
    Fault(
        "a status of no known meaning",
        "download",
        refuses("*", refusal(400, "New")),
        "client failed: New\nTry again",
    ),
    # Connections.
    Fault(
        "cut before the answer",
        "download",
        refuses(DATA, Cut(0)),
        "no connection to Kaggle, or it was cut",
    ),
    Fault("stall before the answer", "scores", refuses("ListSubmissions", Stall(0)), SILENCE),
    Fault(
        "stall in the archive",
        "download",
        transfers(Stall(2_500_000)),
        "MB are kept: the same",
        left=PARTIAL,
    ),
    # Something else in the place of what was asked for.
    Fault("a page for the list of files", "download", refuses("*", page(200, "Sign in")), GATEWAY),
    Fault("a page for the link", "download", refuses(DATA, page(200, "Sign in")), GATEWAY),
    Fault("a page for the archive", "download", transfers(page(200, "Sign in")), GATEWAY),
    Fault("an error behind the signed link", "download", transfers(S3_ERROR), LINK),
    Fault("an expired link", "download", transfers(page(403, "Expired")), LINK),
    Fault(
        "an archive of the wrong size",
        "download",
        serves(lambda whole: whole[:-100_000]),
        "not a whole zip file",
    ),
    Fault("a flipped bit", "download", serves(lambda whole: flip(whole, 10_000)), "CRC mismatch"),
    # Submissions.
    Fault(
        "the daily limit, known before",
        "submit",
        has(limits={"numToday": 5}),
        "the submission limit is used up",
    ),
    Fault(
        "the daily limit, told after",
        "submit",
        refuses("CreateSubmission", refusal(400, LIMIT)),
        "no more submissions",
    ),
    Fault(
        "the rules, at the upload",
        "submit",
        refuses("StartSubmissionUpload", refusal(403, RULES)),
        RULES_PAGE,
    ),
    Fault(
        "a failed upload, exit 0",
        "submit",
        has(upload_status=500),
        "refused the upload, nothing was submitted",
    ),
    Fault(
        "no score in time",
        "submit",
        has(pending=99),
        "not scored yet after 1 s: `make scores` will show",
        status=0,
    ),
    Fault(
        "no score at all", "submit", has(scored=UNSCORED), f"Kaggle cannot score 40000001: {REASON}"
    ),
    Fault(
        "news of a later client",
        "submit",
        has(client_version="99.0.0"),
        "public score  0.95123",
        status=0,
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_fault(
    server: KaggleServer,
    packed: Path,
    submission_file: Path,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One message, its status, nothing half-done on disk, and no secret anywhere."""
    fault.arrange(server)
    if fault.what.startswith("stall"):
        hurry(server, monkeypatch)
    before = submission_file.read_bytes(), files(packed)
    options = ["--data", packed, "--timeout=1"] if fault.command == "submit" else []
    done = run(fault.command, *options)
    assert done.returncode == fault.status
    assert fault.message in done.stdout + done.stderr
    assert files(Path("data")) == fault.left
    assert (submission_file.read_bytes(), files(packed)) == before
    written = [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
    assert not [secret for secret in SECRETS for content in written if secret.encode() in content]


class TestDownload:
    def test_fetches_proves_and_packs_once(self, server: KaggleServer) -> None:
        first = run("download")
        assert first.returncode == 0
        assert "120 train and 20 test tiles, packed, each one proved" in first.stdout
        assert "with the username and key in KAGGLE_USERNAME and KAGGLE_KEY" in first.stderr
        assert "100%" in first.stderr
        assert Path("data", ARCHIVE).read_bytes() == server.archive
        assert not Path("data/download").exists()
        server.requests.clear()
        second = run("download")
        assert second.returncode == 0
        assert "already there" in second.stdout
        assert not server.requests

    def test_goes_on_after_a_cut(self, server: KaggleServer) -> None:
        server.transfers = [Cut(2_500_000)]
        assert run("download").returncode == 0
        assert last_start(server) > 0
        assert Path("data", ARCHIVE).read_bytes() == server.archive

    @pytest.mark.parametrize("interrupted", ["both", "the client alone"])
    def test_is_interrupted_and_goes_on_later(self, server: KaggleServer, interrupted: str) -> None:
        server.transfers = [Stall(2_500_000)]
        partial = Path("data/download", ARCHIVE)
        command = [sys.executable, KERNELS / "download.py"]
        with Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            until(lambda: partial.exists() and partial.stat().st_size >= 2**20)
            with pytest.raises(KitError, match=r"another download into .* is under way"):
                kaggle.download_archive(Path("data"))
            if interrupted == "both":
                os.killpg(process.pid, signal.SIGINT)
            else:
                os.kill(only_child(process.pid), signal.SIGINT)
            _, stderr = process.communicate()
        assert process.returncode == 130
        assert "what has come is kept" in stderr
        assert_discreet(stderr)
        assert files(Path("data")) == {f"download/{ARCHIVE}", f"download/{MARKER}"}
        held = partial.stat().st_size
        assert run("download").returncode == 0
        assert last_start(server) == held
        assert Path("data", ARCHIVE).read_bytes() == server.archive

    def test_goes_on_with_what_the_bare_client_left(self, server: KaggleServer) -> None:
        leave_partial(Path("data"), server.archive[:1_000_000], size=len(server.archive))
        path = kaggle.download_archive(Path("data"))
        assert last_start(server) == 1_000_000
        assert path.read_bytes() == server.archive
        assert files(Path("data")) == {ARCHIVE}

    def test_does_not_resume_onto_an_error_page(self, server: KaggleServer) -> None:
        body = page(403, "the link has expired").body
        leave_partial(Path("data/download"), body, size=len(server.archive))
        path = kaggle.download_archive(Path("data"))
        assert last_start(server) == 0
        assert path.read_bytes() == server.archive

    @pytest.mark.skipif(CLIENT >= (2, 2, 5), reason="mended in kaggle 2.2.5")
    def test_drops_what_an_expired_link_leaves(self, server: KaggleServer) -> None:
        expired = page(403, "the link has expired")
        server.transfers = [Cut(2_500_000), expired, expired]
        done = run("download")
        assert done.returncode == 1
        assert "the download broke off" in done.stderr
        assert files(Path("data")) == set()

    def test_reads_an_archive_that_a_proxy_has_compressed(
        self, server: KaggleServer, archive: bytes
    ) -> None:
        """The client is told the compressed size, and finds more than that."""
        server.archive = with_a_long_note(archive)
        server.compresses = True
        assert run("download").returncode == 0
        assert files(Path("data")) >= {ARCHIVE, "store/manifest.json"}
        assert not Path("data/download").exists()

    @pytest.mark.parametrize("is_whole", [True, False])
    def test_does_not_go_on_with_more_than_there_is(
        self, server: KaggleServer, is_whole: bool
    ) -> None:
        """An earlier version left it, and said for ever that it goes on from there."""
        found = server.archive if is_whole else server.archive[:1_000_000]
        leave_partial(Path("data/download"), found, size=len(found) - 1)
        path = kaggle.download_archive(Path("data"))
        assert path.read_bytes() == server.archive
        assert bool(server.asked("archive")) != is_whole
        assert files(Path("data")) == {ARCHIVE}

    def test_reads_an_archive_that_another_program_has_packed(
        self, server: KaggleServer, archive: bytes
    ) -> None:
        server.archive = in_a_folder(archive)
        assert run("download").returncode == 0
        assert files(Path("data")) >= {ARCHIVE, "store/manifest.json"}

    def test_keeps_an_archive_of_something_else(self, server: KaggleServer) -> None:
        """Only bytes that are proved wrong are deleted."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as other:
            other.writestr("publicleaderboard.csv", "TeamId,Score\n")
        server.archive = buffer.getvalue()
        done = run("download")
        assert done.returncode == 1
        assert "holds no train_labels.csv: it is not the competition's. Move it" in done.stderr
        assert files(Path("data")) == {ARCHIVE}

    @pytest.mark.parametrize("size", [None, "27935", "large", -1])
    def test_reads_sizes_as_kaggle_may_write_them(self, server: KaggleServer, size: object) -> None:
        server.file_sizes = {"train/a.tif": size, "train_labels.csv": 100}  # type: ignore[dict-item]
        assert kaggle.download_archive(Path("data")).read_bytes() == server.archive

    @pytest.mark.parametrize("noted", ["[]", '{"size": null}', '{"size": "many"}', "{}", "{"])
    def test_goes_on_whatever_the_client_has_noted(self, server: KaggleServer, noted: str) -> None:
        leave_partial(Path("data/download"), server.archive[:1_000_000], size=0)
        Path("data/download", MARKER).write_text(noted)
        assert kaggle.download_archive(Path("data")).read_bytes() == server.archive

    def test_fetches_nothing_beside_extracted_tiles(
        self, server: KaggleServer, archive: bytes
    ) -> None:
        with zipfile.ZipFile(io.BytesIO(archive)) as source:
            source.extractall("data")
        assert run("download").returncode == 0
        assert not server.requests

    def test_does_not_take_the_standin_for_the_data(
        self, server: KaggleServer, archive: bytes
    ) -> None:
        Path("data").mkdir()
        Path("data", ARCHIVE).write_bytes(archive)
        with zipfile.ZipFile(Path("data", ARCHIVE), "a") as standin:
            standin.comment = competition.STANDIN_COMMENT
        done = run("download")
        assert done.returncode == 1
        assert "data holds the synthetic stand-in" in done.stderr
        assert not server.requests, "an archive that is there is not fetched again"

    @pytest.mark.usefixtures("server")
    def test_keeps_an_archive_that_was_made_with_a_bad_tile(self, archive: bytes) -> None:
        """Fetched again it would be the same."""
        Path("data").mkdir()
        Path("data", ARCHIVE).write_bytes(with_another_tile(archive))
        done = run("download")
        assert done.returncode == 1
        assert "its pixels hash to" in done.stderr
        assert "or leave them out: python kernels/pack.py --skip-bad" in done.stderr
        assert files(Path("data")) == {ARCHIVE}
        skipped = run("pack", "--skip-bad")
        assert skipped.returncode == 0
        assert "119 train and 20 test tiles" in skipped.stdout
        assert "left out train/" in skipped.stdout
        assert run("download").returncode == 0

    def test_says_how_much_room_is_missing(self, server: KaggleServer) -> None:
        free = shutil.disk_usage(".").free
        server.file_sizes = {"train/a.tif": free, "test/b.tif": 2_000_000_000}
        leave_partial(Path("data/download"), server.archive[:1_000_000], size=free)
        with pytest.raises(KitError, match=r"data needs [\d.]+ GB .* its disk has [\d.]+ GB free"):
            kaggle.download_archive(Path("data"))
        assert files(Path("data")) == {f"download/{ARCHIVE}", f"download/{MARKER}"}
        assert not server.asked("DownloadDataFiles")

    def test_assumes_the_full_size_where_kaggle_gives_no_total(
        self, server: KaggleServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.file_sizes = {f"train/{i}.tif": 27_935 for i in range(201)}
        usage = shutil.disk_usage(".")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=14_000_000_000))
        with pytest.raises(KitError, match=r"needs 14\.5 GB \(6\.8 to download and 7\.7 for"):
            kaggle.download_archive(Path("data"))


def leave_partial(folder: Path, content: bytes, size: int) -> None:
    """Leave what the client leaves when it is stopped."""
    folder.mkdir(parents=True)
    (folder / ARCHIVE).write_bytes(content)
    (folder / MARKER).write_text(json.dumps({"validator": ETAG, "size": size}))


def only_child(parent: int) -> int:
    (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(child)


@pytest.mark.usefixtures("submission_file")
def test_nothing_is_tried_without_a_credential(
    server: KaggleServer, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    for name, *options in (["download"], ["submit", "--data", packed], ["scores"]):
        done = run(str(name), *options)
        assert done.returncode == 1
        assert "no Kaggle credential found" in done.stderr
        assert "https://www.kaggle.com/settings" in done.stderr
    assert not server.requests
    assert not Path("data").exists()


KEY_FILE = json.dumps({"username": "filed", "key": "filed-key"})
BEARER = f"Bearer {TOKEN}"


def basic(username: str, key: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{key}".encode()).decode()


@pytest.mark.parametrize(
    ("variables", "saved", "named", "sent"),
    [
        (
            {"KAGGLE_API_TOKEN": TOKEN},
            {".kaggle/kaggle.json": KEY_FILE},
            "the API token in KAGGLE_API_TOKEN",
            BEARER,
        ),
        (
            {"KAGGLE_API_TOKEN": "my_token"},
            {"my_token": TOKEN},
            "the API token in my_token, which KAGGLE_API_TOKEN names",
            BEARER,
        ),
        ({}, {".kaggle/access_token": TOKEN}, "the API token in ~/.kaggle/access_token", BEARER),
        (
            {},
            {".kaggle/kaggle.json": KEY_FILE},
            "the username and key in KAGGLE_USERNAME and KAGGLE_KEY",
            basic("nobody", KEY),
        ),
        (
            {"KAGGLE_KEY": ""},
            {".kaggle/access_token": "", ".kaggle/kaggle.json": KEY_FILE},
            "the username and key in KAGGLE_USERNAME and ~/.kaggle/kaggle.json",
            basic("nobody", "filed-key"),
        ),
        (
            {"KAGGLE_USERNAME": "", "KAGGLE_KEY": ""},
            {".config/kaggle/kaggle.json": KEY_FILE},
            "the username and key in ~/.config/kaggle/kaggle.json",
            basic("filed", "filed-key"),
        ),
        (
            {"KAGGLE_USERNAME": "", "KAGGLE_KEY": "", "KAGGLE_CONFIG_DIR": "elsewhere"},
            {"elsewhere/kaggle.json": KEY_FILE},
            "the username and key in elsewhere/kaggle.json",
            basic("filed", "filed-key"),
        ),
    ],
)
def test_the_credential_named_is_the_one_sent(
    server: KaggleServer,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    saved: dict[str, str],
    named: str,
    sent: str,
) -> None:
    home = Path(os.environ["HOME"])
    monkeypatch.chdir(home)
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    for name, content in saved.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
        (home / name).chmod(0o600)
    assert kaggle.credential() == named.replace("~", str(home))
    kaggle.list_submissions()
    (headers,) = server.asked("ListSubmissions")
    assert headers["Authorization"] == sent


def test_a_stale_token_is_named_with_what_it_hides(
    server: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    server.refusals = {"*": refusal(401, "Unauthenticated")}
    hidden = "the username and key in KAGGLE_USERNAME and KAGGLE_KEY"
    with pytest.raises(KitError, match=f"API token in KAGGLE_API_TOKEN, which hides {hidden}"):
        kaggle.list_submissions()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("/nothing/here", "and there is no such file"),
        ("~/token", "and there is no such file"),
        ("empty", "that is no file with a token in it"),
        (".", "that is no file with a token in it"),
    ],
)
def test_a_variable_that_names_no_token_is_told(
    server: KaggleServer, monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    Path("empty").write_text(" \n")
    monkeypatch.setenv("KAGGLE_API_TOKEN", value)
    with pytest.raises(KitError, match=f"KAGGLE_API_TOKEN names {value}, and .*{reason[4:]}"):
        kaggle.list_submissions()
    assert not server.requests


@pytest.mark.parametrize("stray", ["\n", "\u201d"])
def test_a_stray_character_in_a_token_is_told(
    server: KaggleServer, monkeypatch: pytest.MonkeyPatch, stray: str
) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"{TOKEN}{stray}")
    with pytest.raises(KitError, match="the API token in KAGGLE_API_TOKEN has a char"):
        kaggle.list_submissions()
    assert not server.asked("ListSubmissions")


def test_a_token_that_was_saved_in_utf_16_is_told(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PowerShell saves it."""
    monkeypatch.delenv("KAGGLE_KEY")
    file = tmp_path / "home" / ".kaggle" / "access_token"
    file.parent.mkdir()
    file.write_bytes(TOKEN.encode("utf-16"))
    with pytest.raises(KitError, match=r"the API token in .*access_token has a character"):
        kaggle.list_submissions()
    assert not server.asked("ListSubmissions")


@pytest.mark.usefixtures("server")
def test_the_client_is_named_as_it_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("PATH", "/nothing")
    with pytest.raises(KitError, match=f"type `{sys.executable} -m kaggle auth login`"):
        kaggle.credential()


def test_of_a_variable_that_names_a_file_the_content_is_masked(
    server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my_token"
    file.write_text(TOKEN)
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(file))
    server.refusals = {"*": refusal(400, f"{file} holds {TOKEN}")}
    with pytest.raises(KitError, match=rf"{file} holds \*\*\*"):
        kaggle.list_submissions()


@pytest.mark.usefixtures("server")
def test_a_key_that_others_can_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(os.environ["HOME"], ".kaggle/kaggle.json")
    file.parent.mkdir()
    file.write_text(KEY_FILE)
    file.chmod(0o644)
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    assert f"chmod 600 {file}" in kaggle.credential()
    file.write_text("{")
    with pytest.raises(KitError, match="is there, but holds no username and key"):
        kaggle.credential()


def test_no_secret_is_told_even_if_the_client_is_made_verbose(
    server: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERBOSE", "1")
    server.refusals = {"ListSubmissions": refusal(400, "Something new")}
    done = run("scores")
    assert done.returncode == 1
    assert basic("nobody", KEY) not in done.stdout + done.stderr
    assert done.stderr.startswith("error: the Kaggle client failed: Something new\n")


class TestSubmit:
    def test_submits_confirms_and_waits_for_the_score(
        self,
        server: KaggleServer,
        packed: Path,
        submission_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(time, "sleep", lambda _: None)
        server.pending = 1
        done = run("submit", "--data", packed)
        assert done.returncode == 0
        assert "20 rows in the sample's order, labels from 0 to 0.95" in done.stdout
        assert "submitted submission.csv as 40000001, 4 left today" in done.stdout
        assert "public score  0.95123\nprivate score 0.94321\n" in done.stdout
        assert server.uploaded == submission_file.read_bytes()
        assert server.submissions[0]["description"].startswith("submission.csv, sha256 ")

    def test_sends_no_invalid_file(
        self,
        server: KaggleServer,
        packed: Path,
        submission_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is told of even before a missing credential is."""
        monkeypatch.delenv("KAGGLE_KEY")
        submission_file.write_text("id,label\nabc,0.5\n")
        done = run("submit", "--data", packed)
        assert done.returncode == 1
        assert "1 rows instead of 20" in done.stderr
        assert "1 unknown ids: line 2: 'abc'" in done.stderr
        assert not server.requests

    def test_sends_nothing_of_the_standin(
        self, server: KaggleServer, archive: bytes, submission_file: Path
    ) -> None:
        Path("data").mkdir()
        Path("data", ARCHIVE).write_bytes(archive)
        with zipfile.ZipFile(Path("data", ARCHIVE), "a") as standin:
            standin.comment = competition.STANDIN_COMMENT
        done = run("submit", "--file", submission_file)
        assert done.returncode == 1
        assert "data holds the synthetic stand-in: Kaggle cannot score" in done.stderr
        assert not server.requests

    def test_does_not_believe_the_client(self, server: KaggleServer, submission_file: Path) -> None:
        server.loses_submissions = True
        with pytest.raises(
            KitError, match=r"says '.*Success.*', but Kaggle lists no new submission"
        ):
            kaggle.submit(submission_file, "a model", patience=0)

    def test_a_submission_that_came_through_in_silence_is_found(
        self, server: KaggleServer, submission_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No answer is no proof that it was not submitted."""
        hurry(server, monkeypatch)
        server.answers_submission = False
        assert kaggle.submit(submission_file, "a model").description == "a model"

    def test_a_submission_whose_answer_was_cut_off_is_found(
        self, server: KaggleServer, submission_file: Path
    ) -> None:
        server.answers_submission = None
        assert kaggle.submit(submission_file, "a model").description == "a model"

    def test_ctrl_c_says_that_it_may_be_submitted(
        self, server: KaggleServer, packed: Path, submission_file: Path
    ) -> None:
        server.answers_submission = False
        command = [sys.executable, KERNELS / "submit.py", "--data", packed]
        command += ["--file", submission_file]
        with Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            until(lambda: server.submissions)
            os.killpg(process.pid, signal.SIGINT)
            _, stderr = process.communicate()
        assert process.returncode == 130
        last = stderr.splitlines()[-1]
        assert last.startswith("error: stopped: it may be submitted: type `make scores` before")
        assert_discreet(stderr)

    def test_tells_its_own_submission_from_a_team_mates(
        self, server: KaggleServer, submission_file: Path
    ) -> None:
        server.team_mate_submits = True
        submitted = kaggle.submit(submission_file, '-m, "quoted"\n')
        assert submitted.ref == 40_000_001
        assert submitted.description == '-m, "quoted"\n'

    @pytest.mark.skipif(CLIENT < (2, 2, 5), reason="kaggle 2.2.4 does not tell the number")
    def test_a_submission_that_is_listed_late_is_submitted(
        self, server: KaggleServer, submission_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its number came with the answer, and Kaggle knows it."""
        monkeypatch.setattr(time, "sleep", lambda _: None)
        server.unlisted = 3
        submitted = kaggle.submit(submission_file, "a model", patience=0)
        assert (submitted.ref, submitted.status) == (40_000_001, "PENDING")
        assert kaggle.wait_for_score(submitted.ref, timeout=30).public_score == "0.95123"

    @pytest.mark.skipif(CLIENT < (2, 2, 5), reason="kaggle 2.2.4 does not tell the number")
    def test_a_list_that_cannot_be_read_does_not_undo_a_submission(
        self, server: KaggleServer, submission_file: Path
    ) -> None:
        create = server.CreateSubmission

        def and_break(request: dict[str, Any]) -> dict[str, Any]:
            server.refusals["ListSubmissions"] = page(502, "Bad Gateway")
            return create(request)

        server.CreateSubmission = and_break  # type: ignore[method-assign]
        assert kaggle.submit(submission_file, "a model", patience=0).ref == 40_000_001

    @pytest.mark.parametrize(
        ("limits", "left"),
        [
            ({}, None),
            ({"numAllowedNow": "5"}, 5),
            ({"numAllowedNow": "many"}, None),
            ({"numAllowedNow": 0, "numToday": 5}, 0),
            ({"numAllowedNow": "0", "numToday": "5"}, 0),
        ],
    )
    def test_limits_are_read_as_kaggle_may_write_them(
        self, server: KaggleServer, limits: dict[str, object], left: int | None
    ) -> None:
        """All are 0 for whoever has not joined yet, and nothing is used up."""
        server.limits = limits
        assert kaggle.submissions_left() == left


def leaderboard(name: str, *scores: str) -> bytes:
    rows = "".join(f"{rank},{rank},a team,{score}\n" for rank, score in enumerate(scores, 1))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, f"Rank,TeamId,TeamName,Score\n{rows}")
    return buffer.getvalue()


class TestScores:
    def test_lists_submissions_the_newest_first(
        self, server: KaggleServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start_for_real(monkeypatch)
        # A folder of the client's name, where the user stands, is not the client.
        Path("kaggle").mkdir()
        Path("kaggle/__init__.py").write_text("raise SystemExit('not the client')")
        server.CreateSubmission({"blobFileTokens": "a.csv", "submissionDescription": "first"})
        server.CreateSubmission({"blobFileTokens": "b.csv", "submissionDescription": "second"})
        server.leaderboard = leaderboard("privateleaderboard.csv", "0.99", "0.94321", "", "0.5")
        done = run("scores")
        assert done.returncode == 0
        heading, newest, oldest = done.stdout.splitlines()
        assert "private rank of 3" in heading
        assert " ".join(newest.split()) == (
            "40000002 2026-01-02 03:04 COMPLETE 0.95123 0.94321 2 b.csv second"
        )
        assert oldest.split()[:4] == ["40000001", "2026-01-02", "03:04", "PENDING"]

    def test_the_leaderboard_is_fetched_once(self, server: KaggleServer) -> None:
        server.leaderboard = leaderboard("publicleaderboard.csv", "0.9", "0.8")
        for score, rank in (("0.91", 1), ("0.9", 1), ("0.85", 2), ("0.1", 3), ("", None)):
            board = kaggle.read_leaderboard()
            assert (board.kind, board.rank(score)) == ("public", rank)
        assert len(server.asked("leaderboard")) == 1

    @pytest.mark.parametrize("content", [b"", b"<html>", leaderboard("board.csv", "high")])
    def test_without_a_leaderboard_there_are_no_ranks(
        self, server: KaggleServer, content: bytes
    ) -> None:
        server.CreateSubmission({"blobFileTokens": "a.csv", "submissionDescription": "first"})
        server.leaderboard = content
        done = run("scores")
        assert done.returncode == 0
        assert "note: no ranks: " in done.stderr
        assert "0.94321" in done.stdout

    def test_a_score_that_is_null_is_not_shown(
        self, server: KaggleServer, packed: Path, submission_file: Path
    ) -> None:
        server.scored = {"status": "COMPLETE", "publicScore": None, "privateScore": None}
        done = run("submit", "--file", submission_file, "--data", packed)
        assert done.returncode == 0
        assert "public score  (not shown)\nprivate score (not shown)" in done.stdout

    def test_a_description_hides_no_submission_and_steers_no_terminal(
        self, server: KaggleServer
    ) -> None:
        for text in ("No submissions found", "\x1b[2J\x1b]0;title\x07 two\nlines", "x" * 10**6):
            server.CreateSubmission({"blobFileTokens": "a.csv", "submissionDescription": text})
        done = run("scores")
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == 4
        assert "No submissions found" in done.stdout
        assert "\\x1b[2J\\x1b]0;title\\x07 two lines" in done.stdout
        assert len(done.stdout) < 2_000

    def test_rows_that_lack_values_are_listed(self, server: KaggleServer) -> None:
        server.submissions = [
            {"ref": 7, "status": "COMPLETE", "publicScore": None},
            {"ref": None, "date": None, "status": "COMPLETE", "description": None},
        ]
        first, second = kaggle.list_submissions()
        assert (first.ref, first.status, first.public_score) == (7, "COMPLETE", "")
        assert (second.ref, second.description) == (0, "")
        assert run("scores").returncode == 0

    def test_an_echoed_credential_is_not_told(self, server: KaggleServer) -> None:
        echoes = [
            base64.b64encode(f"{prefix}nobody:{KEY}".encode()).decode().rstrip("=")
            for prefix in ("", "a", "ab")
        ]
        server.refusals = {"*": refusal(400, f"You sent {echoes} and auth={KEY}: no")}
        done = run("scores")
        assert done.returncode == 1
        assert not [echo for echo in echoes if echo in done.stderr]
        assert "You sent" in done.stderr

    @pytest.mark.usefixtures("server")
    def test_says_that_there_is_none(self) -> None:
        assert run("scores").stdout == "no submissions yet\n"
