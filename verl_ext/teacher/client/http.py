"""One try of one scoring request over HTTP."""

from typing import Any

import aiohttp
import orjson

from verl_ext.run.api_key import bearer_header
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.types import TeacherError, TeacherResponseError

BODY_EXCERPT = 300  # characters of a server's error message that we pass on


class ServerFailure(TeacherError):
    """This try failed; another server, or this one later, may succeed."""


class SGLangHttp:
    """Kept-alive connections to one server, as many as `teacher.max_concurrency` and one to admit it by the canary."""

    def __init__(self, url: str, config: TeacherConfig) -> None:
        self.url = url
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, body: dict[str, Any], sequences: int) -> list[dict[str, Any]]:
        """The `meta_info` of each of the body's `sequences`.

        Raises:
            ServerFailure: no answer, a 5xx, or not what SGLang answers.
            TeacherResponseError: a refusal (4xx).
        """
        try:
            async with self._open_session().post(
                f"{self.url}/generate", data=orjson.dumps(body), headers={"Content-Type": "application/json"}
            ) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerFailure(f"{self.url}: {type(error).__name__}: {error}") from error
        if response.status >= 500:
            raise ServerFailure(f"{self.url} answered {response.status}: {_excerpt(text)}")
        if response.status != 200:
            hint = f"; set {self._config.api_key_env}" if response.status in (401, 403) else ""
            raise TeacherResponseError(
                f"{self.url}/generate refused the request ({response.status}{hint}): {_excerpt(text)}"
            )
        try:
            metas = [answer["meta_info"] for answer in orjson.loads(text)]
        except (ValueError, KeyError, TypeError) as error:
            raise ServerFailure(f"{self.url} did not answer as SGLang does: {error!r}") from error
        if len(metas) != sequences:
            raise ServerFailure(f"{self.url} gave {len(metas)} answers to {sequences} sequences")
        return metas

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=bearer_header(self._config.api_key_env),
                timeout=aiohttp.ClientTimeout(total=self._config.request_timeout_s),
                connector=aiohttp.TCPConnector(limit=self._config.max_concurrency + 1),
            )
        return self._session


def _excerpt(text: bytes) -> str:
    return text[:BODY_EXCERPT].decode(errors="replace")
