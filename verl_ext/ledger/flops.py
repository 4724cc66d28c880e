"""The formula: FLOPs of a decoder's forward and backward pass, from its shape and what goes through it.

A multiplication with its addition is two. `T` tokens go through the layers, `R` of them (rows) through the output head,
and queries meet `A` keys in all (pairs):

    forward  = 2 T M + 2 R H V + 4 A L Q
    backward = 2 x forward; with LoRA, once the matrices (a frozen weight has no gradient), twice attention and adapters

`M` parameters of the layers' matrices that a token meets (of experts the active ones, and the router), `H V` of the
head, `L` layers, `Q` query width. An adapter adds its parameters to `M`, one of the head to `H V`.

Counted is what the mathematics needs: a token meets itself and the tokens before it, half of what a kernel does that
masks a whole square. Not counted: norms, softmax, rotations, look-ups, the optimizer, and what an implementation
repeats or pads. Checked against `torch.utils.flop_counter` (`benchmarks/flops.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from verl_ext.run.model_shape import HEAD, ModelShape

ALL_LINEAR = "all-linear"
"""PEFT's word for every projection, the head apart."""


@dataclass(frozen=True)
class Work:
    """What goes through a model; fractions where only means are known."""

    tokens: float = 0
    """Through the layers, T."""
    pairs: float = 0
    """Of a query and a key, A."""
    rows: float = 0
    """Tokens whose logits are made, R."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.rows + other.rows)

    def __mul__(self, times: float) -> "Work":
        return Work(self.tokens * times, self.pairs * times, self.rows * times)


@dataclass(frozen=True)
class Adapters:
    """Parameters of LoRA's adapters."""

    layers: int
    """In all layers: every token meets them."""
    head: int = 0
    """On the output head: every row meets them."""


def adapters_of(shape: ModelShape, rank: int, targets: Sequence[str] | str) -> Adapters | None:
    """Adapters of `rank` on `targets`, as PEFT takes them; None with rank 0: every weight is trained.

    Raises:
        ValueError: if a target is no module of this model that can be adapted.
    """
    if rank <= 0:
        return None
    names = shape.projections if targets == ALL_LINEAR else [targets] if isinstance(targets, str) else list(targets)
    layers = shape.lora(rank, [name for name in names if name != HEAD])
    return Adapters(layers, shape.lora(rank, names) - layers)


def pairs(start: float, stop: float) -> float:
    """Keys that the tokens at positions `start` to `stop` (excluded) meet: each its own and all before it."""
    return (stop * (stop + 1) - start * (start + 1)) / 2


def sequence(length: float) -> Work:
    """A whole sequence, with the logits of every token."""
    return Work(length, pairs(0, length), length)


def shared_prompt(prompt: int, responses: Sequence[int]) -> Work:
    """A prompt that is read once, and the responses to it, token counts; logits where response tokens are predicted."""
    answered = sum(pairs(prompt, prompt + response) for response in responses)
    return Work(prompt + sum(responses), pairs(0, prompt) + answered, 1 + sum(responses))


def answer(prompt: int, sampled: int, cached: int = 0) -> Work:
    """Sampling `sampled` tokens after a prompt with `cached` ones in the prefix cache; the last token is not read."""
    stop = prompt + max(0, sampled - 1)
    return Work(stop - cached, pairs(cached, stop), sampled)


def scored(tokens: float, requests: Sequence[tuple[int, int]], prompts: int) -> Work:
    """Scoring `requests`, of (prompt, response) token counts, of which `tokens` were read and the rest was cached.

    The responses are read first of all; what is left are the last tokens of each of so many different `prompts`, whose
    mean length stands for theirs.
    """
    responses = sum(response for _, response in requests)
    if not responses or not prompts:
        return Work(tokens)
    share = min(1.0, tokens / responses)
    met = share * sum(pairs(prompt, prompt + response) for prompt, response in requests)
    prompt, rest = sum(prompt for prompt, _ in requests) / len(requests), tokens - share * responses
    each = min(prompt, rest / prompts)
    times = rest / each if each else 0  # more than once, where a cache lost them
    return Work(tokens, met + times * pairs(prompt - each, prompt), share * responses)


def matrices(shape: ModelShape) -> int:
    """Parameters of the layers' matrices that one token is multiplied with, routers included."""
    idle = (shape.experts - shape.active_experts) * 3 * shape.hidden * shape.intermediate
    return shape.linear + shape.layers * (shape.experts * shape.hidden - idle)


def forward(shape: ModelShape, work: Work, adapters: Adapters | None = None) -> float:
    """FLOPs of a forward pass."""
    return _matrices(shape, work) + _attention(shape, work) + _adapted(work, adapters)


def backward(shape: ModelShape, work: Work, adapters: Adapters | None = None) -> float:
    """FLOPs of a backward pass: the gradient of what came in, and that of every weight that is trained.

    With LoRA the gradient reaches the embedding's output, for which verl asks.
    """
    passes = 2 if adapters is None else 1
    return passes * _matrices(shape, work) + 2 * _attention(shape, work) + 2 * _adapted(work, adapters)


def _matrices(shape: ModelShape, work: Work) -> float:
    return 2 * work.tokens * matrices(shape) + 2 * work.rows * shape.embedding


def _attention(shape: ModelShape, work: Work) -> float:
    """Queries with keys, and weights with values."""
    return 4 * shape.layers * shape.query * work.pairs


def _adapted(work: Work, adapters: Adapters | None) -> float:
    return 0 if adapters is None else 2 * work.tokens * adapters.layers + 2 * work.rows * adapters.head
