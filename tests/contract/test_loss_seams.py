"""verl 0.9.1 where our losses meet it: policy losses, the actor's loss, logits and the rows of a packed batch."""

import functools
import inspect
import types

import numpy as np
import pytest
import torch
from seams import parameters
from tensordict import TensorDict
from verl.single_controller.base.worker_group import WorkerGroup
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import PPOTrainerSync, trainer_base
from verl.utils import tensordict_utils as tu
from verl.utils import transferqueue_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.base import BaseEngine
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from verl_ext.method.divergence import topk_divergence
from verl_ext.trainer import guarded, losses, update_guard
from verl_ext.trainer.config import POLICY_LOSSES, MethodConfig


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_our_policy_losses_are_registered_with_the_signature_of_verls(name):
    registered = core_algos.get_policy_loss_fn(name)
    assert registered.__module__ == losses.__name__
    assert parameters(registered) == parameters(core_algos.compute_policy_loss_vanilla)


def policy_loss(name: str, actor, mode: str = "token-sum", **more) -> tuple[float, dict]:
    """Two tokens at ratios 2 and 0.25 with advantages 1 and -1, and a masked one."""
    actor.global_batch_info.update(
        {"dp_size": 1, "batch_num_tokens": 4, "global_batch_size": 2, "loss_scale_factor": None}
    )
    ratios_BT = torch.tensor([[2.0, 0.25, float("nan")]])
    loss, metrics = core_algos.get_policy_loss_fn(name)(
        old_log_prob=torch.zeros(1, 3),
        log_prob=ratios_BT.log(),
        advantages=torch.tensor([[1.0, -1.0, 9.0]]),
        response_mask=torch.tensor([[1, 1, 0]]),
        loss_agg_mode=mode,
        config=actor,
        **more,
    )
    return loss.item(), metrics


def test_the_current_students_charge_takes_the_samplers_place(compose_run):
    """Ratios 2 and 0.25: the current student is charged ln 2 more and ln 4 less than the sampler was, times the
    coefficient; the teacher's log-probs are not needed again. Masked tokens charge nobody."""
    words = ("method.student_logprobs=current", "method.coef=0.5")
    actor = omega_conf_to_dataclass(compose_run("platform=cpu", *words).actor_rollout_ref.actor)
    ln2, ln4 = np.log(2), np.log(4)
    loss, _ = policy_loss("importance_sampling", actor)
    assert loss == pytest.approx(-(2 * (1 - 0.5 * ln2) + 0.25 * (-1 + 0.5 * ln4)))
    discounted = compose_run("platform=cpu", *words, "method.discount=0.5").actor_rollout_ref.actor
    loss, _ = policy_loss("importance_sampling", omega_conf_to_dataclass(discounted))
    assert loss == pytest.approx(-(2 * (1 - 0.5 * (ln2 - 0.5 * ln4)) + 0.25 * (-1 + 0.5 * ln4)))


def test_the_effective_sample_size_of_a_micro_batch(compose_run):
    actor = omega_conf_to_dataclass(compose_run("platform=cpu").actor_rollout_ref.actor)
    _, metrics = policy_loss("importance_sampling", actor)
    assert metrics["actor/effective_sample_size"] == pytest.approx(2.25**2 / (2 * (4 + 0.0625)))


def test_our_policy_losses_read_their_bounds_from_the_settings(compose_run):
    """Bounds [0.5, 1.5]; values by hand."""
    settings = {"kind": "ppo_clip", "low": 0.5, "high": 1.5}
    config = compose_run("platform=cpu", *(f"method.policy_loss.{key}={value}" for key, value in settings.items()))
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.policy_loss.loss_mode == "ppo_clip"
    ln2, ln4 = np.log(2), np.log(4)
    wanted = {
        "importance_sampling": -2 + 0.25,
        "ppo_clip": -1.5 + 0.5,  # -min(2, 1.5) and -min(-0.25, -0.5)
        "truncated_importance_sampling": -1.5 * ln2 - 0.5 * ln4,
        "masked_importance_sampling": 0.0,
    }
    for name, value in wanted.items():
        loss, metrics = policy_loss(name, actor)
        assert loss == pytest.approx(value, abs=1e-6), name
        assert metrics["actor/ratio_outside_share"] == 1.0
        assert metrics["actor/rollout_gap_mean"] == pytest.approx((ln2 + ln4) / 2)
        assert metrics["actor/rollout_gap_max"] == pytest.approx(ln4)


def test_a_loss_names_its_denominator_and_takes_the_rollout_corrections_weights(composed_config):
    actor = omega_conf_to_dataclass(composed_config.actor_rollout_ref.actor)
    weights = torch.tensor([[0.5, 1.0, 1.0]])
    assert policy_loss("importance_sampling", actor, rollout_is_weights=weights)[0] == pytest.approx(-1 + 0.25)
    assert policy_loss("importance_sampling", actor, mode="token-mean")[0] == pytest.approx(-1.75 / 4)
    assert policy_loss("importance_sampling", actor, mode="seq-mean-token-sum")[0] == pytest.approx(-1.75 / 2)


def test_a_policy_loss_of_verls_own_may_be_taken(compose_run):
    config = compose_run("platform=cpu", "actor_rollout_ref.actor.policy_loss.loss_mode=gspo")
    assert omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss.loss_mode == "gspo"


