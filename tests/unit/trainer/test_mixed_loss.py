"""The loss of a micro-batch with answers of the teacher in it, by hand: the two sequences of `test_losses.py`."""

import functools
from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import AggregationType, Metric

from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.losses import loss_from_logits, policy_loss
from verl_ext.trainer.mixed_loss import means, mixed_loss

NOWHERE = 100.0
"""At positions that predict no response token."""
SAMPLED = MethodConfig()
DIRECT = MethodConfig(loss="forward_kl", top_k=2, coef=2.0)


def nested(rows: list) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def micro_batch(taught: tuple[float, float], *, tokens: int = 5, sequences: int = 2, dp_size: int = 1):
    """A prompt of 3 tokens with 2 of response, one of 1 with 3; `taught` is 1 for an answer of the teacher."""
    fields = {
        "input_ids": nested([[1, 2, 3, 4, 5], [6, 1, 2, 3]]),
        "prompts": nested([[1, 2, 3], [6]]),
        "responses": nested([[4, 5], [1, 2, 3]]),
        "response_mask": nested([[1, 1], [1, 1, 1]]),
        "old_log_probs": nested([[-1.0, -1.0], [0.0, 0.0, 0.0]]),
        "advantages": nested([[0.5, -1.0], [0.0, 0.0, 0.0]]),
        "off_policy": nested([[taught[0]] * 2, [taught[1]] * 3]),
    }
    info = {"dp_size": dp_size, "batch_num_tokens": tokens, "global_batch_size": sequences}
    return tu.get_tensordict(fields, non_tensor_dict=info)


def outputs() -> dict[str, torch.Tensor]:
    def at(first: list[float], second: list[float]) -> torch.Tensor:
        return nested([[NOWHERE, NOWHERE, *first, NOWHERE], [*second, NOWHERE]])

    return {
        "log_probs": at([-1.0, -1.0], [-0.5, -2.0, -3.0]).requires_grad_(),
        "divergence": at([0.25, 0.5], [50.0, 50.0, 50.0]),
        "expected_reverse_kl": at([0.2, 0.4], [50.0, 50.0, 50.0]),
        "student_mass": at([0.5, 0.5], [50.0, 50.0, 50.0]),
        "teacher_mass": at([0.5, 0.5], [50.0, 50.0, 50.0]),
        "entropy": at([1.0, 2.0], [3.0, 4.0, 5.0]),
    }


@pytest.fixture
def make_loss(run_config) -> Callable:
    def make(method: MethodConfig = SAMPLED, mode: str = "token-sum"):
        changed = OmegaConf.merge(run_config.actor_rollout_ref.actor, {"loss_agg_mode": mode})
        actor = omega_conf_to_dataclass(changed)
        how = functools.partial(loss_from_logits, method=method) if method.needs_student_logits else policy_loss
        return functools.partial(mixed_loss, config=actor, own_loss=functools.partial(how, config=actor))

    return make


def update(*micro_batches: dict) -> dict[str, float]:
    """The metrics of an update of these micro-batches, as verl adds them up and the trainer reads them."""
    names = {name for metrics in micro_batches for name in metrics}
    found = {}
    for name in names:
        metric = micro_batches[0][name].init_list()
        for metrics in micro_batches:
            metric.append(metrics[name])
        found[name] = metric.aggregate()
    return means(found)


@pytest.mark.parametrize(
    ("mode", "own", "taught"),
    [
        ("token-sum", 0.5, 5.5),
        ("token-mean", 0.5 / 5, 5.5 / 5),
        ("seq-mean-token-sum", 0.5 / 2, 5.5 / 2),
        ("seq-mean-token-mean", 0.25 / 2, 5.5 / 3 / 2),
    ],
)
def test_samples_keep_their_loss_and_answers_are_charged_their_cross_entropy(make_loss, mode, own, taught):
    """Ratios are 1, so the policy loss is minus the advantages: -(0.5 - 1). Answers: 0.5 + 2 + 3 nats."""
    output = outputs()
    loss, metrics = make_loss(mode=mode)(model_output=output, data=micro_batch((0, 1)))
    assert loss.item() == pytest.approx(own + taught)
    assert metrics["actor/pg_loss"].aggregate() == pytest.approx(own)
    loss.backward()
    gradient = output["log_probs"].grad.values()
    scale = taught / 5.5
    assert gradient[[5, 6, 7]].tolist() == pytest.approx([-scale] * 3)  # of an answer, as of SFT, whatever its ratio
    assert gradient[[0, 1, 4, 8]].tolist() == [0] * 4


def test_a_direct_loss_stands_beside_them_too(make_loss):
    loss, metrics = make_loss(DIRECT)(model_output=outputs(), data=micro_batch((0, 1)))
    assert loss.item() == pytest.approx(2.0 * 0.75 + 5.5)
    found = update(metrics)
    assert found["actor/divergence"] == pytest.approx(0.75 / 2)
    assert found["actor/expected_reverse_kl"] == pytest.approx(0.6 / 2)
    assert found["actor/off_policy_nll"] == pytest.approx(5.5 / 3)


def test_logits_are_not_read_where_no_teacher_has_scored(make_loss):
    data = micro_batch((0, 1))
    data["teacher_top_ids"] = nested([[[1, 2], [3, 4]], [[0, 0]] * 3]).int()
    data["teacher_top_logprobs"] = nested([[[-1.0, -2.0]] * 2, [[0.0, 0.0]] * 3])
    logits = torch.randn(1, 9, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = make_loss(DIRECT)(data=data, student_logits=logits)["divergence"]
    assert found[0].gt(0).tolist() == [False, False, True, True, *[False] * 5]
    found.sum().backward()
    assert logits.grad[0].abs().sum(-1).gt(0).tolist() == found[0].gt(0).tolist()


def test_metrics_of_samples_are_means_over_their_tokens_however_micro_batches_fall(make_loss):
    loss = make_loss()
    output = outputs()
    output["log_probs"] = (output["log_probs"].detach() * 1.5).requires_grad_()
    apart = [loss(model_output=output, data=micro_batch(taught))[1] for taught in ((0, 1), (1, 1), (1, 1))]
    found = update(*apart)
    assert found["actor/rollout_gap_mean"] == pytest.approx(0.5)  # and not a third of it
    assert found["actor/rollout_gap_max"] == pytest.approx(0.5)
    assert found["actor/off_policy_nll"] == pytest.approx(1.5 * (5.5 + 7.5 + 7.5) / 13)
    assert not [name for name in found if "own" in name]
    nothing = update(loss(model_output=output, data=micro_batch((1, 1)))[1])
    assert "actor/rollout_gap_mean" not in nothing


def test_the_entropy_is_of_everything_that_is_trained_on_and_the_batch_stays_as_it_was(make_loss):
    data = micro_batch((0, 1))
    _, metrics = make_loss()(model_output=outputs(), data=data)
    assert metrics["actor/entropy"].aggregate() == pytest.approx(15 / 5)
    assert data["response_mask"].values().tolist() == [1] * 5
    other_rank = Metric(AggregationType.SUM, 0.0)
    assert Metric.aggregate_dp([metrics["actor/entropy"], other_rank]) == pytest.approx(15 / 10)
