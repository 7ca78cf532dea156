"""A Kaggle of our own on the loopback device, for the unmodified client to talk to.

It speaks the client's protocol (kaggle 2.2) for one competition, and fails on request. Its answers
follow the client's own field tables, so it proves what the client and the kit do, not what
Kaggle sends.
"""

import gzip
import io
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from conftest import serving
from warm_client import start_warm

from kit.base import competition

KEY = "0123456789-the-key-of-nobody"
TOKEN = "KGAT_0123456789-the-token-of-nobody"
SIGNATURE = "the-signature-of-a-link"
SECRETS = (KEY, TOKEN, SIGNATURE)

ETAG = '"archive-1"'


@dataclass
class Answer:
    """What the server says instead of the truth."""

    status: int
    body: bytes
    kind: str = "application/json"


def refusal(status: int, message: str) -> Answer:
    """Return an error as Kaggle's API words it."""
    return Answer(status, json.dumps({"code": status, "message": message}).encode())


def page(status: int, title: str) -> Answer:
    """Return a page as gateways, proxies and file stores send it."""
    return Answer(status, f"<!DOCTYPE html><title>{title}</title>".encode(), "text/html")


@dataclass
class Cut:
    """A transfer whose connection is cut after so many bytes."""

    after: int


@dataclass
class Stall:
    """A transfer that stops after so many bytes and hangs until the client goes away."""

    after: int


@dataclass
class Trickle:
    """A transfer that takes so many seconds, a little at a time."""

    seconds: float


Fault = Answer | Cut | Stall | Trickle


