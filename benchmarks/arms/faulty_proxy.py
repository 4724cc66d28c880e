"""Stands before a real SGLang server and spoils some of its answers."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import ClientSession, web


# Each fault turns SGLang's real answer into (status, body).
def error_500(_answer: bytes) -> tuple[int, bytes]:
    return 500, b"CUDA error: an illegal memory access was encountered"


def truncated(answer: bytes) -> tuple[int, bytes]:
    return 200, answer[: len(answer) // 2]


def _with_last_logprob(answer: bytes, logprob: float) -> tuple[int, bytes]:
    outcomes = json.loads(answer)
    outcomes[0]["meta_info"]["input_token_logprobs"][-1][0] = logprob
    return 200, json.dumps(outcomes).encode()


def not_a_number(answer: bytes) -> tuple[int, bytes]:
    return _with_last_logprob(answer, float("nan"))


def above_zero(answer: bytes) -> tuple[int, bytes]:
    return _with_last_logprob(answer, 0.5)


def one_token_short(answer: bytes) -> tuple[int, bytes]:
    outcomes = json.loads(answer)
    outcomes[0]["meta_info"]["input_token_logprobs"].pop()
    return 200, json.dumps(outcomes).encode()


def one_sample_short(answer: bytes) -> tuple[int, bytes]:
    return 200, json.dumps(json.loads(answer)[1:]).encode()


class Proxy:
    """Stands before a real server. The admission probe passes untouched; of the others a `share` suffers."""

    def __init__(self, target: str, fault: Callable[[bytes], tuple[int, bytes]] | None, share: float):
        self.target, self.fault, self.share = target, fault, share
        self.slower = 1  # times the server's own latency
        self.faults = self.received = 0
        self.url = ""
        self._rng = random.Random(0)
        self._session: ClientSession | None = None

    @property
    def session(self) -> ClientSession:
        """To the server; connections are kept."""
        if self._session is None:
            self._session = ClientSession(headers={"Content-Type": "application/json"})
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def handle(self, request: web.Request) -> web.Response:
        self.received += 1
        body = await request.read()
        started = asyncio.get_running_loop().time()
        async with self.session.post(f"{self.target}/generate", data=body) as answer:
            status, text = answer.status, await answer.read()
        await asyncio.sleep((asyncio.get_running_loop().time() - started) * (self.slower - 1))
        if self.fault is not None and len(json.loads(body)["input_ids"]) > 1 and self._rng.random() < self.share:
            self.faults += 1
            status, text = self.fault(text)
        return web.Response(status=status, body=text, content_type="application/json")


@asynccontextmanager
async def proxy(
    target: str, fault: Callable[[bytes], tuple[int, bytes]] | None = None, share: float = 1.0
) -> AsyncIterator[Proxy]:
    middle = Proxy(target, fault, share)
    application = web.Application(client_max_size=1 << 26)
    application.router.add_post("/generate", middle.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    middle.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield middle
    finally:
        await middle.close()
        await runner.cleanup()


FAULTS = [error_500, truncated, not_a_number, above_zero, one_token_short, one_sample_short]
