"""The launcher of a managed vLLM: the key is read once from memory, and every path asks for it."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from verl_ext.platform import vllm_teacher
from verl_ext.platform.vllm_teacher import KeyNeeded, take_key
from verl_ext.teacher.engines.vllm import VLLM

KEY = "a-key-that-nobody-else-sees"


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What vLLM gets, the key having come as a managed server's does."""
    monkeypatch.setattr(vllm_teacher, "KEYS", [])
    hidden, descriptor = VLLM().hide_key(KEY, tmp_path)
    assert KEY not in " ".join(hidden)
    assert list(tmp_path.iterdir()) == []
    found = take_key(["--model", "m", *hidden, "--port", "1"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)  # nothing that is started later inherits it
    return found


def ask(app: KeyNeeded, kind: str, path: str, authorization: bytes | None) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "path": path,
        "headers": [] if authorization is None else [(b"authorization", authorization)],
    }
    asyncio.run(app(scope, None, send))
    return sent


async def theirs(_scope: Any, _receive: Any, send: Any) -> None:
    await send("theirs")


def test_the_key_is_no_word_of_vllms_and_the_middleware_is(words):
    assert words == ["--model", "m", "--port", "1", "--middleware", "vllm_teacher.KeyNeeded"]
    assert KEY not in str(os.environ)


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("path", ["/v1/completions", "/health", "/metrics", "/tokenize", "/version", "/anything"])
def test_every_path_asks_for_the_key(path):
    app = KeyNeeded(theirs)
    for wrong in (None, b"", b"Bearer ", b"Bearer wrong", KEY.encode(), f"Bearer {KEY}0".encode()):
        (start, body) = ask(app, "http", path, wrong)
        assert start["status"] == 401
        assert b"its key alone" in body["body"]
        assert ask(app, "websocket", path, wrong) == [{"type": "websocket.close", "code": 1008}]
    assert ask(app, "http", path, f"Bearer {KEY}".encode()) == ["theirs"]


@pytest.mark.usefixtures("words")
def test_the_servers_own_start_and_end_need_none():
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(KeyNeeded(theirs)({"type": "lifespan"}, None, send))
    assert sent == ["theirs"]


def test_without_a_key_vllm_gets_the_words_as_they_are():
    assert take_key(["--model", "m"]) == ["--model", "m"]
