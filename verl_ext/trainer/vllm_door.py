"""Who vLLM's HTTP server answers in a run: those who have its key, and where there is none, nobody.

verl asks vLLM through Ray, never over HTTP, and its server listens all the same: it would sample for every user of the
machine, show the metrics of the run, and load adapters from their folders. vLLM's own key (`--api-key`) is asked for
below /v1 alone.
"""

import hmac
from typing import Any

from verl_ext.run.api_key import api_key

KEY = "VLLM_API_KEY"
"""vLLM's own environment variable."""
REFUSAL = b'{"error": "this server answers with the key of VLLM_API_KEY alone"}'


class KeyNeeded:
    """ASGI middleware of vLLM's app (`--middleware`), around all of its routes."""

    open_paths: frozenset[str] = frozenset()
    """Paths that answer without a key."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._wanted = f"Bearer {key}".encode() if (key := api_key(KEY)) else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._may(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})

    def _may(self, scope: Any) -> bool:
        if scope["path"] in self.open_paths:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return self._wanted is not None and hmac.compare_digest(given, self._wanted)


class MetricsOpen(KeyNeeded):
    """The same where verl writes a configuration for Prometheus, which has no key (`rollout.prometheus.enable`)."""

    open_paths = frozenset({"/metrics"})


def middleware_of(prometheus: bool) -> str:
    """What vLLM imports."""
    kind = MetricsOpen if prometheus else KeyNeeded
    return f"{kind.__module__}.{kind.__qualname__}"
