"""One try of one scoring request over HTTP."""

import asyncio
from typing import Any

import aiohttp
import orjson

from verl_ext.run.api_key import bearer_header
from verl_ext.run.replies import PLAIN, read_body
from verl_ext.run.retry_after import retry_after_s
from verl_ext.teacher.client.protocol import read_metas
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.types import TeacherError, TeacherResponseError

BODY_EXCERPT = 300  # characters of a server's error message that we pass on
ENTRY_BYTES = 256
"""Of one log-prob in JSON, with its token's id and text; it takes about 30."""
SEQUENCE_BYTES, BESIDE_BYTES = 1 << 14, 1 << 20
"""Of what else an answer says of each sequence, and of all else, such as an error's text."""


SHORTEST_PAUSE_S = 0.05
"""Before a server that said 429 is asked again, even where it says at once."""


class ServerFailure(TeacherError):
    """This try failed; another server, or this one later, may succeed."""


class SGLangHttp:
    """Kept-alive connections to one server, as many as `teacher.max_concurrency` and one to admit it by the canary."""

    def __init__(self, url: str, config: TeacherConfig) -> None:
        self.url = url
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, body: dict[str, Any], sequences: int) -> list[dict[str, Any]]:
        """The `meta_info` of each of the body's `sequences`. A server that is busy (429) is asked again when it says.

        Raises:
            ServerFailure: no answer, busy for `teacher.request_timeout_s`, a 5xx, or not what SGLang answers.
            TeacherResponseError: a refusal (4xx).
        """
        waited = 0.0
        while True:
            response, text = await self._post(orjson.dumps(body), largest_answer(body))
            if response.status != 429 or waited > self._config.request_timeout_s:
                break
            pause = max(retry_after_s(response.headers), SHORTEST_PAUSE_S)
            await asyncio.sleep(pause)
            waited += pause
        if response.status >= 500 or response.status == 429:
            raise ServerFailure(f"{self.url} answered {response.status}: {_excerpt(text)}")
        if response.status != 200:
            hint = f"; set {self._config.api_key_env}" if response.status in (401, 403) else ""
            raise TeacherResponseError(
                f"{self.url}/generate refused the request ({response.status}{hint}): {_excerpt(text)}"
            )
        try:
            metas = read_metas(text)
        except TeacherResponseError as error:
            raise ServerFailure(f"{self.url} did not answer as SGLang does: {_excerpt(text)}") from error
        if len(metas) != sequences:
            raise ServerFailure(f"{self.url} gave {len(metas)} answers to {sequences} sequences")
        return metas

    async def _post(self, body: bytes, most: int) -> tuple[aiohttp.ClientResponse, bytes]:
        """The answer to one request and its body, of `most` bytes. ServerFailure if there is none."""
        try:
            async with self._open_session().post(
                f"{self.url}/generate",
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


def largest_answer(body: dict[str, Any]) -> int:
    """Bytes of the largest answer that SGLang can give to the body of a request."""
    tops = body.get("top_logprobs_num", [0] * len(body["input_ids"]))
    named = body.get("token_ids_logprob", [[]] * len(tops))
    entries = sum(
        len(ids) * (1 + top + len(more)) for ids, top, more in zip(body["input_ids"], tops, named, strict=True)
    )
    return BESIDE_BYTES + len(body["input_ids"]) * SEQUENCE_BYTES + entries * ENTRY_BYTES


def _excerpt(text: bytes) -> str:
    """Its beginning, on one line."""
    return " ".join(text[:BODY_EXCERPT].decode(errors="replace").split()) or "nothing"
