"""FLOPs that the mathematics of a step asks for, from the model's shape: pure arithmetic.

A multiplication with its addition is two. Counted: the layers' matrices, attention's two products of a token with
itself and all before it, and the output head on the rows whose log-probs are wanted. Not counted: norms, softmax,
rotations, look-ups, and what an implementation repeats or pads: recomputed activations, log-probs of prompt tokens, a
prompt run for each of its samples where once would do. So a share of the chip's limit errs on the low side.

`prompt` and `response` are tokens, means where samples differ (attention then counts every sample at the mean length);
`n` samples of each prompt; a forward pass runs all tokens but the last, whose log-prob the one before it gives.
"""

from verl_ext.plan.shape import ModelShape


def matrices(shape: ModelShape) -> int:
    """Parameters of the layers' matrices that one token is multiplied with, routers included."""
    idle = (shape.experts - shape.active_experts) * 3 * shape.hidden * shape.intermediate
    return shape.linear + shape.layers * (shape.experts * shape.hidden - idle)


def attention(shape: ModelShape, start: float, stop: float) -> float:
    """Queries with keys, and weights with values, of the tokens at positions `start` to `stop` (excluded)."""
    pairs = (stop * (stop + 1) - start * (start + 1)) / 2
    return 4 * shape.layers * shape.query * pairs


def answers(shape: ModelShape, prompt: float, response: float, n: int) -> float:
    """One prompt and `n` responses that share it: sampling them, or scoring them."""
    tokens = prompt + n * (response - 1)
    rows = 1 + n * (response - 1)  # the first token of all samples has one distribution
    pairs = attention(shape, 0, prompt) + n * attention(shape, prompt, prompt + response - 1)
    return 2 * tokens * matrices(shape) + 2 * rows * shape.embedding + pairs


def update(shape: ModelShape, prompt: float, response: float, n: int, *, adapters: int) -> float:
    """Forward and backward of `n` whole sequences.

    `adapters`: parameters of LoRA's, 0 where every weight is trained. A backward pass costs a forward's for the
    gradient of the inputs and another for that of the weights; LoRA spares the second on the frozen ones.
    """
    tokens = prompt + response - 1
    frozen_or_trained = 2 * tokens * matrices(shape) + 2 * response * shape.embedding
    passes = 2 if adapters else 3
    return n * (passes * frozen_or_trained + 3 * (attention(shape, 0, tokens) + 2 * tokens * adapters))
