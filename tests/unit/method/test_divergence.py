"""The direct losses, against values worked out by hand and against what defines them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_ext.method.divergence import (
    KINDS,
    bucket_divergence,
    bucket_logits,
    divergence,
    topk_divergence,
    with_tail,
)

FEW = settings(max_examples=15, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**20)
LN2, LN3 = math.log(2), math.log(3)


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def pair(seed: int, tokens: int = 4, vocabulary: int = 9, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Student logits with gradient and teacher log-probs, (N, V), fp64."""
    generator = torch.Generator().manual_seed(seed)
    both = scale * torch.randn(2, tokens, vocabulary, generator=generator, dtype=torch.float64)
    return both[0].requires_grad_(), both[1].log_softmax(-1)


# p = (1/2, 1/2), q = (1/4, 3/4); the mixture of weight 1/2 is (3/8, 5/8), the skews' of 1/3 on q or p: see below.
@pytest.mark.parametrize(
    ("kind", "mix", "expected"),
    [
        ("forward_kl", 0.0, LN2 - LN3 / 2),  # 1/2 log 2 + 1/2 log 2/3
        ("reverse_kl", 0.0, 0.75 * LN3 - LN2),  # 1/4 log 1/2 + 3/4 log 3/2
        (
            "jensen_shannon",
            0.5,
            0.25 * (math.log(4 / 3) + math.log(4 / 5)) + 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)),
        ),
        # b = 1/4 is the teacher's weight: m = 1/4 p + 3/4 q = (5/16, 11/16)
        (
            "jensen_shannon",
            0.25,
            0.125 * (math.log(8 / 5) + math.log(8 / 11)) + 0.75 * (0.25 * math.log(4 / 5) + 0.75 * math.log(12 / 11)),
        ),
        # m = 1/3 p + 2/3 q = (1/3, 2/3)
        ("skewed_forward_kl", 1 / 3, 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)),
        # m = 1/3 q + 2/3 p = (5/12, 7/12)
        ("skewed_reverse_kl", 1 / 3, 0.25 * math.log(3 / 5) + 0.75 * math.log(9 / 7)),
    ],
)
def test_every_kind_by_hand(kind, mix, expected):
    found_N = divergence(logs([0.25, 0.75]), logs([0.5, 0.5]), kind=kind, mix=mix)
    assert found_N.item() == pytest.approx(expected, abs=1e-12)


def test_jensen_shannon_tends_to_either_kl():
    student, teacher = pair(0, scale=1.0)
    student_NV = student.log_softmax(-1)
    forward_N = divergence(student_NV, teacher, kind="forward_kl", mix=0.0)
    reverse_N = divergence(student_NV, teacher, kind="reverse_kl", mix=0.0)
    small = 1e-7
    torch.testing.assert_close(
        divergence(student_NV, teacher, kind="jensen_shannon", mix=small) / small, forward_N, rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        divergence(student_NV, teacher, kind="jensen_shannon", mix=1 - small) / small, reverse_N, rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_no_skew_is_the_plain_kl_and_a_small_one_is_near(kind):
    student, teacher = pair(1)
    student_NV = student.log_softmax(-1)
    plain_N = divergence(student_NV, teacher, kind=kind, mix=0.0)
    assert torch.equal(divergence(student_NV, teacher, kind=f"skewed_{kind}", mix=0.0), plain_N)
    near_N = divergence(student_NV, teacher, kind=f"skewed_{kind}", mix=1e-9)
    torch.testing.assert_close(near_N, plain_N, rtol=1e-5, atol=1e-9)


def test_ranges_are_reached_by_disjoint_distributions():
    student, teacher = logs([1.0, 0.0]), logs([0.0, 1.0])
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert divergence(student, teacher, kind="jensen_shannon", mix=0.3).item() == pytest.approx(entropy)
    for kind in ("skewed_forward_kl", "skewed_reverse_kl"):
        assert divergence(student, teacher, kind=kind, mix=0.1).item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_numerical_one(kind):
    student, teacher = pair(2)
    ids_NK = teacher.topk(3).indices

    def loss(logits: torch.Tensor, tail: bool) -> torch.Tensor:
        return topk_divergence(logits, ids_NK, teacher.gather(1, ids_NK), kind=kind, mix=0.3, tail=tail).divergence_N

    for tail in (True, False):
        assert torch.autograd.gradcheck(lambda logits, tail=tail: loss(logits, tail), student)


def test_forward_kl_gradient_in_a_logit_is_q_minus_p():
    student, teacher = pair(3)
    divergence(student.log_softmax(-1), teacher, kind="forward_kl", mix=0.0).sum().backward()
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - teacher.exp())


