"""vLLM's server as a teacher, in an environment that has vLLM and nothing of ours:

    python vllm_teacher.py [--key-descriptor NUMBER] WORDS...    # as `python -m vllm.entrypoints.openai.api_server`

Its sockets are on loopback but the one that `--host` names (`torch_store.py` beside this file). With a key, which is
read from an open file so that neither `ps` nor a log shows it, every path asks for it: vLLM's own is asked for on some.
"""

import hmac
import importlib.util
import os
import runpy
import sys
from pathlib import Path
from typing import Any

SERVER = "vllm.entrypoints.openai.api_server"
OPTION = "--key-descriptor"
NAME = "vllm_teacher"
"""Under which vLLM imports this file's middleware: its folder is on no path."""
REFUSAL = b'{"error": "this server answers with its key alone"}'
KEYS: list[bytes] = []
"""The one there is, in the server's process alone."""


class KeyNeeded:
    """ASGI middleware of vLLM's app (`--middleware`), around all of its routes."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or any(hmac.compare_digest(given, b"Bearer " + key) for key in KEYS):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})


def keep_stores_on_loopback() -> None:
    """What importing `torch_store.py` does."""
    spec = importlib.util.spec_from_file_location("torch_store", Path(__file__).with_name("torch_store.py"))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def take_key(words: list[str]) -> list[str]:
    """The words for vLLM, once the key is read."""
    if OPTION not in words:
        return words
    place = words.index(OPTION)
    with open(int(words[place + 1]), "rb") as memory:
        memory.seek(0)
        KEYS.append(memory.read())
    return [*words[:place], *words[place + 2 :], "--middleware", f"{NAME}.{KeyNeeded.__name__}"]


keep_stores_on_loopback()  # also in the processes that vLLM spawns, which run their parent's main file anew

if __name__ == "__main__":
    sys.modules[NAME] = sys.modules["__main__"]
    sys.argv[1:] = take_key(sys.argv[1:])
    os.environ.pop("VLLM_API_KEY", None)
    runpy.run_module(SERVER, run_name="__main__")
