"""verl 0.9.1, as far as we stand on it: one test for each signature, field and key that we override or rely on.

A red test here means that verl changed under us; the adapter it names is what to mend.
"""

import importlib.metadata
import inspect
import re

import numpy as np
import pytest
import torch
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.config import AlgoConfig
from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_ext.trainer import agent_loop, losses, trainer


def parameters(function) -> list[str]:
    # Ray adds a tracing argument to the methods of an actor class.
    return [name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx"]


def test_the_version_these_tests_were_written_for():
    assert importlib.metadata.version("verl") == "0.9.1"


WORKER = AgentLoopWorkerTQ.__ray_metadata__.modified_class
OVERRIDES = [
    (agent_loop.DistillationAgentLoopWorker, WORKER, "_compute_score"),
    (agent_loop.DistillationAgentLoopWorker, WORKER, "_compute_teacher_logprobs"),
    (agent_loop.DistillationAgentLoopWorker, WORKER, "_run_agent_loop"),
    (trainer.OnPolicyDistillationTrainer, PPOTrainerSync, "_balance_batch"),
    (trainer.OnPolicyDistillationTrainer, PPOTrainerSync, "_build_replay_buffer"),
    (trainer.OnPolicyDistillationTrainer, PPOTrainerSync, "_init_dataloader"),
    (trainer.OnPolicyDistillationTrainer, PPOTrainerSync, "on_init_end"),
    (trainer.OnPolicyDistillationTrainer, PPOTrainerSync, "on_train_begin"),
    (trainer.OnPolicyDistillationTrainer, PPOTrainerSync, "_compute_advantage"),
    (trainer.OnPolicyDistillationTrainer, PPOTrainerSync, "_compute_metrics"),
    (trainer.OnPolicyDistillationTrainer, PPOTrainerSync, "on_step_end"),
]


@pytest.mark.parametrize(("ours", "theirs", "name"), OVERRIDES, ids=lambda value: getattr(value, "__name__", value))
def test_an_override_has_the_signature_of_what_it_overrides(ours, theirs, name):
    assert name in vars(ours)
    assert parameters(vars(ours)[name]) == parameters(getattr(theirs, name))


def test_our_overrides_are_all_listed():
    """Every method of ours that hides one of verl's has a row above."""
    listed = {(ours, name) for ours, _, name in OVERRIDES}
    for ours, theirs in (
        (agent_loop.DistillationAgentLoopWorker, WORKER),
        (trainer.OnPolicyDistillationTrainer, PPOTrainerSync),
    ):
        for name, value in vars(ours).items():
            if callable(value) and hasattr(theirs, name) and not name.startswith("__"):
                assert (ours, name) in listed


def test_the_workers_scoring_hook_is_called_with_the_data_row():
    source = inspect.getsource(WORKER._agent_loop_postprocess)
    assert "_compute_teacher_logprobs(" in source
    assert "sample_kwargs=kwargs" in source
    assert "validate=validate" in source


def test_the_single_turn_loop_keeps_no_state_between_samples():
    """Why one object can serve every sample of a worker."""
    assert not re.search(r"self\.\w+ *=[^=]", inspect.getsource(SingleTurnAgentLoop.run))
    assert set(vars(SingleTurnAgentLoop)) <= {
        "__init__",
        "run",
        "__module__",
        "__doc__",
        "__abstractmethods__",
        "_abc_impl",
    }


def test_samples_are_not_traced_by_default():
    assert "trace_this_sample = False" in inspect.getsource(WORKER.generate_sequences)


def test_teacher_logprobs_leave_extra_fields_as_a_column_of_their_own():
    output = AgentLoopOutput(prompt_ids=[1], response_ids=[2, 3], response_mask=[1, 1], metrics=AgentLoopMetrics())
    output.extra_fields["teacher_logprobs"] = torch.tensor([-0.5, -0.25])
    output.extra_fields["teacher_tokens"] = 3
    columns = output.as_dict()
    assert columns["teacher_logprobs"].tolist() == [-0.5, -0.25]
    assert columns["extra_fields"] == {"teacher_tokens": 3}


def test_the_manager_reads_its_worker_class_after_init():
    assert "self.agent_loop_workers_class" in inspect.getsource(AgentLoopManagerTQ.__init__)
    assert "self.agent_loop_workers_class" in inspect.getsource(AgentLoopManagerTQ._init_agent_loop_workers)


def test_our_trainer_is_what_the_mode_names():
    assert get_trainer_cls(trainer.NAME) is trainer.OnPolicyDistillationTrainer


def test_any_mode_but_sync_is_asynchronous_to_verl():
    """Why our trainer renames its mode to `sync` before verl's constructor runs."""
    assert 'self.trainer_mode == "sync"' in inspect.getsource(PPOTrainerSync._build_replay_buffer)


def test_the_replay_buffer_polls_at_an_attribute():
    assert "poll_interval" in parameters(ReplayBuffer.__init__)
    assert "self.poll_interval" in inspect.getsource(ReplayBuffer._wait_for_next_poll)


def test_a_registered_estimator_receives_rewards_mask_and_groups_and_its_result_is_used():
    seen = {}

    @core_algos.register_adv_est("contract_test")
    def estimate(token_level_rewards, **kwargs):
        seen.update(kwargs)
        return token_level_rewards + 1, token_level_rewards + 2

    data = DataProto.from_single_dict(
        {
            "token_level_rewards": torch.zeros(2, 3),
            "response_mask": torch.ones(2, 3),
            "uid": np.array(["a", "b"], dtype=object),
        }
    )
    result = compute_advantage(data, adv_estimator="contract_test", config=AlgoConfig())
    assert set(seen) == {"response_mask", "config", "index"}
    assert result.batch["advantages"].tolist() == torch.ones(2, 3).tolist()


def test_rows_are_ordered_by_length_within_a_share_only():
    assert trainer.order_by_length([5, 1, 3, 2, 9, 4, 7], share=3) == [1, 2, 0, 3, 5, 4, 6]


def test_our_policy_loss_is_registered_with_the_signature_of_verls():
    registered = core_algos.get_policy_loss_fn("importance_sampling")
    assert registered is losses.compute_importance_sampling_loss
    assert parameters(registered) == parameters(core_algos.compute_policy_loss_vanilla)


def test_token_sum_is_a_plain_sum_over_the_mask():
    """Tinker sums its loss over the batch's tokens."""
    loss_BT = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    mask_BT = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    info = {"dp_size": 1, "batch_num_tokens": 3, "global_batch_size": 2, "loss_scale_factor": None}
    assert core_algos.agg_loss(loss_BT, mask_BT, "token-sum", **info).item() == 7.0


def test_bypass_mode_hands_rollout_logprobs_to_the_loss_as_old_logprobs():
    source = inspect.getsource(PPOTrainerSync._compute_old_log_prob)
    assert 'data["old_log_probs"] = data.pop("rollout_log_probs")' in source


def test_gradient_clipping_is_read_from_the_optimizer_only():
    """`actor.grad_clip` is read by nothing in the FSDP engine; `optim.clip_grad` is what to set to `.inf`."""
    from verl.workers.engine.fsdp import transformer_impl

    source = inspect.getsource(transformer_impl)
    assert "optimizer_config.clip_grad" in source
    assert "grad_clip" not in source


def test_the_task_runner_can_be_used_outside_its_ray_actor():
    runner = TaskRunnerV1.__ray_metadata__.modified_class
    assert parameters(runner.run) == ["self", "config"]
    assert parameters(runner.__init__) == ["self"]


def test_our_ray_environment_holds_verls(composed_config):
    ours = composed_config.ray_kwargs.ray_init.runtime_env.env_vars
    neutral_on_other_hardware = {"HCCL_HOST_SOCKET_PORT_RANGE", "HCCL_NPU_SOCKET_PORT_RANGE", "HSA_NO_SCRATCH_RECLAIM"}
    for key, value in PPO_RAY_RUNTIME_ENV["env_vars"].items():
        if key not in neutral_on_other_hardware:
            assert ours[key] == value, key
