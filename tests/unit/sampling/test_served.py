"""Servers of an OpenAI-compatible API that are busy, or answer what is no answer."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from verl_ext.sampling import served
from verl_ext.sampling.served import ServedSampler
from verl_ext.sampling.types import Answer, Request, SamplingConfig, SamplingError

GOOD = {
    "choices": [{"message": {"content": "en"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
}
REQUESTS = [Request(0, [{"role": "user", "content": "Good morning"}])]


class Server(ThreadingHTTPServer):
    replies: list[tuple[int, dict[str, str], str]]
    """Status, headers and body of each answer, in turn; then GOOD."""
    asked = 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        replies = self.server.replies
        status, headers, body = replies.pop(0) if replies else (200, {}, json.dumps(GOOD))
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(served, "BACKOFF_FIRST_S", 0.01)
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def ask(server: Server, **changes) -> list[Answer]:
    settings = {"max_concurrency": 2, "timeout_s": 5.0, "max_retries": 2, "api_key_env": "NO_KEY"} | changes
    url = f"http://127.0.0.1:{server.server_port}"
    return ServedSampler([url], "model", SamplingConfig(), **settings).answer(REQUESTS)


HTML = (200, {"Content-Type": "text/html"}, "<html>\n<b>Bad gateway</b>")
ERROR = (200, {}, '{"error": {"message": "overloaded"}}')


@pytest.mark.parametrize("reply", [(429, {"Retry-After": "0.05"}, ""), (503, {}, ""), HTML, ERROR, (200, {}, "{")])
def test_what_may_pass_is_asked_again(server: Server, reply):
    server.replies = [reply]
    assert ask(server) == [Answer("en", 2, "stop")]
    assert server.asked == 2


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((429, {"Retry-After": "0"}, ""), "429"),
        (HTML, "answered no JSON: <html> <b>Bad gateway</b>"),
        (ERROR, "did not answer as OpenAI's API does: {'error': {'message': 'overloaded'}}"),
        ((200, {}, "[]"), "did not answer as OpenAI's API does"),
    ],
)
def test_what_does_not_pass_is_said_in_one_line(server: Server, reply, says):
    server.replies = [reply] * 3
    with pytest.raises(SamplingError, match=r"^row 0: no answer after 3 tries [^\n]+$") as failed:
        ask(server)
    assert says in str(failed.value)


def test_a_refusal_is_not_asked_again(server: Server):
    server.replies = [(400, {}, "too long")]
    with pytest.raises(SamplingError, match=r"refused the request \(400\): too long"):
        ask(server)
    assert server.asked == 1