def test_the_actor_takes_another_loss_and_a_worker_group_another_method():
    assert "self.actor.set_loss_fn(loss_fn=loss_fn)" in inspect.getsource(ActorRolloutRefWorker.set_loss_fn)
    # Methods of a worker group are attributes of the object: ours takes the place of one.
    assert "setattr(self, method_name, func)" in inspect.getsource(WorkerGroup._bind_worker_method)
    source = inspect.getsource(PPOTrainerSync._update_actor)
    flag, call = source.index('"distillation_use_topk": distillation_use_topk'), source.index("wg.update_actor(batch)")
    assert source.index("batch.extra_info.update(extra_info)") in range(flag, call)


def test_the_update_carries_every_field_of_a_sample():
    """So `teacher_top_*` reach the actor: fields are selected only where the request names some."""
    source = inspect.getsource(transferqueue_utils.async_kv_batch_meta2batch_meta)
    assert "if fields is not None" in source
    assert "fields" not in inspect.getsource(PPOTrainerSync._update_actor)


def packed_batch() -> tuple[TensorDict, torch.Tensor]:
    """Two sequences of 5 and 4 tokens with 2 and 3 of response, one of them masked; logits (9, V)."""
    draw = torch.Generator().manual_seed(0)
    teacher = [torch.randn(length, 7, generator=draw).log_softmax(-1).topk(3) for length in (2, 3)]
    fields = {
        "input_ids": [torch.arange(5), torch.arange(4)],
        "position_ids": [torch.arange(5), torch.arange(4)],
        "prompts": [torch.arange(3), torch.arange(1)],
        "responses": [torch.arange(2), torch.arange(3)],
        "response_mask": [torch.tensor([1, 1]), torch.tensor([1, 0, 1])],
        "teacher_top_ids": [top.indices.int() for top in teacher],
        "teacher_top_logprobs": [top.values for top in teacher],
    }
    nested = {key: torch.nested.as_nested_tensor(value, layout=torch.jagged) for key, value in fields.items()}
    flags = {"distillation_use_topk": True, "distillation_only": True, "temperature": 1.0}
    return tu.get_tensordict(nested, non_tensor_dict=flags), torch.randn(9, 7, generator=draw)


@pytest.mark.parametrize("remove_padding", [True, False])
def test_the_engine_hands_our_loss_its_logits_and_rows_meet_their_tokens(remove_padding):
    """Packed sequences (GPU) and padded ones (CPU): the logits before a token meet the teacher's row of that token."""
    batch, logits_PV = packed_batch()
    tu.assign_non_tensor(batch, use_remove_padding=remove_padding)
    engine = object.__new__(FSDPEngineWithLMHead)
    engine.use_ulysses_sp, engine.pad_to_length = False, False
    _, output_args = engine.prepare_model_inputs(batch)
    rows = (
        logits_PV[None] if remove_padding else torch.stack([logits_PV[:5], torch.cat([logits_PV[5:], logits_PV[:1]])])
    )
    method = MethodConfig(loss="forward_kl", top_k=3)
    loss = functools.partial(losses.loss_from_logits, config=None, method=method)
    found = engine.prepare_model_outputs(types.SimpleNamespace(logits=rows), output_args, batch, loss)
    wanted = torch.zeros(9)
    for position, row in ((2, 0), (3, 1), (5, 2), (7, 4)):  # response tokens 3, 4 of the first; 1, 3 of the second
        ids = batch["teacher_top_ids"].values()[row][None].long()
        teacher = batch["teacher_top_logprobs"].values()[row][None]
        one = topk_divergence(logits_PV[position][None], ids, teacher, kind="forward_kl", mix=0.5, tail=True)
        wanted[position] = one.divergence_N[0]
    torch.testing.assert_close(found["divergence"].values(), wanted)
    assert found["student_mass"].values().gt(0).tolist() == wanted.gt(0).tolist()
    assert "log_probs" not in found


def test_an_update_from_logits_with_nothing_to_train_has_zero_gradient():
    batch, logits_PV = packed_batch()
    batch["response_mask"] = torch.nested.as_nested_tensor(
        [torch.zeros(2).long(), torch.zeros(3).long()], layout=torch.jagged
    )
    logits_PV.requires_grad_()
    losses.read_logits(MethodConfig(loss="reverse_kl", top_k=3), logits_PV, batch)["divergence"].sum().backward()
    assert logits_PV.grad is not None
    assert logits_PV.grad.abs().max() == 0


def test_an_update_that_is_not_finite_is_skipped_by_verl_and_seen_by_us():
    """verl's engine says its gradient norm, a list of one an update, and skips where that is not finite."""
    assert parameters(FSDPEngine.train_batch) == parameters(BaseEngine.train_batch)
    assert FSDPEngineWithLMHead.train_batch is update_guard.train_batch
    assert "if not torch.isfinite(grad_norm):" in inspect.getsource(FSDPEngine.optimizer_step)
    assert 'outputs["metrics"]["grad_norm"] = grad_norm' in inspect.getsource(BaseEngine.train_batch)
    # Beside those, verl gathers a metric from the ranks and joins lists alone.
    assert "else list(chain.from_iterable(val))" in inspect.getsource(TrainingWorker.train_mini_batch)


def test_verls_metrics_fail_where_no_token_is_trained_and_ours_stand_in():
    assert trainer_base.compute_data_metrics is guarded._data_metrics
    assert "compute_data_metrics(batch=metrics_batch, use_critic=self.use_critic)" in inspect.getsource(
        PPOTrainerSync._compute_metrics
    )