@pytest.mark.parametrize("kind", KINDS)
def test_student_equal_to_teacher_gives_zero_and_no_gradient(kind):
    student, _ = pair(4)
    teacher_NV = student.detach().log_softmax(-1)
    teacher_NK, ids_NK = teacher_NV.topk(3)
    found = topk_divergence(student, ids_NK, teacher_NK, kind=kind, mix=0.3, tail=True)
    found.divergence_N.sum().backward()
    zeros_N = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(found.divergence_N.detach(), zeros_N, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.expected_reverse_kl_N, zeros_N, atol=1e-12, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-12, rtol=0)


def test_tail_by_hand_and_its_floor():
    tail_N = with_tail(logs([0.5, 0.25], [0.5, 0.5], [0.75, 0.75]))[:, -1]
    floor = math.log(torch.finfo(torch.float64).eps)
    assert tail_N.tolist() == pytest.approx([math.log(0.25), floor, floor])
    over = torch.full((1, 2), 0.0, dtype=torch.bfloat16, requires_grad=True)
    extended = with_tail(over)
    assert extended.dtype == torch.float32
    assert extended[0, 2].item() == pytest.approx(math.log(torch.finfo(torch.float32).eps))
    extended[0, 2].backward()
    assert torch.equal(over.grad, torch.zeros_like(over))


def test_without_the_tail_mass_is_lost():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), support: the first entry.
    logits, ids, teacher = logs([0.25, 0.25, 0.5]), torch.tensor([[0]]), logs([0.5])
    truncated = topk_divergence(logits, ids, teacher, kind="forward_kl", mix=0.0, tail=False)
    whole = topk_divergence(logits, ids, teacher, kind="forward_kl", mix=0.0, tail=True)
    assert truncated.divergence_N.item() == pytest.approx(0.5 * LN2)  # 1/2 log 2
    assert whole.divergence_N.item() == pytest.approx(LN2 - LN3 / 2)  # and 1/2 log (1/2)/(3/4)
    reverse = topk_divergence(logits, ids, teacher, kind="reverse_kl", mix=0.0, tail=False)
    assert reverse.divergence_N.item() == pytest.approx(-0.25 * LN2)  # below zero: no divergence
    for found in (truncated, whole, reverse):
        assert found.expected_reverse_kl_N.item() == pytest.approx(0.75 * LN3 - LN2)
        assert (found.student_mass_N.item(), found.teacher_mass_N.item()) == pytest.approx((0.25, 0.5))


@FEW
@given(seed=SEEDS, kind=st.sampled_from(KINDS), k=st.integers(1, 9), mix=st.floats(0.01, 0.99))
def test_buckets_never_exceed_the_full_divergence_and_reach_it_at_the_whole_vocabulary(seed, kind, k, mix):
    student, teacher = pair(seed)
    full_N = divergence(student.log_softmax(-1), teacher, kind=kind, mix=mix)
    teacher_NK, ids_NK = teacher.topk(k)
    found_N = topk_divergence(student, ids_NK, teacher_NK, kind=kind, mix=mix, tail=True).divergence_N
    assert (found_N >= -1e-12).all()
    assert (found_N <= full_N + 1e-12).all()
    if k == 9:
        torch.testing.assert_close(found_N, full_N)


