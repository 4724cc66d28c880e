"""Chunks change nothing: values and gradients against the form that holds all logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_ext.method.chunked import chunked_from_logits, chunked_topk_divergence
from verl_ext.method.divergence import KINDS, TokenDivergence, topk_divergence

FEW = settings(max_examples=15, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**20)
N, V, K, D = 7, 40, 3, 5
Tensors = tuple[torch.Tensor, ...]


def problem(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensors, torch.Tensor, torch.Tensor]:
    """(hidden, weight, bias) with gradients, ids (N, K) and the teacher's log-probs of them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leaves = tuple(x.to(dtype).requires_grad_() for x in (normal(N, D), normal(V, D), normal(V)))
    teacher_NK, ids_NK = (2 * normal(N, V)).log_softmax(-1).topk(K)
    return leaves, ids_NK, teacher_NK


def logits_of(leaves: Tensors) -> torch.Tensor:
    hidden_ND, weight_VD, bias_V = leaves
    return hidden_ND @ weight_VD.T + bias_V


def gradients(loss_N: torch.Tensor, leaves: Tensors) -> Tensors:
    """Of a sum in which every token has a weight of its own."""
    weights_N = torch.linspace(-1.0, 2.0, N, dtype=torch.float64)
    return torch.autograd.grad((loss_N * weights_N).sum(), leaves, retain_graph=True)


def assert_same(found: TokenDivergence, expected: TokenDivergence, leaves: Tensors) -> None:
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right)
    pairs = zip(gradients(found.divergence_N, leaves), gradients(expected.divergence_N, leaves), strict=True)
    for left, right in pairs:
        torch.testing.assert_close(left, right)


