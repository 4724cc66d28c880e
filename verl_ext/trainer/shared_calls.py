"""Requests to a vLLM server that are asked for at the same time travel in one call, and so do their answers.

verl calls a server once a sample, and a load balancer twice: three calls between processes, 3 ms a sample on a slow
core.
A sample's answer still arrives when it ends, not when the last of its prompt does. A single server needs no balancer.
"""

import asyncio
import functools
import uuid
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayError
from verl.workers.rollout import router
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.router import GlobalRequestLoadBalancer


class SamplerLost(RuntimeError):
    """A server is dead, or its engine: no request to it is answered any more."""


Requests = list[tuple[int, dict[str, Any]]]
Answers = list[tuple[int, TokenOutput | RuntimeError]]


class Answering:
    """In the server's process: the requests of every client, and the answers that ended since it last asked."""

    def __init__(self, generate: Any) -> None:
        """`generate`: the server's coroutine that answers one request."""
        self._generate = generate
        self._ended: dict[str, asyncio.Queue[tuple[int, TokenOutput | RuntimeError]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, client: str, requests: Requests) -> None:
        for number, request in requests:
            task = asyncio.create_task(self._answer(client, number, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def ended(self, client: str) -> Answers:
        """At least one answer."""
        queue = self._queue(client)
        answers = [await queue.get()]
        while not queue.empty():
            answers.append(queue.get_nowait())
        return answers

    async def _answer(self, client: str, number: int, request: dict[str, Any]) -> None:
        try:
            answer = await self._generate(**request)
        except SamplerLost as error:
            answer = error
        except Exception as error:  # whatever it is, it is the client's to hear
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        self._queue(client).put_nowait((number, answer))

    def _queue(self, client: str) -> asyncio.Queue[tuple[int, TokenOutput | RuntimeError]]:
        return self._ended.setdefault(client, asyncio.Queue())


class SharedServer:
    """A server's handle as verl's client uses it: `await server.generate.remote(**request)`."""

    def __init__(self, handle: Any) -> None:
        """`handle`: a Ray actor with the methods of `Answering`."""
        self.generate = self
        self.lost = False
        """A call failed, as where the server is dead: another handle must be asked for."""
        self._handle = handle
        self._client = uuid.uuid4().hex
        self._next: Requests = []
        self._open: dict[int, asyncio.Future[TokenOutput]] = {}
        self._count = 0
        self._listening: asyncio.Task[None] | None = None

    def remote(self, **request: Any) -> asyncio.Future[TokenOutput]:
        loop = asyncio.get_running_loop()
        if not self._next:
            loop.call_soon(self._send)  # when all that are ready to ask have asked
        self._count += 1
        self._next.append((self._count, request))
        self._open[self._count] = future = loop.create_future()
        return future

    def _send(self) -> None:
        requests, self._next = self._next, []
        try:
            self._handle.begin.remote(self._client, requests)
        except AttributeError as error:  # Ray's, of an actor that has no such method; the event loop would keep it
            self._fail(error)
            return
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        try:
            while self._open:
                for number, answer in await self._handle.ended.remote(self._client):
                    future = self._open.pop(number)
                    if future.done():
                        continue  # who asked was cancelled
                    if isinstance(answer, RuntimeError):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        except Exception as error:  # nobody awaits this task: those who wait for an answer hear whatever it is
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Tell all who wait for an answer; a fault is no dead server."""
        self.lost = True
        heard = SamplerLost(str(error)) if isinstance(error, RayError) else error
        for future in self._open.values():
            if not future.done():
                future.set_exception(heard)
        self._open.clear()


class SharedCalls:
    """Which server a request goes to: verl's choice, or the only one there is."""

    def __init__(self, client: LLMServerClient) -> None:
        self._acquire, self._release = client._acquire_server, client._release_server
        self._balancer: Any = client._load_balancer
        self._servers: dict[str, SharedServer] = {}
        self._only: tuple[str, SharedServer] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def acquire(self, request_id: str, **extra: Any) -> tuple[str, SharedServer]:
        if self._looking is None or (self._only is not None and self._only[1].lost):
            self._looking = asyncio.create_task(self._look(request_id, extra))
        if not self._looking.done() or self._looking.exception():
            await asyncio.shield(self._looking)
        return self._only or await self._chosen(request_id, extra)

    async def _look(self, request_id: str, extra: dict[str, Any]) -> None:
        """Whether there is a single server; looked for at the first request, and again when it is lost."""
        self._only = None
        if len(await self._balancer.get_all_servers.remote()) == 1:
            name, server = await self._chosen(request_id, extra)
            self._release(name, request_id=request_id)
            self._only = name, server

    def release(self, server_id: str, request_id: str | None = None) -> None:
        if self._only is None or self._only[0] != server_id:
            self._release(server_id, request_id=request_id)

    async def _chosen(self, request_id: str, extra: dict[str, Any]) -> tuple[str, SharedServer]:
        name, handle = await self._acquire(request_id, **extra)
        if name not in self._servers or self._servers[name].lost:
            self._servers[name] = SharedServer(handle)
        return name, self._servers[name]


def share_calls(client: LLMServerClient) -> None:
    """Let a client of verl's, or one derived of it, ask its servers this way."""
    shared = SharedCalls(client)
    client._acquire_server, client._release_server = shared.acquire, shared.release


class OnlyServer:
    """verl's load balancer in its client's own process, called as the actor that it else is.

    The actor's process would import vLLM with the server's handle, and the first request would wait seconds for it.
    """

    def __init__(self, servers: dict[str, Any]) -> None:
        self._balancer = GlobalRequestLoadBalancer(servers)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pickle asks before there is a balancer
            raise AttributeError(name)
        return SimpleNamespace(remote=functools.partial(self._call, getattr(self._balancer, name)))

    def _call(self, method: Any, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(method(*args, **kwargs))
        return answer


def balance_one_server_here() -> None:
    """Let verl's `LLMServerManager` start no load balancer where it would have one server to choose from."""
    theirs = router.get_router_handle

    def balancer_of(servers: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        asked = [*args, *kwargs.values()]
        return theirs(servers, *args, **kwargs) if len(servers) > 1 or any(asked) else OnlyServer(servers)

    router.get_router_handle = balancer_of
