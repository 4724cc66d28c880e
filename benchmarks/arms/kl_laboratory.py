"""A world small enough to enumerate, where the reverse KL, its gradient and every estimator's moments are exact.

A vocabulary of `V` tokens and at most `T` of them make `N` sequences and `S` states (prefixes). Student and teacher are
tables over the states, so the teacher can be reached. Everything is float64. An estimator is a set of `M` draws:
their probabilities, and the gradient in the student's `P = S * V` logits that each one gives. Its bias and variance
are then sums, and a training run is a sequence of draws; nothing is estimated.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from verl_ext.method.policy_loss import aggregate, importance_sampling_loss

END = 0


@dataclass(frozen=True)
class World:
    """All sequences, the states they pass, and the two tables.

    tokens_NT: token ids; after END they are END, and masked.
    states_NT: index of the prefix before each token.
    mask_NT: 1 on tokens that the student sampled.
    environment_N: log-prob of the tokens that the environment chose (a tool's), nats.
    teacher_SV: the teacher's log-probs, nats.
    student_SV: the student's logits at the start.
    """

    tokens_NT: torch.Tensor
    states_NT: torch.Tensor
    mask_NT: torch.Tensor
    environment_N: torch.Tensor
    teacher_SV: torch.Tensor
    student_SV: torch.Tensor


@dataclass(frozen=True)
class Draws:
    """Everything that an estimator may return: probability (M,) and gradient (M, P) of each draw; `rows` it costs."""

    probs_M: torch.Tensor
    gradients_MP: torch.Tensor
    rows: int = 1

    def mean(self) -> torch.Tensor:
        """Expected gradient, (P,)."""
        return self.probs_M @ self.gradients_MP

    def variance(self) -> float:
        """Trace of the covariance of a one-row gradient: that of the draw times the rows it averages."""
        squares_M = (self.gradients_MP - self.mean()).square().sum(-1)
        return float(self.probs_M @ squares_M) * self.rows


Estimator = Callable[[World, torch.Tensor], Draws]


def make_world(vocabulary: int, length: int, seed: int, *, tool: int | None = None) -> World:
    """A random pair of tables. Token 0 ends a sequence early, unless position `tool` belongs to the environment,
    which draws its token uniformly; then all sequences are `length` long.
    """
    tokens_NT = torch.cartesian_prod(*[torch.arange(vocabulary)] * length).reshape(-1, length)
    mask_NT = torch.ones_like(tokens_NT, dtype=torch.bool)
    if tool is None:
        ended_NT = (tokens_NT == END).cumsum(-1)
        mask_NT = (ended_NT - (tokens_NT == END).long()) == 0
        one_of_each_N = (mask_NT | (tokens_NT == END)).all(-1)
        tokens_NT, mask_NT = tokens_NT[one_of_each_N], mask_NT[one_of_each_N]
    else:
        mask_NT[:, tool] = False
    states_NT = torch.zeros_like(tokens_NT)
    for before, t in pairwise(range(length)):
        # Children of state s are s * V + 1 ... s * V + V, as in a heap.
        states_NT[:, t] = states_NT[:, before] * vocabulary + 1 + tokens_NT[:, before]
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(vocabulary**t for t in range(length)), vocabulary)
    student_SV, teacher_SV = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    chance = 0.0 if tool is None else -float(torch.tensor(vocabulary).double().log())
    environment_N = torch.full((len(tokens_NT),), chance, dtype=torch.float64)
    return World(tokens_NT, states_NT, mask_NT, environment_N, (2 * teacher_SV).log_softmax(-1), student_SV)


def token_logprobs(world: World, logprobs_SV: torch.Tensor) -> torch.Tensor:
    """Log-probs of the tokens of all sequences under a table, (N, T)."""
    return logprobs_SV[world.states_NT, world.tokens_NT]


def sequence_probs(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    """Probability that the student samples each sequence, (N,)."""
    logprobs_NT = token_logprobs(world, logits_SV.log_softmax(-1))
    return (torch.where(world.mask_NT, logprobs_NT, 0.0).sum(-1) + world.environment_N).exp()


def state_kl(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) of the next token in each state, nats, (S,)."""
    logprobs_SV = logits_SV.log_softmax(-1)
    return (logprobs_SV.exp() * (logprobs_SV - world.teacher_SV)).sum(-1)


def visits(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    """Expected number of response tokens that the student samples in each state, (S,)."""
    probs_NT = sequence_probs(world, logits_SV)[:, None] * world.mask_NT
    return logits_SV.new_zeros(len(logits_SV)).index_add(0, world.states_NT.flatten(), probs_NT.flatten())


def sequence_kl(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) of whole sequences, nats: the sum over states of visits times the state's KL."""
    return visits(world, logits_SV) @ state_kl(world, logits_SV)


def gradient(objective: Callable[[torch.Tensor], torch.Tensor], logits_SV: torch.Tensor) -> torch.Tensor:
    """Gradient of a scalar objective in the logits, (P,)."""
    leaf = logits_SV.detach().requires_grad_()
    return torch.autograd.grad(objective(leaf), leaf)[0].flatten()


def sequence_gradient(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    """The true gradient of the sequence's reverse KL, (P,)."""
    return gradient(lambda x: sequence_kl(world, x), logits_SV)


def state_gradient(world: World, logits_SV: torch.Tensor, per_state: Callable = state_kl) -> torch.Tensor:
    """Gradient of the sum of a per-state objective over visited states, their distribution held fixed, (P,)."""
    return gradient(lambda x: visits(world, x).detach() @ per_state(world, x), logits_SV)


def row_gradients(world: World, token_NTV: torch.Tensor) -> torch.Tensor:
    """Gradient of each sequence, (N, P), from the gradient of each of its tokens in the logits of its state."""
    n, length, vocabulary = token_NTV.shape
    out_NSV = token_NTV.new_zeros(n, len(world.student_SV), vocabulary)
    rows_NT = torch.arange(n)[:, None].expand(n, length)
    return out_NSV.index_put((rows_NT, world.states_NT), token_NTV, accumulate=True).flatten(1)


def scores(world: World, logits_SV: torch.Tensor) -> torch.Tensor:
    """Gradient of each token's log-prob in the logits of its state, (N, T, V)."""
    taken_NTV = torch.nn.functional.one_hot(world.tokens_NT, logits_SV.shape[1]).to(logits_SV.dtype)
    return taken_NTV - logits_SV.softmax(-1)[world.states_NT]


def policy_gradient_rows(
    world: World,
    logits_SV: torch.Tensor,
    advantages_NT: torch.Tensor,
    *,
    rollout_SV: torch.Tensor | None = None,
    loss: Callable[..., torch.Tensor] = importance_sampling_loss,
    mask_NT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient that a policy loss gives for each sequence, (N, P); token-sum, sampled from `rollout_SV` or itself."""
    rollout_NT = token_logprobs(world, (logits_SV if rollout_SV is None else rollout_SV).log_softmax(-1))
    logprobs_NT = token_logprobs(world, logits_SV.log_softmax(-1)).detach().requires_grad_()
    loss_NT = loss(logprobs_NT, rollout_NT, advantages_NT)
    total = aggregate(loss_NT, world.mask_NT if mask_NT is None else mask_NT, "token-sum")
    slope_NT = torch.autograd.grad(total, logprobs_NT)[0]
    return row_gradients(world, slope_NT[:, :, None] * scores(world, logits_SV))


def direct_rows(world: World, logits_SV: torch.Tensor, loss_S: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Gradient of each sequence, (N, P), for a loss that every visited state has by itself."""
    leaf = logits_SV.detach().requires_grad_()
    slope_SV = torch.autograd.grad(loss_S(leaf).sum(), leaf)[0]
    return row_gradients(world, torch.where(world.mask_NT[:, :, None], slope_SV[world.states_NT], 0.0))


def all_groups(world: World, logits_SV: torch.Tensor, size: int) -> tuple[torch.Tensor, World]:
    """Every group of `size` independent rows: its probability (M,), and a world whose rows are theirs (M * size)."""
    probs_N = sequence_probs(world, logits_SV)
    rows_MG = torch.cartesian_prod(*[torch.arange(len(probs_N))] * size).reshape(-1, size)
    fields = ("tokens_NT", "states_NT", "mask_NT", "environment_N")
    taken = {name: vars(world)[name][rows_MG.flatten()] for name in fields}
    return probs_N[rows_MG].prod(-1), replace(world, **taken)


def descend(world: World, estimator: Estimator, *, steps: int, learning_rate: float) -> float:
    """The sequence's reverse KL, nats, after gradient descent along the estimator's expected gradient."""
    logits_SV = world.student_SV
    for _ in range(steps):
        logits_SV = logits_SV - learning_rate * estimator(world, logits_SV).mean().reshape_as(logits_SV)
    return float(sequence_kl(world, logits_SV))


def train(world: World, estimator: Estimator, *, steps: int, learning_rate: float, rows: int, seed: int) -> float:
    """The sequence's reverse KL, nats, after steps on means over `rows` sampled rows."""
    generator, logits_SV = torch.Generator().manual_seed(seed), world.student_SV
    for _ in range(steps):
        draws = estimator(world, logits_SV)
        taken = torch.multinomial(draws.probs_M, rows // draws.rows, replacement=True, generator=generator)
        step_SV = draws.gradients_MP[taken].mean(0).reshape_as(logits_SV)
        logits_SV = logits_SV - learning_rate * step_SV
    return float(sequence_kl(world, logits_SV))
