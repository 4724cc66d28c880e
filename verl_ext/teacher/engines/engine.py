"""One kind of server that scores, as everything else here sees it.

`client/` asks through it, `server/` starts through it, `store/` and the checks learn through it what is served. An
engine holds no state. Shapes as in `verl_ext/teacher/types.py`.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from verl_ext.teacher.client.protocol import Span
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.types import Score, ScoreRequest


@dataclass(frozen=True)
class Served:
    """What a server says of itself."""

    model_path: str
    """Folder on the server's machine, or hub name."""
    name: str
    """The name that it answers under; `model_path` where none was given."""
    weight_version: str
    """Changes with an update of the weights, where the engine counts them; else `default`."""
    dtype: str
    """Weights and activations, as it was started: `auto`, `float32`, ... vLLM does not say: `teacher.dtype`."""
    quantization: str | None
    """As it was started: None or `fp8`. vLLM does not say: `teacher.quantization`."""
    kv_cache_dtype: str
    """E.g. `auto`; `unsaid` by vLLM."""
    version: str
    """The engine's."""


class Ask(Protocol):
    """The JSON that a server answers to a GET, or to a POST of `body`.

    Raises:
        TeacherUnavailableError: no answer, or a refusal.
        TeacherResponseError: no JSON, or no such question.
    """

    def __call__(self, path: str, body: dict[str, Any] | None = None) -> Awaitable[Any]: ...


class Engine(Protocol):
    """Answers are what `answers` gives, one a sequence; what they are is the engine's own."""

    title: str
    """What people call it."""
    packages: tuple[str, ...]
    """Distributions that may hold it, the first that is installed counts."""
    path: str
    """Where it is asked for log-probs, by POST."""
    flush_path: str | None
    """Where a POST empties its prefix cache. None: it reads none while it scores, every prompt token is computed."""
    scores_named_tokens: bool
    """Whether it takes a request's `support_ids`."""
    fills_share: bool
    """On a GPU its KV cache is what is left of its share of the device, whatever `teacher.max_total_tokens` is."""
    leaks: tuple[str, ...]
    """Beginnings of the names of environment variables that are not handed on: those of the trainer's own engine."""

    def body(self, spans: Sequence[Span], requests: Sequence[ScoreRequest | None]) -> dict[str, Any]:
        """The body for several sequences; `None` marks a span that belongs to no request."""
        ...

    def largest_answer(self, body: dict[str, Any]) -> int:
        """Bytes of the largest answer that it can give to a body."""
        ...

    def answers(self, text: bytes) -> list[Any]:
        """The answer to each sequence, in order. TeacherResponseError if the text holds none."""
        ...

    def logprobs(self, answer: Any, span: Span, vocab_size: int) -> np.ndarray:
        """Log-probs of the tokens after `span.start`, float32. Raises TeacherResponseError if they are not that."""
        ...

    def score(self, answer: Any, span: Span, request: ScoreRequest, vocab_size: int) -> Score:
        """The answer to one request. Raises TeacherResponseError if it is not an answer to what was sent."""
        ...

    def cached_tokens(self, answer: Any) -> int:
        """Tokens of the sequence that were in its prefix cache. TeacherResponseError if it should say and does not."""
        ...

    async def served(self, ask: Ask, config: TeacherConfig) -> Served:
        """The model that it serves, and how. KeyError, TypeError, AttributeError if it is another server."""
        ...

    async def tokenize(self, ask: Ask, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text by its tokenizer, without special tokens of its own. Raises as `served` does."""
        ...

    def arguments(self, config: TeacherConfig, model: str, port: int) -> list[str]:
        """Arguments of the teacher's python; `model`: the folder, absolute, or a name of the hub."""
        ...

    def environment(self, config: TeacherConfig) -> dict[str, str]:
        """Environment variables that it needs."""
        ...

    def hide_key(self, key: str, scratch: Path) -> tuple[list[str], int]:
        """Arguments that give it the key from memory: as one of them it would show in `ps`, and a file may stay behind.

        `scratch`: a folder that is gone when the server is.

        Returns:
            The arguments, and the descriptor that the process must inherit under the same number.
        """
        ...
