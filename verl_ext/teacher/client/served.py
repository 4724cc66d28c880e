"""What a server that we did not start says of itself: its model, and the tokens that its tokenizer makes of a text."""

from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson

from verl_ext.run.api_key import bearer_header
from verl_ext.run.replies import PLAIN, SETTINGS_BYTES, read_body
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.engine import Served
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.types import TeacherResponseError, TeacherUnavailableError

TIMEOUT_S = 30.0


class ServerInfo:
    """Questions to one server besides scoring. Use it as an async context manager."""

    def __init__(self, url: str, config: TeacherConfig) -> None:
        self.url = url.rstrip("/")
        self._config, self._engine = config, engine_of(config.engine)
        self._session = aiohttp.ClientSession(
            headers=PLAIN | bearer_header(config.api_key_env), timeout=aiohttp.ClientTimeout(TIMEOUT_S)
        )

    async def __aenter__(self) -> "ServerInfo":
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._session.close()

    async def served(self) -> Served:
        """The model that it serves, and how.

        Raises:
            TeacherUnavailableError: no answer, or a refusal.
            TeacherResponseError: an answer that is not its engine's, or no such question.
        """
        try:
            return await self._engine.served(self.ask, self._config)
        except (KeyError, TypeError, AttributeError) as error:
            raise TeacherResponseError(
                f"{self.url} does not report its settings as {self._engine.title} does: {error!r}"
            ) from error

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text by the server's tokenizer, without special tokens of its own.

        Raises:
            TeacherUnavailableError, TeacherResponseError: as `served`; also where the server has no tokenizer.
        """
        try:
            return await self._engine.tokenize(self.ask, texts)
        except (KeyError, TypeError, ValueError) as error:
            raise TeacherResponseError(
                f"{self.url} does not answer with tokens as {self._engine.title} does: {error!r}"
            ) from error

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that it answers to a GET, or to a POST of `body`. Raises as `served` does."""
        method = "GET" if body is None else "POST"
        try:
            async with self._session.request(method, f"{self.url}{path}", json=body, allow_redirects=False) as response:
                if response.status != 200:
                    kind = TeacherResponseError if response.status == 404 else TeacherUnavailableError
                    raise kind(f"{self.url}{path} answered {response.status}")
                return orjson.loads(await read_body(response, SETTINGS_BYTES))
        except (aiohttp.ClientError, TimeoutError) as error:
            # No `from error`, no repr: they hold the Authorization header.
            raise TeacherUnavailableError(f"{self.url}{path}: {type(error).__name__}: {error}") from None
        except ValueError as error:
            raise TeacherResponseError(f"{self.url}{path} does not answer in JSON: {error}") from None