def test_the_tail_keeps_its_gradient_where_1_minus_the_sum_rounds_to_nothing():
    # The student gives all but 2e-9 to the support, the teacher half: 1 - sum(exp) is 0 in fp32.
    logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
    found = topk_divergence(
        logits, torch.tensor([[0]]), torch.tensor([[0.5]]).log(), kind="forward_kl", mix=0.0, tail=True
    )
    found.divergence_N.sum().backward()
    assert found.divergence_N.item() == pytest.approx(10 - LN2, abs=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.5]]))


@FEW
@given(seed=SEEDS, kind=st.sampled_from(KINDS), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_log_probs_down_to_minus_1e4_give_no_nan(seed, kind, dtype):
    generator = torch.Generator().manual_seed(seed)
    values = -(10 ** (4 * torch.rand(2, 5, 6, generator=generator)))
    values[0, 0, 0] = values[1, 1, 1] = 0.0
    values[0, 2, 2] = values[1, 2, 3] = -torch.inf
    logits, teacher_NK = values[0].to(dtype).requires_grad_(), values[1, :, :4]
    for tail in (True, False):
        found = topk_divergence(logits, torch.arange(4).repeat(5, 1), teacher_NK, kind=kind, mix=0.4, tail=tail)
        found.divergence_N.sum().backward()
        assert all(x.isfinite().all() for x in found)
        assert logits.grad.isfinite().all()
    student_NK = values[0, :, :4].clamp_min(-1e4).requires_grad_()
    divergence(with_tail(student_NK), with_tail(teacher_NK), kind=kind, mix=0.4).sum().backward()
    assert student_NK.grad.isfinite().all()


@FEW
@given(seed=SEEDS, kind=st.sampled_from(KINDS))
def test_tokens_do_not_see_each_other_and_order_of_the_support_is_nothing(seed, kind):
    student, teacher = pair(seed)
    teacher_NK, ids_NK = teacher.topk(4)
    order_N, order_K = torch.tensor([2, 0, 3, 1]), torch.tensor([3, 1, 0, 2])
    one = topk_divergence(student, ids_NK, teacher_NK, kind=kind, mix=0.3, tail=True)
    other = topk_divergence(
        student[order_N], ids_NK[order_N][:, order_K], teacher_NK[order_N][:, order_K], kind=kind, mix=0.3, tail=True
    )
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left[order_N], right)


def test_the_expected_reverse_kl_is_the_mean_of_the_sampled_one_and_an_unbiased_baseline():
    student, teacher = pair(5, tokens=1, vocabulary=6)
    ids_NK = torch.arange(6)[None]
    found = topk_divergence(student, ids_NK, teacher, kind="forward_kl", mix=0.0, tail=False)
    logprobs_V = student.log_softmax(-1)[0]
    probs_V = logprobs_V.detach().exp()
    sampled_V = (logprobs_V - teacher[0]).detach()
    assert found.expected_reverse_kl_N.item() == pytest.approx((probs_V * sampled_V).sum().item())
    assert not found.expected_reverse_kl_N.requires_grad
    # The score function of every token that could be sampled, by enumeration: one row a token.
    scores_VV = torch.stack([torch.autograd.grad(logp, student, retain_graph=True)[0][0] for logp in logprobs_V])

    def mean_and_variance(baseline: float) -> tuple[torch.Tensor, float]:
        samples_VV = (sampled_V - baseline)[:, None] * scores_VV
        mean_V = probs_V @ samples_VV
        return mean_V, (probs_V @ (samples_VV - mean_V).square()).sum().item()

    plain_V, variance = mean_and_variance(0.0)
    centred_V, less = mean_and_variance(found.expected_reverse_kl_N.item())
    torch.testing.assert_close(centred_V, plain_V)
    assert less < variance


