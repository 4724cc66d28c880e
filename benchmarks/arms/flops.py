"""FLOPs of a step from mean lengths, by the ledger's formula (`verl_ext/ledger/flops.py`).

`prompt` and `response` are tokens, means where samples differ (attention then counts every sample at the mean length);
`n` samples of each prompt; a forward pass runs all tokens but the last, whose log-prob the one before it gives.
"""

from verl_ext.ledger.flops import Adapters, Work, backward, forward, pairs
from verl_ext.run.model_shape import ModelShape


def answers(shape: ModelShape, prompt: float, response: float, n: int) -> float:
    """One prompt and `n` responses that share it: sampling them, or scoring them."""
    tokens = prompt + n * (response - 1)
    rows = 1 + n * (response - 1)  # the first token of all samples has one distribution
    return forward(shape, Work(tokens, pairs(0, prompt) + n * pairs(prompt, prompt + response - 1), rows))


def update(shape: ModelShape, prompt: float, response: float, n: int, *, adapters: int) -> float:
    """Forward and backward of `n` whole sequences. `adapters`: parameters of LoRA's, 0: every weight is trained."""
    tokens = prompt + response - 1
    work, adapted = Work(tokens, pairs(0, tokens), response), Adapters(adapters) if adapters else None
    return n * (forward(shape, work, adapted) + backward(shape, work, adapted))
