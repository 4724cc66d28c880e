"""A process that takes SGLang's arguments and answers like it, at once: what the supervisor and its guard are tried on.

Run as `sglang.launch_server` would be; `python_for` writes the interpreter that does so.
"""

import http.server
import json
import mmap
import sys
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        entries = [
            [[None if i == 0 else -1.0, token, None] for i, token in enumerate(ids)] for ids in body["input_ids"]
        ]
        self.answer(json.dumps([{"meta_info": {"input_token_logprobs": each}} for each in entries]))

    def do_GET(self) -> None:
        self.answer("# TYPE sglang:x gauge\nsglang:x 3.0\n")

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())


def python_for(folder: Path) -> str:
    """An interpreter that runs this file in place of every module."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{__file__}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def segment_of(port: int | str) -> Path:
    """The shared memory of the server at a port."""
    return Path(f"/dev/shm/verl-opd-test-{port}")


if __name__ == "__main__":
    words = sys.argv[1:]
    host, port = (words[words.index(name) + 1] for name in ("--host", "--port"))
    with open(segment_of(port), "w+b") as segment:  # as SGLang's load snapshot
        segment.truncate(4096)
        mapped = mmap.mmap(segment.fileno(), 4096)
    print("serving", " ".join(words), flush=True)
    http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
