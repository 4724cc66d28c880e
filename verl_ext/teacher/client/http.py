"""One try of one scoring request over HTTP."""

import asyncio
from typing import Any

import aiohttp
import orjson

from verl_ext.run.api_key import bearer_header
from verl_ext.run.replies import PLAIN, read_body
from verl_ext.run.retry_after import retry_after_s
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.types import TeacherError, TeacherResponseError

BODY_EXCERPT = 300  # characters of a server's error message that we pass on
SHORTEST_PAUSE_S = 0.05
"""Before a server that said 429 is asked again, even where it says at once."""


class ServerFailure(TeacherError):
    """This try failed; another server, or this one later, may succeed."""


class ScoringHttp:
    """Kept-alive connections to one server, as many as `teacher.max_concurrency` and one to admit it by the canary."""

    def __init__(self, url: str, config: TeacherConfig) -> None:
        self.url = url
        self._config = config
        self._engine = engine_of(config.engine)
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, body: dict[str, Any], sequences: int) -> list[Any]:
        """The answer to each of the body's `sequences`. A server that is busy (429) is asked again when it says.

        Raises:
            ServerFailure: no answer, busy for `teacher.request_timeout_s`, a 5xx, or not what its engine answers.
            TeacherResponseError: a refusal (4xx).
        """
        waited = 0.0
        while True:
            response, text = await self._post(orjson.dumps(body), self._engine.largest_answer(body))
            if response.status != 429 or waited > self._config.request_timeout_s:
                break
            pause = max(retry_after_s(response.headers), SHORTEST_PAUSE_S)
            await asyncio.sleep(pause)
            waited += pause
        if response.status >= 500 or response.status == 429:
            raise ServerFailure(f"{self.url} answered {response.status}: {_excerpt(text)}")
        if response.status != 200:
            set_key = f"; set {self._config.api_key_env}"
            hints = {401: set_key, 403: set_key, 404: f"; is it no {self._engine.title}? set teacher.engine"}
            hint = hints.get(response.status, "")
            raise TeacherResponseError(
                f"{self.url}{self._engine.path} refused the request ({response.status}{hint}): {_excerpt(text)}"
            )
        try:
            answers = self._engine.answers(text)
        except TeacherResponseError as error:
            raise ServerFailure(f"{self.url} did not answer as {self._engine.title} does: {_excerpt(text)}") from error
        if len(answers) != sequences:
            raise ServerFailure(f"{self.url} gave {len(answers)} answers to {sequences} sequences")
        return answers

    async def _post(self, body: bytes, most: int) -> tuple[aiohttp.ClientResponse, bytes]:
        """The answer to one request and its body, of `most` bytes. ServerFailure if there is none."""
        try:
            async with self._open_session().post(
                f"{self.url}{self._engine.path}",
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,  # the key is for this server
            ) as response:
                return response, await read_body(response, most)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerFailure(f"{self.url}: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=PLAIN | bearer_header(self._config.api_key_env),
                timeout=aiohttp.ClientTimeout(total=self._config.request_timeout_s),
                connector=aiohttp.TCPConnector(limit=self._config.max_concurrency + 1),
            )
        return self._session


def _excerpt(text: bytes) -> str:
    """Its beginning, on one line."""
    return " ".join(text[:BODY_EXCERPT].decode(errors="replace").split()) or "nothing"
