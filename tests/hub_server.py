"""A Hugging Face hub on the loopback interface, for the real client: see `hub`."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conftest import serving

Repositories = dict[str, dict[str, bytes]]


TOKEN = "hf_thetokenthatmaywrite"


class Hub(ThreadingHTTPServer):
    """What it holds by repository and file.

    Repositories of the owner `gated` ask for terms to be accepted, those of `forbidden` refuse
    without a reason, and those of `cut` break off in the middle of their weights. Whoever has
    `TOKEN` may upload to the others; large files go to the store of Git LFS.
    """

    def __init__(self, repositories: Repositories) -> None:
        self.repositories = repositories
        self.asked: list[str] = []
        self.visibility: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    # A connection ends with its answer: the hub is gone when it is closed.
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/api/models/"):
            return self._list(self.path.removeprefix("/api/models/").partition("/tree/")[0])
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
        return None

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _take(self) -> None:
        """Answer what the client asks on the way of an upload."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {self.path}")
        place = self.path.strip("/").partition("?")[0]
        if place.startswith("large/"):
            return self._keep_large(place.partition("/")[2], body)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if place == "api/repos/create":
            return self._create(json.loads(body))
        if place == "api/validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if place.endswith("/settings"):
            repository = place.removeprefix("api/models/").removesuffix("/settings")
            self.server.visibility[repository] = json.loads(body)["visibility"]
            return self._say({})
        if place.endswith("/info/lfs/objects/batch"):
            return self._offer(place.partition("/")[0], json.loads(body)["objects"])
        if place.endswith("/preupload/main"):
            return self._choose_ways(json.loads(body)["files"])
        if place.endswith("/commit/main"):
            return self._commit(
                place.removeprefix("api/models/").removesuffix("/commit/main"), body
            )
        return self._refuse(404, "", "Not found.")

    def _create(self, asked: dict[str, str]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "forbidden":
            return self._refuse(403, "", "You have read access but not the required permissions.")
        if repository in self.server.repositories:
            return self._refuse(409, "", "You already created this model repo")
        self.server.repositories[repository] = {".gitattributes": b""}
        self.server.visibility[repository] = asked["visibility"]
        return self._say({"url": f"{self.server.address}/{repository}"})

    def _offer(self, owner: str, objects: list[dict[str, object]]) -> None:
        """Say where large files go."""
        where = f"{self.server.address}/large/{owner}/"
        offered = [
            {**one, "actions": {"upload": {"href": f"{where}{one['oid']}"}}} for one in objects
        ]
        self._say({"transfer": "basic", "objects": offered})

    def _keep_large(self, place: str, content: bytes) -> None:
        owner, _, oid = place.partition("/")
        if owner == "cut":
            self.close_connection = True
            return None
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large[oid] = content
        return self._say({})

    def _choose_ways(self, files: list[dict[str, str]]) -> None:
        ways = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith("safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self._say({"files": ways})

    def _commit(self, repository: str, body: bytes) -> None:
        """Take all files of a commit, one a line after its header."""
        _, *operations = map(json.loads, body.splitlines())
        files = self.server.repositories[repository]
        for operation in operations:
            value = operation["value"]
            is_large = operation["key"] == "lfsFile"
            files[value["path"]] = (
                self.server.large[value["oid"]] if is_large else base64.b64decode(value["content"])
            )
        commit = f"{self.server.address}/{repository}/commit/{'0' * 40}"
        self._say({"success": True, "commitOid": "0" * 40, "commitUrl": commit})

    def _list(self, repository: str) -> None:
        files = self.server.repositories[repository]
        self._say(
            [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in files.items()
            ]
        )

    def _say(self, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

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
    with serving(Hub(repositories)) as server:
        yield server
