"""The live view: a server on this machine alone, which writes the report again when the run's files change."""

import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from verl_ext.report.written import PAGE, TEXT
from verl_ext.run.loopback import LOOPBACK
from verl_ext.run.visible import print

WATCHED = (".json", ".jsonl", ".yaml")
"""Endings of the files whose change makes a new page."""
Stamp = tuple[tuple[str, int, int], ...]


def stamp_of(folder: Path) -> Stamp:
    """Name, size and time of what a report is made from, in the folder and the folders in it."""
    files = [file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.suffix in WATCHED]
    found = []
    for file in sorted(files):
        try:
            state = file.stat()
        except FileNotFoundError:  # replaced just now: the next look sees it
            continue
        found.append((str(file), state.st_size, state.st_mtime_ns))
    return tuple(found)


class Watched:
    """The newest page of a folder."""

    def __init__(self, folder: Path, make: Callable[[], str]) -> None:
        self.folder, self.make = folder, make
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._page, self.version = "", 0

    def page(self) -> str:
        """Made again where a file has changed since; as it was, and the reason on the console, where it cannot be."""
        with self._lock:
            stamp = stamp_of(self.folder)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._page = self.make()
                    self.version += 1
                except ValueError as error:
                    print(f"the page stays as it was: {error}", flush=True)
            return self._page


def handler_of(watched: Watched) -> type[BaseHTTPRequestHandler]:
    """Answers `/` with the page and `/stamp` with its number, to this machine's own names alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (LOOPBACK, "localhost"):  # a name of elsewhere that leads here would let its page read ours
                self._say(HTTPStatus.FORBIDDEN, "text/plain", f"ask for {LOOPBACK}")
            elif self.path == "/":
                self._say(HTTPStatus.OK, "text/html", watched.page())
            elif self.path == "/stamp":
                watched.page()
                self._say(HTTPStatus.OK, "text/plain", str(watched.version))
            else:
                self._say(HTTPStatus.NOT_FOUND, "text/plain", "/ is all there is")

        def _say(self, status: HTTPStatus, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a page that refreshes itself would fill the console."""

    return Handler


class Server(ThreadingHTTPServer):
    """One that leaves nothing behind, and says nothing of a browser that went away."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server_of(folder: Path, make: Callable[[], str], port: int) -> Server:
    """A server of a folder's page that listens on this machine alone. Raises ValueError where the port is taken."""
    try:
        return Server((LOOPBACK, port), handler_of(Watched(folder, make)))
    except OSError as error:
        raise ValueError(f"port={port} cannot be listened on ({error.strerror}); give another one, or 0") from None


def serve(folder: Path, make: Callable[[], str], port: int) -> None:
    """Serve a folder's page until Ctrl-C. Raises ValueError where the port is taken."""
    with server_of(folder, make, port) as server:
        print(
            f"http://{LOOPBACK}:{server.server_address[1]}/ shows it as it grows, on this machine; Ctrl-C ends",
            flush=True,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"\n{folder / PAGE} and {folder / TEXT} are as they were shown last", flush=True)
