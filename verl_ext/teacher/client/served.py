"""What a server that we did not start says of itself: its model, and the tokens that its tokenizer makes of a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from verl_ext.run.api_key import bearer_header
from verl_ext.run.replies import PLAIN, SETTINGS_BYTES, read_body
from verl_ext.teacher.types import TeacherResponseError, TeacherUnavailableError

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Served:
    """Of SGLang's `/model_info` and `/server_info`; the latter also holds the API key in clear, which is not read."""

    model_path: str
    """Folder on the server's machine, or hub name."""
    name: str
    """The name that it answers under; `model_path` where none was given."""
    weight_version: str
    """Changes with an update of the weights."""
    dtype: str
    """Weights and activations, as it was started: `auto`, `float32`, `bfloat16`, ..."""
    quantization: str | None
    """As it was started: None or `fp8`."""
    kv_cache_dtype: str
    """As SGLang has it, e.g. `auto`."""
    version: str
    """SGLang's."""


class ServerInfo:
    """Questions to one server besides scoring. Use it as an async context manager."""

    def __init__(self, url: str, api_key_env: str) -> None:
        self.url = url.rstrip("/")
        self._session = aiohttp.ClientSession(
            headers=PLAIN | bearer_header(api_key_env), timeout=aiohttp.ClientTimeout(TIMEOUT_S)
        )

    async def __aenter__(self) -> "ServerInfo":
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._session.close()

    async def served(self) -> Served:
        """The model that it serves, and how.

        Raises:
            TeacherUnavailableError: no answer, or a refusal.
            TeacherResponseError: an answer that is not SGLang's, or no such question.
        """
        model, server = await self.ask("/model_info"), await self.ask("/server_info")
        try:
            return Served(
                model_path=str(model["model_path"]),
                name=str(model.get("served_model_name") or model["model_path"]),
                weight_version=str(model["weight_version"]),
                dtype=server["dtype"],
                quantization=server["quantization"],
                kv_cache_dtype=server["kv_cache_dtype"],
                version=server["version"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise TeacherResponseError(f"{self.url} does not report its settings as SGLang does: {error!r}") from error

    async def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text by the server's tokenizer, without special tokens of its own.

        Raises:
            TeacherUnavailableError, TeacherResponseError: as `served`; also where the server has no tokenizer.
        """
        answer = await self.ask("/v1/tokenize", {"prompt": list(texts), "add_special_tokens": False})
        try:
            return [[int(token) for token in ids] for ids in answer["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise TeacherResponseError(f"{self.url}/v1/tokenize does not answer as SGLang does: {error!r}") from error

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