@dataclass
class KaggleServer:
    """The state of the server: what it holds, what it will do, and what it was asked.

    Attributes
    ----------
    refusals
        API method -> what it answers; "*" stands for all of them.
    transfers
        What becomes of the coming requests for the archive, one each; then all goes well.
    pending
        For how many listings a new submission has no score yet.
    unlisted
        For how many listings a new submission is not listed.
    loses_submissions
        Whether it says that it takes a submission, and does not.
    answers_submission
        Whether it says anything when it has taken one; None cuts the connection.
    client_version
        The newest client there is, as Kaggle's answers tell in a header; empty for none.
    team_mate_submits
        Whether another submission of the team comes in with each.
    pushed
        What the last kernel was pushed with.
    push_answer
        What it says to that, instead of that all is well.
    kernel_status
        Of the latest version.
    failure
        What Kaggle says of that version's failure.
    log
        What it has printed.
    output
        What that version has left, by name.
    output_faults
        What becomes of the coming requests for one of these files, one each.
    compresses
        Whether a proxy on the way compresses the archive, and tells the compressed size.
    dataset
        What the account's dataset was made with.
    blobs
        The files that were uploaded for it, by name.
    leaderboard
        A zip of the teams' scores.
    on_silence
        Called with True before it says its last word to a client, and with False when that has
        gone away.
    requests
        (API method or path, headers) in the order in which they came.
    """

    port: int = 0
    archive: bytes = b""
    file_sizes: dict[str, int] | None = None
    refusals: dict[str, Answer | Cut | Stall] = field(default_factory=dict)
    transfers: list[Answer | Cut | Stall] = field(default_factory=list)
    upload_status: int = 200
    uploaded: bytes = b""
    submissions: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=lambda: {"numAllowedNow": 5})
    pending: int = 0
    unlisted: int = 0
    scored: dict[str, Any] = field(
        default_factory=lambda: {
            "status": "COMPLETE",
            "publicScore": "0.95123",
            "privateScore": "0.94321",
        }
    )
    loses_submissions: bool = False
    answers_submission: bool | None = True
    client_version: str = ""
    team_mate_submits: bool = False
    pushed: dict[str, Any] = field(default_factory=dict)
    push_answer: dict[str, Any] = field(default_factory=dict)
    kernel_status: str = "COMPLETE"
    failure: str = ""
    log: str = "what the kernel printed\n"
    output: dict[str, bytes] = field(default_factory=dict)
    output_faults: dict[str, list[Fault]] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    compresses: bool = False
    leaderboard: bytes = b""
    on_silence: Callable[[bool], object] = lambda _: None

    def asked(self, name: str) -> list[dict[str, str]]:
        """Return the headers of the requests of one name."""
        return [headers for asked, headers in self.requests if asked == name]

    def environment(self, home: Path) -> dict[str, str]:
        """Return an environment in which the client finds this server and a username and key.

        Only the plain-text address of the local environment can be redirected, through the proxy
        variables; the other proxy makes a client that turns to the real Kaggle fail at once.
        """
        dropped = ("KAGGLE_", "VERBOSE", "XDG_CONFIG")
        proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(dropped) and name.lower() not in proxies
        }
        proxy = f"http://127.0.0.1:{self.port}"
        return kept | {
            "HOME": str(home),
            "http_proxy": proxy,
            "https_proxy": proxy,
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": "nobody",
            "KAGGLE_KEY": KEY,
        }

    # The API's methods, by their names there.

    def ListDataFiles(self, _: dict[str, Any]) -> dict[str, Any]:
        sizes = self.file_sizes
        if sizes is None:
            with zipfile.ZipFile(io.BytesIO(self.archive)) as archive:
                sizes = {info.filename: info.file_size for info in archive.infolist()}
        names = list(sizes)[:200]
        files = [{"name": name, "totalBytes": sizes[name]} for name in names]
        return {"files": files, "nextPageToken": "more" if len(sizes) > 200 else ""}

    def StartSubmissionUpload(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"token": request["fileName"], "createUrl": "http://localhost/upload"}

    def CreateSubmission(self, request: dict[str, Any]) -> dict[str, Any]:
        ref = 40_000_001 + len(self.submissions)
        row = {
            "ref": ref,
            "date": "2026-01-02T03:04:05.678Z",
            "fileName": request["blobFileTokens"],
            "description": request["submissionDescription"],
            "status": "PENDING",
        }
        if not self.loses_submissions:
            self.submissions.insert(0, row)
        if self.team_mate_submits:
            other = {"ref": ref + 1_000, "description": "another model", "status": "PENDING"}
            self.submissions.insert(0, row | other)
        return {"message": "Successfully submitted to Histopathologic Cancer Detection", "ref": ref}

    def GetSubmissionLimits(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.limits

    def ListSubmissions(self, _: dict[str, Any]) -> dict[str, Any]:
        if self.unlisted and self.submissions:
            self.unlisted -= 1
            return {"submissions": self.submissions[1:]}
        waiting = [row for row in self.submissions if row["status"] == "PENDING"]
        if waiting and self.pending:
            self.pending -= 1
        elif waiting:
            waiting[0].update(self.scored)
        return {"submissions": self.submissions}

    def IntrospectToken(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"active": True, "username": "nobody"}

    def GetSubmission(self, request: dict[str, Any]) -> dict[str, Any] | Answer:
        found = [row for row in self.submissions if row["ref"] == request["ref"]]
        return found[0] if found else refusal(404, "Not found")

    def SaveKernel(self, request: dict[str, Any]) -> dict[str, Any]:
        self.pushed = request
        address = f"https://www.kaggle.com/code/{request['slug']}"
        return {"url": address, "versionNumber": 3} | self.push_answer

    def GetDatasetStatus(self, _: dict[str, Any]) -> dict[str, Any] | Answer:
        return {"status": "READY"} if self.dataset else refusal(404, "Not found")

    def StartBlobUpload(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"token": request["name"], "createUrl": f"http://localhost/blob/{request['name']}"}

    def CreateDataset(self, request: dict[str, Any]) -> dict[str, Any]:
        self.dataset = request
        return {"status": "ok", "url": "https://www.kaggle.com/datasets/nobody/the-dataset"}

    def GetKernelSessionStatus(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"status": self.kernel_status, "failureMessage": self.failure}

    def ListKernelSessionOutput(self, request: dict[str, Any]) -> dict[str, Any]:
        """List the output by the page."""
        start = int(request.get("pageToken") or 0)
        end = start + request["pageSize"]
        files = [
            {
                "fileName": name,
                "url": f"http://localhost/output/{name}?X-Goog-Signature={SIGNATURE}",
            }
            for name in list(self.output)[start:end]
        ]
        more = {"nextPageToken": str(end)} if end < len(self.output) else {}
        return {"files": files, "log": self.log, **more}


@contextmanager
def serve(archive: bytes = b"") -> Iterator[KaggleServer]:
    """Run a server in a thread, on a free port of the loopback device."""
    state = KaggleServer(archive=archive)

    class Handler(_Handler):
        kaggle = state

    with serving(_Server(("127.0.0.1", 0), Handler)) as server:
        state.port = server.server_port
        yield state


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a client that has gone away: the command in this process prints, too."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    kaggle: KaggleServer

    def log_message(self, *_: object) -> None:
        """Stay silent: the tests read stderr."""

    def do_POST(self) -> None:
        request = json.loads(self._body() or b"{}")
        method = urlsplit(self.path).path.rpartition("/")[2]
        self._note(method)
        fault = self.kaggle.refusals.get(method, self.kaggle.refusals.get("*"))
        if isinstance(fault, Cut):
            return
        if isinstance(fault, Stall):
            self._hang()
        elif fault:
            self._answer(fault)
        elif method in ("DownloadDataFiles", "DownloadLeaderboard"):
            self.send_response(302)
            what = "archive" if method == "DownloadDataFiles" else "leaderboard"
            link = f"http://localhost/files/{what}.zip?X-Goog-Signature={SIGNATURE}"
            self.send_header("Location", link)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            answer = getattr(self.kaggle, method)(request)
            if method == "CreateSubmission" and not self.kaggle.answers_submission:
                if self.kaggle.answers_submission is False:
                    self._hang()
                return
            done = isinstance(answer, Answer)
            self._answer(answer if done else Answer(200, json.dumps(answer).encode()))

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/output/"):
            name = path.removeprefix("/output/")
            self._note(name)
            whole, faults = self.kaggle.output[name], self.kaggle.output_faults.get(name, [])
        elif path.endswith("leaderboard.zip"):
            self._note("leaderboard")
            whole, faults = self.kaggle.leaderboard, []
        else:
            self._note("archive")
            whole, faults = self.kaggle.archive, self.kaggle.transfers
        fault = faults.pop(0) if faults else None
        if isinstance(fault, Answer):
            self._answer(fault)
        else:
            self._transfer(whole, fault)

    def do_PUT(self) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        self._note(name)
        if self.headers.get("Content-Range", "").startswith("bytes */"):
            # How much has come: nothing.
            self._answer(Answer(308, b""))
            return
        if name == "upload":
            self.kaggle.uploaded = self._body()
        else:
            self.kaggle.blobs[name] = self._body()
        self._answer(Answer(self.kaggle.upload_status, b""))

    def do_CONNECT(self) -> None:
        """Refuse the way to the real Kaggle."""
        self._note(f"CONNECT {self.path}")
        self._answer(Answer(403, b""))

    def _note(self, name: str) -> None:
        self.kaggle.requests.append((name, dict(self.headers)))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        if self.kaggle.client_version:
            self.send_header("X-Kaggle-APIVersion", self.kaggle.client_version)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _transfer(self, whole: bytes, fault: Cut | Stall | Trickle | None) -> None:
        """Send a file, or what is missing of it: RFC 9110, sections 13.1.5 and 14."""
        start = 0
        if "Range" in self.headers and self.headers["If-Range"] == ETAG:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if self.kaggle.compresses:
            whole, start = gzip.compress(whole), 0
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(whole) - start))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", ETAG)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        content = whole[start:]
        if isinstance(fault, Stall):
            self.kaggle.on_silence(True)
        if isinstance(fault, Trickle):
            while content:
                self.wfile.write(content[: len(whole) // 20 + 1])
                self.wfile.flush()
                content = content[len(whole) // 20 + 1 :]
                time.sleep(fault.seconds / 20)
        else:
            self.wfile.write(content[: fault.after] if fault else content)
        if isinstance(fault, Stall):
            self._hang()

    def _hang(self) -> None:
        """Say no more until the client goes away."""
        self.kaggle.on_silence(True)
        self.wfile.flush()
        self.connection.settimeout(60)
        with suppress(ConnectionResetError):
            self.connection.recv(1)
        self.close_connection = True
        self.kaggle.on_silence(False)


def competition_zip(train: int, test: int) -> bytes:
    """Return a small competition in Kaggle's own layout; its tiles are noise."""
    rng = np.random.default_rng(0)
    shape = (competition.TILE_SIZE, competition.TILE_SIZE, competition.CHANNELS)
    tables = {"train": "id,label\n", "test": "id,label\n"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for split, count in {"train": train, "test": test}.items():
            for index in range(count):
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                name = competition.tile_id(pixels.tobytes())
                archive.writestr(f"{split}/{name}.tif", tiff(pixels))
                tables[split] += f"{name},{index % 2 if split == 'train' else 0}\n"
        archive.writestr(competition.LABELS_FILE, tables["train"])
        archive.writestr(competition.SAMPLE_FILE, tables["test"])
    return buffer.getvalue()


def move_in(kaggle: KaggleServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process and its children, in `folder`, take a server for Kaggle."""
    start_warm(monkeypatch)
    environment = kaggle.environment(folder / "home")
    (folder / "home").mkdir()
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)


def tiff(pixels: np.ndarray) -> bytes:
    """Return a tile as an uncompressed TIFF of one strip."""
    options = [cv2.IMWRITE_TIFF_COMPRESSION, 1, cv2.IMWRITE_TIFF_ROWSPERSTRIP, len(pixels)]
    return cv2.imencode(".tif", pixels[..., ::-1], options)[1].tobytes()


def until(true: Any, seconds: float = 120) -> None:
    """Wait until a function returns something true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