@pytest.mark.parametrize(
    ("kind", "mix", "message"),
    [
        ("kl", 0.5, "kind must be one of forward_kl"),
        ("jensen_shannon", 0.0, r"mix must be in \(0, 1\)"),
        ("jensen_shannon", 1.0, "its limits are forward_kl and reverse_kl"),
        ("skewed_forward_kl", 1.0, r"mix must be in \[0, 1\) for skewed_forward_kl"),
        ("skewed_reverse_kl", -0.1, r"mix must be in \[0, 1\) for skewed_reverse_kl"),
    ],
)
def test_bad_settings_are_refused(kind, mix, message):
    with pytest.raises(ValueError, match=message):
        divergence(logs([1.0]), logs([1.0]), kind=kind, mix=mix)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="must share one"):
        divergence(logs([0.5, 0.5]), logs([1.0]), kind="forward_kl", mix=0.0)
    student, teacher = pair(6)
    buckets = bucket_logits(student, teacher.topk(3).indices)
    with pytest.raises(ValueError, match="must share one"):
        bucket_divergence(buckets, teacher[:1, :3], kind="forward_kl", mix=0.0, tail=True)


def test_the_students_support_by_hand():
    # q = (1/2, 1/4, 1/8, 1/8), p = (1/8, 1/8, 1/4, 1/2); the student's most likely token and its tail.
    student, teacher = logs([0.5, 0.25, 0.125, 0.125]), logs([0.125, 0.125, 0.25, 0.5])
    found = topk_divergence(student, torch.tensor([[0]]), teacher[:, :1], kind="reverse_kl", mix=0.0, tail=True)
    assert found.divergence_N.item() == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(4 / 7))
    assert found.tail_reverse_kl_N.item() == pytest.approx(math.log(4 / 7))
    assert (found.student_mass_N.item(), found.teacher_mass_N.item()) == pytest.approx((0.5, 0.125))
    whole = topk_divergence(student, torch.tensor([[0, 1, 2, 3]]), teacher, kind="reverse_kl", mix=0.0, tail=True)
    # 1/2 log 4 + 1/4 log 2 + 1/8 log 1/2 + 1/8 log 1/4
    assert whole.divergence_N.item() == pytest.approx(LN2 * (1 + 1 / 4 - 1 / 8 - 1 / 4))
    assert whole.tail_reverse_kl_N.item() == 0.0


@FEW
@given(seed=SEEDS, k=st.integers(1, 9))
def test_over_the_students_own_tokens_too_it_is_at_most_the_whole_one_and_that_at_the_whole_vocabulary(seed, k):
    student, teacher = pair(seed)
    full_N = divergence(student.log_softmax(-1), teacher, kind="reverse_kl", mix=0.0)
    ids_NK = student.detach().topk(k).indices
    found_N = topk_divergence(
        student, ids_NK, teacher.gather(1, ids_NK), kind="reverse_kl", mix=0.0, tail=True
    ).divergence_N
    assert (found_N <= full_N + 1e-12).all()
    if k == 9:
        torch.testing.assert_close(found_N, full_N)
        ours, exact = (torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (found_N, full_N))
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_of_no_token_is_a_support_without_it(kind):
    student, teacher = pair(7)
    ids_NK = student.detach().topk(4).indices
    less = topk_divergence(student, ids_NK[:, 1:], teacher.gather(1, ids_NK[:, 1:]), kind=kind, mix=0.3, tail=True)
    there = teacher.gather(1, ids_NK)
    ids_NK[:, 0] = -1  # token 0 must stay in the tail, and what the teacher is said to think of -1 counts for nothing
    found = topk_divergence(student, ids_NK, there, kind=kind, mix=0.3, tail=True)
    for left, right in zip(found, less, strict=True):
        torch.testing.assert_close(left, right)
    ours, theirs = (torch.autograd.grad(x.divergence_N.sum(), student, retain_graph=True)[0] for x in (found, less))
    torch.testing.assert_close(ours, theirs)