# Of 7 tokens and 40 entries: blocks of 5, 11 -> 8, 17 -> 16, 34 -> 32 entries; then one for all.
@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_chunked_is_the_naive_form(kind, tail, chunk_tokens):
    leaves, ids_NK, teacher_NK = problem(0)
    hidden_ND, weight_VD, bias_V = leaves
    how = {"kind": kind, "mix": 0.3, "tail": tail}
    expected = topk_divergence(logits_of(leaves) / 1.3, ids_NK, teacher_NK, **how)
    chunks = {"chunk_tokens": chunk_tokens, "temperature": 1.3}
    found = chunked_topk_divergence(hidden_ND, weight_VD, ids_NK, teacher_NK, bias=bias_V, **how, **chunks)
    assert_same(found, expected, leaves)
    assert_same(chunked_from_logits(logits_of(leaves), ids_NK, teacher_NK, **how, **chunks), expected, leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_numerical_one(kind):
    (hidden_ND, weight_VD, _), ids_NK, teacher_NK = problem(1)
    how = {"kind": kind, "mix": 0.3, "tail": True, "chunk_tokens": 2}
    ids_NK, teacher_NK = ids_NK[:3] % 12, teacher_NK[:3]
    ids_NK = (ids_NK[:, :1] + torch.arange(K)) % 12  # distinct

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return chunked_topk_divergence(hidden, weight, ids_NK, teacher_NK, **how).divergence_N

    def loss_from_logits(logits: torch.Tensor) -> torch.Tensor:
        return chunked_from_logits(logits, ids_NK, teacher_NK, **how).divergence_N

    inputs = (hidden_ND[:3].detach().requires_grad_(), weight_VD[:12].detach().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradcheck(loss_from_logits, (inputs[0] @ inputs[1].T).detach().requires_grad_())


@FEW
@given(seed=SEEDS, kind=st.sampled_from(KINDS), chunk_tokens=st.integers(1, 9))
def test_order_of_tokens_and_chunks_change_nothing(seed, kind, chunk_tokens):
    (hidden_ND, weight_VD, _), ids_NK, teacher_NK = problem(seed)
    how = {"kind": kind, "mix": 0.4, "tail": True}
    order_N = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    one = chunked_topk_divergence(hidden_ND, weight_VD, ids_NK, teacher_NK, chunk_tokens=N, **how)
    other = chunked_topk_divergence(
        hidden_ND[order_N], weight_VD, ids_NK[order_N], teacher_NK[order_N], chunk_tokens=chunk_tokens, **how
    )
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left[order_N], right)


@pytest.mark.parametrize(("chunk_tokens", "missing"), [(2, 0), (7, 0), (7, 1), (7, 2)])
def test_the_whole_vocabulary_as_support_leaves_no_tail_and_less_leaves_one(chunk_tokens, missing):
    leaves, _, _ = problem(2)
    hidden_ND, weight_VD, bias_V = leaves
    teacher_NV, ids_NV = problem(3)[0][0].detach().matmul(weight_VD.detach().T).log_softmax(-1).sort()
    teacher_NV, ids_NV = teacher_NV[:, missing:], ids_NV[:, missing:]
    how = {"kind": "jensen_shannon", "mix": 0.5, "tail": True}
    expected = topk_divergence(logits_of(leaves), ids_NV, teacher_NV, **how)
    chunks = {"chunk_tokens": chunk_tokens, "bias": bias_V}
    assert_same(chunked_topk_divergence(hidden_ND, weight_VD, ids_NV, teacher_NV, **how, **chunks), expected, leaves)


@FEW
@given(seed=SEEDS, kind=st.sampled_from(KINDS))
def test_bf16_inputs_are_computed_in_fp32(seed, kind):
    """From the same bf16 numbers, fp32 arithmetic is within 1e-4 nats of fp64; gradients round once, to 2^-8."""
    (hidden_ND, weight_VD, bias_V), ids_NK, teacher_NK = problem(seed, torch.bfloat16)
    exact = tuple(x.detach().double().requires_grad_() for x in (hidden_ND, weight_VD, bias_V))
    how = {"kind": kind, "mix": 0.3, "tail": True}
    expected = topk_divergence(logits_of(exact), ids_NK, teacher_NK, **how)
    expected_gradients = gradients(expected.divergence_N, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must not round the logits
        found = chunked_topk_divergence(
            hidden_ND, weight_VD, ids_NK, teacher_NK.float(), chunk_tokens=2, bias=bias_V, **how
        )
    assert found.divergence_N.dtype == torch.float32
    torch.testing.assert_close(found.divergence_N.double(), expected.divergence_N, atol=1e-4, rtol=1e-4)
    found_gradients = gradients(found.divergence_N, (hidden_ND, weight_VD, bias_V))
    for left, right in zip(found_gradients, expected_gradients, strict=True):
        assert left.dtype == torch.bfloat16
        torch.testing.assert_close(left.double(), right, rtol=2**-8, atol=1e-4)


def test_bf16_logits_get_a_bf16_gradient():
    _, ids_NK, teacher_NK = problem(4)
    logits_NV = (3 * torch.randn(N, V, generator=torch.Generator().manual_seed(4))).bfloat16().requires_grad_()
    exact_NV = logits_NV.detach().double().requires_grad_()
    how = {"kind": "reverse_kl", "mix": 0.0, "tail": True}
    found = chunked_from_logits(logits_NV, ids_NK, teacher_NK, chunk_tokens=3, **how)
    expected = topk_divergence(exact_NV, ids_NK, teacher_NK, **how)
    torch.testing.assert_close(found.divergence_N.double(), expected.divergence_N, atol=1e-4, rtol=1e-4)
    (found_NV,) = gradients(found.divergence_N, (logits_NV,))
    (expected_NV,) = gradients(expected.divergence_N, (exact_NV,))
    assert found_NV.dtype == torch.bfloat16
    torch.testing.assert_close(found_NV.double(), expected_NV, rtol=2**-8, atol=1e-6)


@FEW
@given(seed=SEEDS, kind=st.sampled_from(KINDS), chunk_tokens=st.integers(1, 9))
def test_logits_down_to_minus_1e4_and_masked_ones_give_no_nan(seed, kind, chunk_tokens):
    generator = torch.Generator().manual_seed(seed)
    logits_NV = -(10 ** (4 * torch.rand(N, V, generator=generator)))
    logits_NV[0, K:] = -torch.inf  # nothing but the support
    logits_NV[1, 20:] = -torch.inf  # a whole block of nothing
    logits_NV.requires_grad_()
    _, _, teacher_NK = problem(seed)
    teacher_NK[2] = torch.tensor([0.0, -1e4, -torch.inf])
    found = chunked_from_logits(
        logits_NV, torch.arange(K).repeat(N, 1), teacher_NK, kind=kind, mix=0.4, tail=True, chunk_tokens=chunk_tokens
    )
    found.divergence_N.sum().backward()
    assert all(x.isfinite().all() for x in found)
    assert logits_NV.grad.isfinite().all()


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none_and_the_rest_is_unchanged(frozen):
    (hidden_ND, weight_VD, _), ids_NK, teacher_NK = problem(5)
    how = {"kind": "forward_kl", "mix": 0.0, "tail": True, "chunk_tokens": 2}
    both = [hidden_ND, weight_VD]
    full = gradients(chunked_topk_divergence(*both, ids_NK, teacher_NK, **how).divergence_N, tuple(both))
    both[frozen] = both[frozen].detach()
    loss_N = chunked_topk_divergence(*both, ids_NK, teacher_NK, **how).divergence_N
    (found,) = gradients(loss_N, (both[1 - frozen],))
    assert torch.equal(found, full[1 - frozen])


def test_an_id_outside_the_vocabulary_poisons_its_token_only():
    (hidden_ND, weight_VD, _), ids_NK, teacher_NK = problem(6)
    ids_NK[2, 1] = V
    found = chunked_topk_divergence(
        hidden_ND, weight_VD, ids_NK, teacher_NK, kind="forward_kl", mix=0.0, tail=True, chunk_tokens=2
    )
    assert found.divergence_N.isnan().tolist() == [n == 2 for n in range(N)]


def test_no_tokens_give_no_values_and_zero_gradients():
    (hidden_ND, weight_VD, _), ids_NK, teacher_NK = problem(7)
    how = {"kind": "forward_kl", "mix": 0.0, "tail": True, "chunk_tokens": 2}
    empty_ND = hidden_ND[:0]
    found = chunked_topk_divergence(empty_ND, weight_VD, ids_NK[:0], teacher_NK[:0], **how)
    assert found.divergence_N.shape == (0,)
    found.divergence_N.sum().backward()
    assert torch.equal(weight_VD.grad, torch.zeros_like(weight_VD))
    from_logits = chunked_from_logits(empty_ND @ weight_VD.T, ids_NK[:0], teacher_NK[:0], **how)
    assert from_logits.divergence_N.shape == (0,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens must be >= 1"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"kind": "kl"}, "kind must be one of"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    (hidden_ND, weight_VD, _), ids_NK, teacher_NK = problem(8)
    how = {"kind": "forward_kl", "mix": 0.0, "tail": True, "chunk_tokens": 2} | changed
    with pytest.raises(ValueError, match=message):
        chunked_topk_divergence(hidden_ND, weight_VD, ids_NK, teacher_NK, **how)
    with pytest.raises(ValueError, match=message):
        chunked_from_logits(hidden_ND @ weight_VD.T, ids_NK, teacher_NK, **how)


@pytest.mark.parametrize("chunk_tokens", [2, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_entries_of_no_token_are_those_of_the_naive_form(kind, chunk_tokens):
    leaves, ids_NK, teacher_NK = problem(8)
    hidden_ND, weight_VD, bias_V = leaves
    ids_NK[1, 0] = ids_NK[3, 2] = -1
    ids_NK[5] = -1  # nothing but a tail
    how = {"kind": kind, "mix": 0.3, "tail": True}
    expected = topk_divergence(logits_of(leaves), ids_NK, teacher_NK, **how)
    chunks = {"chunk_tokens": chunk_tokens}
    found = chunked_topk_divergence(hidden_ND, weight_VD, ids_NK, teacher_NK, bias=bias_V, **how, **chunks)
    assert_same(found, expected, leaves)
    assert_same(chunked_from_logits(logits_of(leaves), ids_NK, teacher_NK, **how, **chunks), expected, leaves)
    torch.testing.assert_close(found.divergence_N[5], torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
