"""What the actor descends, on one micro-batch of two sequences, by hand.

The first has 3 prompt tokens and 2 of response, the second 1 and 3, of which the middle one is masked. The response
tokens are predicted at positions 2, 3 of the first and 0, 1, 2 of the second: 2, 3, 5, 6, 7 of the packed nine.
"""

import math
from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import AggregationType, Metric

from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.losses import loss_from_logits, policy_loss

TOP_K = 3
NOWHERE = 100.0  # at positions that predict no response token: never in a loss or a metric


def nested(rows: list) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def at_positions(first: list[float], second: list[float]) -> torch.Tensor:
    return nested([[NOWHERE, NOWHERE, *first, NOWHERE], [*second, NOWHERE]])


def micro_batch(*, dp_size: int = 1, tokens: int = 4, sequences: int = 2, mask: tuple = ([1, 1], [1, 0, 1])):
    fields = {
        "input_ids": nested([[1, 2, 3, 4, 5], [6, 7, 8, 9]]),
        "prompts": nested([[1, 2, 3], [6]]),
        "responses": nested([[4, 5], [7, 8, 9]]),
        "response_mask": nested(list(mask)),
        "old_log_probs": nested([[-1.0, -1.0], [-1.0, -1.0, -1.0]]),
        "advantages": nested([[0.5, -1.0], [2.0, 9.0, 1.0]]),
    }
    info = {"dp_size": dp_size, "batch_num_tokens": tokens, "global_batch_size": sequences}
    return tu.get_tensordict(fields, non_tensor_dict=info)


@pytest.fixture
def make_actor(run_config) -> Callable:
    """verl's configuration of the actor, with our default loss: the unclipped ratio, summed over tokens."""

    def make(**changes):
        return omega_conf_to_dataclass(OmegaConf.merge(run_config.actor_rollout_ref.actor, changes))

    return make


@pytest.fixture
def actor(make_actor):
    return make_actor()


