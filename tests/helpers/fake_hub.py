"""A Hugging Face hub of one process: repositories are made, filled and listed in huggingface_hub's own protocol."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_of_the_fake_hub"
OWNERS = ("alice", "team")
ATTRIBUTES = b"*.safetensors filter=lfs\n"


@dataclass
class Hub:
    """What a hub holds, and what it was asked."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By repository and path."""
    private: dict[str, bool] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""
    large: dict[str, bytes] = field(default_factory=dict)
    """Content by SHA-256, as git-lfs stores it."""
    pointers: set[tuple[str, str]] = field(default_factory=set)
    """Repository and path of what is stored so."""
    loses: str = ""
    """A file that arrives changed."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test reads stderr."""

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = json.dumps({} if body is None else body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_one(self) -> None:
        content, path = self.body(), unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith("/lfs/"):
            self.hub.large[path.removeprefix("/lfs/")] = content
            return self.answer(200)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        asked = json.loads(content) if content and not path.endswith("/commit/main") else {}
        if path == "/api/repos/create":
            return self.create(asked)
        if path == "/api/validate-yaml":
            return self.validate(asked["content"])
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(asked)
        name, _, rest = path.removeprefix("/api/models/").partition("/")
        owner, (name, _, rest) = name, rest.partition("/")
        repository = f"{owner}/{name}"
        if repository not in self.hub.files:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if rest == "preupload/main":
            return self.modes(asked["files"])
        if rest == "commit/main":
            return self.commit(repository, [json.loads(line) for line in content.splitlines()])
        if rest.startswith("tree/"):
            return self.tree(repository)
        siblings = [{"rfilename": path} for path in self.hub.files[repository]]
        return self.answer(200, {"id": repository, "private": self.hub.private[repository], "siblings": siblings})

    do_GET = do_POST = do_PUT = handle_one

    def create(self, asked: dict[str, Any]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in OWNERS:
            return self.answer(403, X_Error_Message=f"You don't have the rights to create a model under {repository}")
        if repository in self.hub.files:
            return self.answer(409, {"url": f"{self.hub.url}/{repository}"}, X_Error_Message="You already created this")
        self.hub.files[repository] = {".gitattributes": ATTRIBUTES}
        self.hub.private[repository] = asked.get("visibility") == "private"
        return self.answer(200, {"url": f"{self.hub.url}/{repository}"})

    def validate(self, card: str) -> None:
        """As the hub: a base is the name of a model."""
        base = yaml.safe_load(card.split("---")[1]).get("base_model")
        if base is None or base.count("/") == 1:
            return self.answer(200, {})
        wrong = {"message": f'"base_model" with value "{base}" is not valid. Use a model id'}
        return self.answer(400, {"errors": [wrong]})

    def modes(self, files: list[dict[str, Any]]) -> None:
        large = (".safetensors", ".gguf")
        said = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular"} for f in files]
        self.answer(200, {"files": [each | {"shouldIgnore": False} for each in said]})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = [
            each | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}} for each in asked["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.files[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
                self.hub.pointers.add((repository, value["path"]))
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            if value.get("path") and value["path"] == self.hub.loses:
                files[value["path"]] = b"?"
        self.answer(200, {"commitOid": "1" * 40, "commitUrl": f"{self.hub.url}/{repository}/commit/{'1' * 40}"})

    def tree(self, repository: str) -> None:
        entries = []
        for path, content in self.hub.files[repository].items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
            if (repository, path) in self.hub.pointers:
                sha = hashlib.sha256(content).hexdigest()
                entry |= {"oid": "0" * 40, "lfs": {"oid": sha, "size": len(content), "pointerSize": 134}}
            entries.append(entry)
        self.answer(200, entries)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """On loopback, in a thread."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def content(folder: Path) -> dict[str, bytes]:
    """Of every file of a folder, by its path below it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held(hub: Hub, repository: str) -> dict[str, bytes]:
    """Of every file that was pushed, by its path."""
    return {path: data for path, data in hub.files[repository].items() if path != ".gitattributes"}
