"""Ask a model for answers to conversations: what is asked, and servers that speak OpenAI's chat API.

vLLM in this process: verl_ext/sampling/vllm.py. Both send every sampling setting, so that no default of an engine or of
a model's generation_config.json gets in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from verl_ext.ledger.meter import Meter
from verl_ext.run.settings import one_of, within

DTYPES = ("auto", "float32", "bfloat16", "float16")


class SamplingError(RuntimeError):
    """A server does not answer, or refuses."""


@dataclass(frozen=True)
class SamplingConfig:
    """How an answer is drawn. The defaults are those of Tinker's prompt distillation."""

    temperature: float = 0.15
    """Of the softmax; 0 is greedy, >= 0."""
    top_p: float = 1.0
    """Share of the probability mass that is sampled from, in (0, 1]; 1 is all of it."""
    top_k: int = -1
    """Most probable tokens that are sampled from, >= 1; -1 is all of them."""
    max_tokens: int = 1000
    """Longest answer, tokens, >= 1."""
    stop: list[str] = field(default_factory=lambda: ["<|im_end|>"])
    """Texts that end an answer and are no part of it; special tokens count as the text that they stand for."""
    seed: int = 0
    """A row is sampled with this plus its index, >= 0: a resumed run draws what the whole one would have drawn."""
    enable_thinking: bool | None = False
    """Handed to the chat template, which may ignore it; null leaves the choice to the template."""

    def __post_init__(self) -> None:
        within("sampling.temperature", self.temperature, 0, float("inf"))
        within("sampling.seed", self.seed, 0, float("inf"))
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p={self.top_p} must be above 0, at most 1")
        if self.top_k != -1 and self.top_k < 1:
            raise ValueError(f"sampling.top_k={self.top_k} must be >= 1, or -1 for all tokens")
        if self.max_tokens < 1:
            raise ValueError(f"sampling.max_tokens={self.max_tokens} must be >= 1")

    @property
    def template_kwargs(self) -> dict[str, Any]:
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}


@dataclass(frozen=True)
class EngineConfig:
    """How vLLM runs in this process; of no effect on a served model."""

    dtype: str = "auto"
    """`auto` (the checkpoint's own), `float32`, `bfloat16`, `float16`."""
    tp: int = 1
    """Tensor-parallel ranks, >= 1; one GPU each."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory for weights and KV cache, in (0, 1]; on a CPU of no effect."""
    enforce_eager: bool = False
    """Capture no CUDA graphs: starts faster, samples slower. On a CPU always so."""

    def __post_init__(self) -> None:
        one_of("engine.dtype", self.dtype, DTYPES)
        if self.tp < 1:
            raise ValueError(f"engine.tp={self.tp} must be >= 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"engine.gpu_memory_utilization={self.gpu_memory_utilization} must be above 0, at most 1")


@dataclass(frozen=True)
class Request:
    """A conversation to answer; `index` tells it from the others and goes into its seed."""

    index: int
    messages: list[dict[str, str]]


CUT_OFF = ("length", "abort")
"""Reasons of an engine for an answer that did not come to its end."""


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    tokens: int
    finish: str
    """`stop`, or `length` where `max_tokens` or the context cut it off."""

    @property
    def truncated(self) -> bool:
        """It was cut off before its end."""
        return self.finish in CUT_OFF


@dataclass(frozen=True)
class Sample(Answer):
    """An answer token by token, as vLLM drew it; `R` response tokens."""

    ids: list[int]
    """Token ids, the end token included, (R,)."""
    logprobs: list[float]
    """The sampler's own log-probs of them, nats, at temperature 1 and over all tokens however they were drawn, (R,)."""


class Sampler(Protocol):
    """Anything that answers conversations."""

    meter: Meter
    """What its answers cost so far."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in order."""
        ...
