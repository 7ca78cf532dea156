"""A Hugging Face hub on the loopback interface, for the real client: see `hub`."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

Repositories = dict[str, dict[str, bytes]]


class Hub(ThreadingHTTPServer):
    """What it holds by repository and file.

    Repositories of the owner `gated` ask for terms to be accepted, those of `forbidden` refuse
    without a reason, and those of `cut` break off in the middle of their weights.
    """

    def __init__(self, repositories: Repositories) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        owner, file = repository.partition("/")[0], rest.partition("/")[2]
        files = self.server.repositories.get(repository)
        if owner == "gated":
            return self._refuse(403, "GatedRepo", "Access to it is restricted.")
        if owner == "forbidden":
            return self._refuse(403, "", "Forbidden.")
        if files is None:
            return self._refuse(404, "RepoNotFound", "Repository not found.")
        if file not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found.")
        content = files[file]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            is_cut = owner == "cut" and file.endswith("safetensors")
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
            self.close_connection = self.close_connection or is_cut
        return None

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(repositories: Repositories) -> Iterator[Hub]:
    """Serve repositories until the block ends."""
    with Hub(repositories) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
