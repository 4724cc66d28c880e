"""The laboratory itself by hand; then what `docs/method.md` claims of each estimator, in worlds the bars do not use."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.arms.kl_estimators import (
    ESTIMATORS,
    OFF_POLICY,
    REPLAY,
    grouped,
    logprob_pair,
    off_policy,
    sampled,
    tool_gradient,
)
from benchmarks.arms.kl_laboratory import (
    World,
    all_groups,
    descend,
    gradient,
    make_world,
    policy_gradient_rows,
    sequence_gradient,
    sequence_kl,
    sequence_probs,
    state_gradient,
    token_logprobs,
)
from verl_ext.method.baselines import group_baseline, task_advantage
from verl_ext.method.reverse_kl import reverse_kl_advantage

WORLDS = [make_world(4, 3, seed=1), make_world(5, 2, seed=2)]
GRADIENTS = {"states": state_gradient, "sequence": sequence_gradient}


def relative(found_P: torch.Tensor, true_P: torch.Tensor) -> float:
    return float((found_P - true_P).norm() / true_P.norm())


@pytest.fixture
def coin() -> World:
    """One token of two: student (1/4, 3/4), teacher (1/2, 1/2)."""
    half = torch.full((1, 2), -math.log(2), dtype=torch.float64)
    student_SV = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    return replace(make_world(2, 1, seed=0), teacher_SV=half, student_SV=student_SV)


def test_a_coin_by_hand(coin):
    kl = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    assert float(sequence_kl(coin, coin.student_SV)) == pytest.approx(kl, abs=1e-14)
    # d KL / d logit_v = q_v (log q_v / p_v - KL)
    slope = 0.25 * (math.log(1 / 2) - kl)
    assert sequence_gradient(coin, coin.student_SV).tolist() == pytest.approx([slope, -slope], abs=1e-14)
    draws = sampled(coin, coin.student_SV)
    assert draws.probs_M.tolist() == pytest.approx([0.25, 0.75])
    # reverse KL of the token times the gradient of its log-prob
    tail, head = math.log(1 / 2), math.log(3 / 2)
    expected = torch.tensor([[0.75 * tail, -0.75 * tail], [-0.25 * head, 0.25 * head]], dtype=torch.float64)
    torch.testing.assert_close(draws.gradients_MP, expected)
    variance = 2 * (0.25 * (0.75 * tail - slope) ** 2 + 0.75 * (-0.25 * head - slope) ** 2)
    assert draws.variance() == pytest.approx(variance, abs=1e-14)


def test_sequences_end_once_and_probabilities_sum_to_one():
    world = make_world(3, 3, seed=4)
    # END; x END; x y and any third token: 1 + 2 + 2 * 2 * 3.
    assert len(world.tokens_NT) == 15
    assert float(sequence_probs(world, world.student_SV).sum()) == pytest.approx(1.0, abs=1e-14)
    with_tool = make_world(3, 3, seed=4, tool=1)
    assert len(with_tool.tokens_NT) == 27
    assert float(sequence_probs(with_tool, with_tool.student_SV).sum()) == pytest.approx(1.0, abs=1e-14)


def test_the_sequence_kl_is_its_definition_and_its_gradient_the_difference_quotient():
    world = WORLDS[0]
    probs_N = sequence_probs(world, world.student_SV)
    teacher_N = torch.where(world.mask_NT, token_logprobs(world, world.teacher_SV), 0.0).sum(-1)
    definition = float(probs_N @ (probs_N.log() - teacher_N))
    assert float(sequence_kl(world, world.student_SV)) == pytest.approx(definition, abs=1e-13)
    step = torch.zeros_like(world.student_SV)
    step[1, 2] = 1e-5
    up, down = (float(sequence_kl(world, world.student_SV + sign * step)) for sign in (1, -1))
    found = sequence_gradient(world, world.student_SV).reshape_as(step)[1, 2]
    assert float(found) == pytest.approx((up - down) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("entry", [e for e in ESTIMATORS if e.gradient_of], ids=lambda e: e.name)
@pytest.mark.parametrize("world", WORLDS, ids=("V4T3", "V5T2"))
def test_the_expected_gradient_is_exactly_what_the_table_says(entry, world):
    found_P = entry.estimator(world, world.student_SV).mean()
    if entry.gradient_of == "nothing":
        assert float(found_P.norm()) < 1e-12
    else:
        assert relative(found_P, GRADIENTS[entry.gradient_of](world, world.student_SV)) < 1e-12


@pytest.mark.parametrize("entry", [e for e in ESTIMATORS if not e.gradient_of], ids=lambda e: e.name)
def test_what_the_table_calls_biased_is_biased(entry):
    # More than one token in the tail: a tail of one is exact.
    world = WORLDS[1]
    found_P = entry.estimator(world, world.student_SV).mean()
    assert min(relative(found_P, g(world, world.student_SV)) for g in GRADIENTS.values()) > 0.01


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_baseline_that_holds_the_row_itself_shrinks_the_gradient_by_its_share(size):
    world = make_world(3, 2, seed=5)
    true_P = sequence_gradient(world, world.student_SV)
    alone, shared = (
        grouped(world, world.student_SV, leave_one_out=loo, tokens=False, size=size).mean() for loo in (True, False)
    )
    assert relative(alone, true_P) < 1e-12
    assert relative(shared, true_P * (size - 1) / size) < 1e-12


def test_one_group_of_the_whole_batch_is_unbiased_across_prompts():
    world = make_world(3, 2, seed=6)
    probs_M, rows = all_groups(world, world.student_SV, 2)
    pair = logprob_pair(rows, world.student_SV)
    charge = -reverse_kl_advantage(*pair).unflatten(0, (-1, 2))
    masks = rows.mask_NT.unflatten(0, (-1, 2))
    one_group = torch.zeros(2, dtype=torch.long)
    baseline = torch.cat([group_baseline(x, one_group, m) for x, m in zip(charge, masks, strict=True)])
    rows_P = policy_gradient_rows(rows, world.student_SV, reverse_kl_advantage(*pair, baseline=baseline))
    mean_P = probs_M @ rows_P.unflatten(0, (-1, 2)).mean(1)
    assert relative(mean_P, state_gradient(world, world.student_SV)) < 1e-12


@pytest.mark.parametrize("size", [2, 3])
def test_the_centred_task_advantage_is_the_policy_gradient_times_n_minus_1_over_n(size):
    world = make_world(3, 2, seed=7)
    rewards_N = torch.randn(len(world.tokens_NT), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true_P = gradient(lambda x: -(sequence_probs(world, x) @ rewards_N), world.student_SV)
    probs_M, rows = all_groups(world, world.student_SV, size)
    index = torch.cartesian_prod(*[torch.arange(len(rewards_N))] * size).flatten()
    groups = torch.arange(len(probs_M)).repeat_interleave(size)
    advantage_B = task_advantage(rewards_N[index], groups, std=False)
    rows_P = policy_gradient_rows(rows, world.student_SV, advantage_B[:, None].expand_as(rows.tokens_NT))
    mean_P = probs_M @ rows_P.unflatten(0, (-1, size)).mean(1)
    assert relative(mean_P, true_P * (size - 1) / size) < 1e-12


def test_off_policy_only_the_plain_ratio_is_unbiased():
    world = WORLDS[0]
    off = {name: relative(*_mean_and_aim(world, loss)) for name, loss in OFF_POLICY.items()}
    assert off.pop("importance sampling") < 1e-12
    assert min(off.values()) > 0.01


def _mean_and_aim(world: World, loss) -> tuple[torch.Tensor, torch.Tensor]:
    draws, aim_P = off_policy(world, world.student_SV, loss)
    return draws.mean(), aim_P


def test_only_strict_trains_the_environments_token():
    assert tool_gradient("fixed") == 0.0
    assert tool_gradient("strict") > 0.01


def test_fixed_discounting_is_unbiased_across_a_tool_turn():
    world = make_world(3, 3, seed=8, tool=1)
    found_P = sampled(world, world.student_SV, discount=1.0).mean()
    assert relative(found_P, sequence_gradient(world, world.student_SV)) < 1e-12


def test_descent_reaches_the_teacher_and_a_topk_kl_as_an_advantage_does_not_move():
    world = make_world(3, 2, seed=9)
    estimators = {entry.name: entry.estimator for entry in ESTIMATORS}
    start = float(sequence_kl(world, world.student_SV))
    run = partial(descend, world, steps=120, learning_rate=1.0)
    assert run(estimators["sampled, discount 0 (Tinker)"]) < start / 20
    assert run(estimators["sampled, discount 1"]) < start / 20
    assert run(estimators["top-k KL as an advantage"]) == pytest.approx(start, abs=1e-12)
    assert run(estimators["flipped sign"]) > start


def test_a_teacher_equal_to_the_student_zeroes_every_draw_not_only_their_mean():
    world = WORLDS[1]
    same = replace(world, teacher_SV=world.student_SV.log_softmax(-1))
    assert not sampled(same, same.student_SV).gradients_MP.any()


@pytest.mark.parametrize("name", REPLAY)
def test_a_replayed_row_is_unbiased_with_its_weight_and_under_the_student_alone(name):
    """In the sampler's states; without either, or with a bounded ratio, it is not."""
    exact, estimator = REPLAY[name]
    for world in WORLDS:
        draws, aim_P = estimator(world, world.student_SV)
        assert float(draws.probs_M.sum()) == pytest.approx(1.0)
        off = relative(draws.mean(), aim_P)
        assert off < 1e-12 if exact else off > 0.02