def outputs(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the model: every token as likely as when it was sampled, so that each ratio is 1."""
    one = at_positions([1.0, 1.0], [1.0, 1.0, 1.0])
    return {
        "log_probs": at_positions([-1.0, -1.0], [-1.0, -1.0, -1.0]),
        "divergence": at_positions([0.25, 0.5], [1.0, 50.0, 2.0]),
        "expected_reverse_kl": at_positions([0.2, 0.4], [0.6, 7.0, 0.8]),
        "student_mass": 0.5 * one,
        "teacher_mass": 0.75 * one,
        **more,
    }


def loss_of(actor, method: MethodConfig, data, **more) -> tuple[float, dict]:
    loss, metrics = loss_from_logits(actor, method, model_output=outputs(**more), data=data)
    return loss.item(), {
        name: getattr(metric, "aggregate", lambda metric=metric: metric)() for name, metric in metrics.items()
    }


BASELINE = {"baseline": "expected_reverse_kl", "top_k": TOP_K}


def test_the_expected_reverse_kl_of_the_position_is_taken_off_each_tokens_charge(actor):
    """advantage = -(KL - E[KL]): a token that costs what was expected is neither pushed nor pulled."""
    charged = 0.5 - 1.0 + 2.0 + 1.0
    loss, metrics = loss_of(actor, MethodConfig(**BASELINE), micro_batch())
    assert loss == pytest.approx(-(charged + 0.2 + 0.4 + 0.6 + 0.8))
    assert metrics["actor/pg_loss"] == pytest.approx(loss)
    assert metrics["actor/expected_reverse_kl"] == pytest.approx(2.0 / 4)
    assert metrics["actor/student_mass"] == pytest.approx(0.5)
    assert metrics["actor/teacher_mass"] == pytest.approx(0.75)
    assert "actor/divergence" not in metrics


def test_the_expected_baseline_has_the_charges_coefficient_and_denominator(actor):
    charged = 0.5 - 1.0 + 2.0 + 1.0
    loss, _ = loss_of(actor, MethodConfig(**BASELINE, coef=3.0), micro_batch())
    assert loss == pytest.approx(-(charged + 3 * 2.0))
    by_sequence = MethodConfig(**BASELINE, normalization="sequence")
    loss, _ = loss_of(actor, by_sequence, micro_batch())
    assert loss == pytest.approx(-(charged + (0.2 + 0.4) / 2 + (0.6 + 0.8) / 2))
    loss, _ = loss_of(actor, by_sequence, micro_batch(mask=([0, 0], [1, 0, 1])))
    assert loss == pytest.approx(-(3.0 + 0.7))


def test_the_baseline_follows_the_ratio_and_leaves_the_batch_as_it_was(actor):
    data = micro_batch()
    twice = at_positions([-1.0 + math.log(2), -1.0], [-1.0, -1.0, -1.0])
    loss, metrics = loss_of(actor, MethodConfig(**BASELINE), data, log_probs=twice)
    assert loss == pytest.approx(-(2 * 0.7 - 0.6 + 2.6 + 1.8))
    assert metrics["actor/rollout_gap_max"] == pytest.approx(math.log(2))
    assert data["advantages"].values().tolist() == [0.5, -1.0, 2.0, 9.0, 1.0]  # a second epoch reads it again


DIRECT = MethodConfig(loss="forward_kl", top_k=TOP_K, coef=2.0)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("token-sum", 0.25 + 0.5 + 1.0 + 2.0),
        ("token-mean", (0.25 + 0.5 + 1.0 + 2.0) / 8),
        ("seq-mean-token-sum", (0.25 + 0.5 + 1.0 + 2.0) / 5),
        ("seq-mean-token-mean", (0.75 / 2 + 3.0 / 2) / 5),
    ],
)
def test_a_direct_loss_is_the_divergence_over_the_whole_batchs_denominator(make_actor, mode, wanted):
    """The global batch has 8 tokens and 5 sequences on 3 ranks, by which FSDP will divide."""
    actor = make_actor(loss_agg_mode=mode)
    data = micro_batch(dp_size=3, tokens=8, sequences=5)
    loss, metrics = loss_of(actor, DIRECT, data)
    assert loss == pytest.approx(2.0 * 3 * wanted)
    assert metrics["actor/direct_loss"] == pytest.approx(loss)
    assert metrics["actor/divergence"] == pytest.approx(3.75 / 4)
    assert metrics["actor/expected_reverse_kl"] == pytest.approx(2.0 / 4)
    assert "actor/entropy_loss" not in metrics


def test_the_weight_of_a_replayed_row_multiplies_its_part_of_any_loss(actor):
    data = micro_batch()
    data["rollout_is_weights"] = nested([[0.5, 0.5], [2.0, 2.0, 2.0]])
    assert loss_of(actor, DIRECT, data)[0] == pytest.approx(2.0 * (0.5 * 0.75 + 2.0 * 3.0))
    pushed = 0.5 * (0.5 - 1.0 + 0.2 + 0.4) + 2.0 * (2.0 + 1.0 + 0.6 + 0.8)
    assert loss_of(actor, MethodConfig(**BASELINE), data)[0] == pytest.approx(-pushed)


def test_a_constant_denominator_is_read_from_the_actor(make_actor):
    actor = make_actor(loss_agg_mode="seq-mean-token-sum-norm", loss_scale_factor=4)
    assert loss_of(actor, DIRECT, micro_batch())[0] == pytest.approx(2.0 * 3.75 / (2 * 4))


def test_verls_entropy_term_is_part_of_a_direct_loss(make_actor):
    entropy = at_positions([1.0, 2.0], [3.0, 40.0, 4.0])
    loss, metrics = loss_of(make_actor(entropy_coeff=0.1), DIRECT, micro_batch(), entropy=entropy)
    assert loss == pytest.approx(2.0 * 3.75 - 0.1 * 10.0)
    assert metrics["actor/entropy_loss"] == pytest.approx(10.0)
    assert metrics["actor/direct_loss"] == pytest.approx(7.5)


@pytest.mark.parametrize("mode", ["token-sum", "token-mean", "seq-mean-token-sum"])
@pytest.mark.parametrize(
    "method", [DIRECT, MethodConfig(), MethodConfig(**BASELINE)], ids=["direct", "plain", "baseline"]
)
def test_entropy_is_that_of_a_token_whatever_the_loss_sums(make_actor, mode, method):
    """1 + 2 + 3 + 4 nats; half of a batch of 8 tokens, on one of two ranks, over which verl takes the mean."""
    output = outputs(entropy=at_positions([1.0, 2.0], [3.0, 40.0, 4.0]))
    data = micro_batch(dp_size=2, tokens=8, sequences=4)
    if method.needs_student_logits:
        _, metrics = loss_from_logits(make_actor(loss_agg_mode=mode), method, model_output=output, data=data)
    else:
        _, metrics = policy_loss(make_actor(loss_agg_mode=mode), output, data)
    other_rank = Metric(AggregationType.SUM, 0.0)
    assert Metric.aggregate_dp([metrics["actor/entropy"], other_rank]) == pytest.approx((1 + 2 + 3 + 4) / 8)


def test_a_micro_batch_with_nothing_to_train_costs_nothing(actor):
    data = micro_batch(mask=([0, 0], [0, 0, 0]), tokens=0)
    loss, metrics = loss_of(actor, DIRECT, data, entropy=at_positions([1.0, 2.0], [3.0, 40.0, 4.0]))
    assert loss == 0
    assert metrics["actor/divergence"] == 0
    assert metrics["actor/entropy"] == 0


def top_rows(draw: torch.Generator, lengths: tuple[int, int]) -> dict[str, torch.Tensor]:
    tops = [torch.randn(length, 7, generator=draw).log_softmax(-1).topk(TOP_K) for length in lengths]
    ids, logprobs = nested([top.indices.int() for top in tops]), nested([top.values for top in tops])
    return {"teacher_top_ids": ids, "teacher_top_logprobs": logprobs}


def distributions(logits_V: torch.Tensor, data, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of student and teacher over the teacher's top tokens and all others as one more, (K + 1,) each."""
    ids = data["teacher_top_ids"].values()[row].long()
    student, teacher = logits_V.log_softmax(-1)[ids], data["teacher_top_logprobs"].values()[row]
    return tuple(torch.cat([x, torch.log1p(-x.exp().sum())[None]]) for x in (student, teacher))


@pytest.mark.parametrize("spare", [0, 2])
@pytest.mark.parametrize("direct", [True, False])
def test_the_logits_before_a_token_meet_the_teachers_row_of_that_token(direct, spare):
    """`spare`: rows beyond the tokens, which verl's synthetic padding samples keep."""
    draw = torch.Generator().manual_seed(0)
    data = micro_batch()
    for name, value in top_rows(draw, (2 + spare, 3)).items():
        data[name] = value
    logits_1PV = torch.randn(1, 9, 7, generator=draw, requires_grad=True)
    method = MethodConfig(loss="forward_kl", top_k=TOP_K) if direct else MethodConfig(**BASELINE)
    found = loss_from_logits(None, method, data=data, student_logits=logits_1PV)
    reverse_P, forward_P = torch.zeros(9), torch.zeros(9)
    for position, row in ((2, 0), (3, 1), (5, 2 + spare), (7, 4 + spare)):
        student, teacher = distributions(logits_1PV[0, position].detach(), data, row)
        reverse_P[position] = (student.exp() * (student - teacher)).sum()
        forward_P[position] = (teacher.exp() * (teacher - student)).sum()
    torch.testing.assert_close(found["expected_reverse_kl"][0], reverse_P)
    if direct:
        torch.testing.assert_close(found["divergence"][0].detach(), forward_P)
        found["divergence"].sum().backward()
        assert logits_1PV.grad is not None
        assert logits_1PV.grad[0].abs().sum(-1).gt(0).tolist() == forward_P.gt(0).tolist()
    else:
        assert not any(value.requires_grad for value in found.values())  # a baseline must not move the student


@pytest.mark.parametrize(("mix", "tail"), [(0.3, True), (0.3, False), (0.6, True)])
def test_mixture_and_tail_are_the_methods(mix, tail):
    draw = torch.Generator().manual_seed(1)
    data = micro_batch(mask=([1, 0], [0, 0, 0]))
    for name, value in top_rows(draw, (2, 3)).items():
        data[name] = value
    logits_1PV = torch.randn(1, 9, 7, generator=draw)
    method = MethodConfig(loss="skewed_forward_kl", top_k=TOP_K, mix=mix, tail=tail, chunk_tokens=1)
    found = loss_from_logits(None, method, data=data, student_logits=logits_1PV)["divergence"][0, 2]
    student, teacher = (x if tail else x[:-1] for x in distributions(logits_1PV[0, 2], data, 0))
    mixture = (mix * teacher.exp() + (1 - mix) * student.exp()).log()
    torch.testing.assert_close(found, (teacher.exp() * (teacher - mixture)).sum())


def test_a_sampled_token_outside_the_support_is_charged_for_how_the_tail_is_divided(actor):
    """By the student of the update, whose ratio is 2 at the first token: 2 x (-1 + log 2 + 3 - 0.5) of the first row,
    1 x (-1 + 4 - 0.5) of the last; the second token is in the support, the masked one counts for nothing."""
    data = micro_batch()
    data["rollout_log_probs"] = data["old_log_probs"]
    data["teacher_logprobs"] = nested([[-3.0, -3.0, 7.0], [-4.0, 9.0, -4.0]])  # a padding sample keeps rows to spare
    ids = [[[1, 2, -1], [5, 2, 3], [0, 0, 0]], [[7, 0, 2], [0, 0, 0], [1, 2, 3]]]  # responses 4 5 and 7 8 9
    data["teacher_top_ids"] = nested([torch.tensor(row, dtype=torch.int32) for row in ids])
    twice = at_positions([-1.0 + math.log(2), -1.0], [-1.0, -1.0, -1.0])
    tail = at_positions([0.5, 0.5], [0.5, 0.5, 0.5])
    method = MethodConfig(loss="reverse_kl", top_k=TOP_K, coef=2.0, tail_samples=True)
    loss, metrics = loss_of(actor, method, data, log_probs=twice, tail_reverse_kl=tail)
    charged = 2 * (-1.0 + math.log(2) + 3.0 - 0.5) + (-1.0 + 4.0 - 0.5)
    assert loss == pytest.approx(2.0 * (3.75 + charged))
    assert metrics["actor/divergence"] == pytest.approx(3.75 / 4)  # of the buckets alone
    data["rollout_is_weights"] = nested([[0.5, 0.5], [2.0, 2.0, 2.0]])
    weighed = 0.5 * (0.75 + 2 * (1.5 + math.log(2))) + 2.0 * (3.0 + 2.5)
    assert loss_of(actor, method, data, log_probs=twice, tail_reverse_kl=tail)[0] == pytest.approx(2.0 * weighed)
