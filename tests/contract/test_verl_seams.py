"""verl 0.9.1, as far as we stand on it: one test for each signature, field and key that we override or rely on.

A red test here means that verl changed under us; the adapter it names is what to mend.
"""

import importlib.metadata
import inspect
import re

import numpy as np
import pytest
import torch
from seams import parameters
from transfer_queue import interface
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopManager, AgentLoopMetrics, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.trainer.config import AlgoConfig
from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.utils import need_reference_policy
from verl.trainer.ppo.v1 import PPOTrainerSync, trainer_base
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import transferqueue_utils
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead
from verl.workers.rollout.llm_server import LLMServerClient, LLMServerManager
from verl.workers.rollout.router import GlobalRequestLoadBalancer
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.utils.losses import ppo_loss

from verl_ext.trainer import (
    adapted,
    agent_loop,
    dataset,
    earlier,
    engine,
    guarded,
    keeping,
    looping,
    loops,
    refreshing,
    runner,
    shared_calls,
    stoppable,
    surviving,
    trainer,
)
from verl_ext.trainer.config import GuardsConfig, MethodConfig


def test_the_version_these_tests_were_written_for():
    assert importlib.metadata.version("verl") == "0.9.1"


WORKER = AgentLoopWorkerTQ.__ray_metadata__.modified_class
STAGES = ("prepare_step", "on_sample_begin", "_compute_advantage", "_update_actor", "_save_checkpoint", "on_step_end")
TOOL_LOOP = ("run", "_handle_generating_state", "_handle_processing_tools_state", "_call_tool")
GUARDED = ("on_init_end", "on_train_begin", "_build_replay_buffer", "_submit_batch_to_rollout", "_update_actor")
GUARDED += ("_compute_metrics",)
OVERRIDES = [
    (agent_loop.DistillationAgentLoopWorker, WORKER, "_compute_score"),
    (agent_loop.DistillationAgentLoopWorker, WORKER, "_compute_teacher_logprobs"),
    (agent_loop.DistillationAgentLoopWorker, WORKER, "_run_agent_loop"),
    (agent_loop.DistillationAgentLoopWorker, WORKER, "_run_prompt"),
    (looping.LoopingWorker, WORKER, "_run_prompt"),
    (looping.LoopingWorker, WORKER, "_agent_loop_postprocess"),
    (loops.PlainTextLoop, SingleTurnAgentLoop, "ct_build_initial_tokens"),
    (loops.PlainTextLoop, SingleTurnAgentLoop, "ct_merge_assistant_token"),
    *((loops.ToolLoop, ToolAgentLoop, name) for name in TOOL_LOOP),
    (engine.SharedPromptEngine, FSDPEngineWithLMHead, "_build_lora_module"),
    (engine.SharedPromptEngine, FSDPEngineWithLMHead, "forward_step"),
    (engine.SharedPromptEngine, FSDPEngineWithLMHead, "prepare_model_inputs"),
    (engine.SharedPromptEngine, FSDPEngineWithLMHead, "prepare_model_outputs"),
    (dataset.CheckedRows, RLHFDataset, "_read_files_and_tokenize"),
    (keeping.KeepingTrainer, PPOTrainerSync, "_init_dataloader"),
    (keeping.KeepingTrainer, PPOTrainerSync, "_maybe_log_val_generations"),
    (keeping.KeepingTrainer, PPOTrainerSync, "on_validate_begin"),
    (keeping.KeepingTrainer, PPOTrainerSync, "_validate"),
    *((stoppable.StoppableTrainer, PPOTrainerSync, name) for name in ("_save_checkpoint", "on_step_begin", "step")),
    (surviving.SurvivingTrainer, PPOTrainerSync, "_validate"),
    (surviving.SurvivingTrainer, PPOTrainerSync, "on_validate_begin"),
    (surviving.SurvivingTrainer, PPOTrainerSync, "on_sample_end"),
    (surviving.SurvivingTrainer, PPOTrainerSync, "step"),
    *((refreshing.RefreshingTrainer, PPOTrainerSync, name) for name in ("on_init_end", "_load_checkpoint")),
    (earlier.TeachingWorker, vLLMColocateWorkerExtension, "_update_weights"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "_balance_batch"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "_compute_old_log_prob"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "_update_actor"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "_build_replay_buffer"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "_init_dataloader"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "_load_checkpoint"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "_log_rollout_data"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "get_llm_client"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "on_init_end"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "on_train_begin"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "on_validate_begin"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "_compute_metrics"),
    (adapted.AdaptedTrainer, PPOTrainerSync, "on_step_begin"),
    *((guarded.GuardedTrainer, PPOTrainerSync, name) for name in GUARDED),
    (adapted.AdaptedTrainer, PPOTrainerSync, "on_validate_end"),
    *((trainer.OnPolicyDistillationTrainer, PPOTrainerSync, stage) for stage in STAGES),
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
        (looping.LoopingWorker, WORKER),
        (loops.PlainTextLoop, SingleTurnAgentLoop),
        (loops.ToolLoop, ToolAgentLoop),
        (engine.SharedPromptEngine, FSDPEngineWithLMHead),
        (dataset.CheckedRows, RLHFDataset),
        (adapted.AdaptedTrainer, PPOTrainerSync),
        (guarded.GuardedTrainer, PPOTrainerSync),
        (refreshing.RefreshingTrainer, PPOTrainerSync),
        (earlier.TeachingWorker, vLLMColocateWorkerExtension),
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


def test_the_rows_of_a_prompt_are_neighbours_within_a_share_only():
    prompts = ["a", "b", "a", "c", "b", "c", "b"]
    assert adapted.order_by_group(prompts, [5, 1, 3, 2, 9, 4, 7], share=3) == [1, 2, 0, 3, 5, 4, 6]
    assert adapted.order_by_group(prompts, [5, 1, 3, 2, 9, 4, 7], share=7) == [3, 5, 2, 0, 1, 6, 4]


def test_a_samples_key_begins_with_its_prompts_id():
    assert 'f"{uid}_{session_id}_{i}"' in inspect.getsource(WORKER._agent_loop_postprocess)
    assert adapted.prompt_of("3f_0_0") == adapted.prompt_of("3f_11_0") == "3f"


def test_verl_partitions_rows_between_ranks_by_the_name_that_we_replace():
    assert "get_seqlen_balanced_partitions(workload_lst, k_partitions=dp_size, equal_size=True)" in inspect.getsource(
        PPOTrainerSync._balance_batch
    )
    assert trainer_base.get_seqlen_balanced_partitions([3, 1, 2], k_partitions=1, equal_size=True) == [[0, 1, 2]]
    two = trainer_base.get_seqlen_balanced_partitions([3, 1, 2, 4], k_partitions=2, equal_size=True)
    assert sorted(map(len, two)) == [2, 2]


def test_an_update_reads_the_fields_that_the_batch_names():
    assert "batch_meta.select_fields(fields)" in inspect.getsource(transferqueue_utils.async_kv_batch_meta2batch_meta)
    assert "batch.extra_info.update(extra_info)" in inspect.getsource(PPOTrainerSync._update_actor)


def test_the_agent_loop_puts_through_the_names_that_we_replace():
    prompt, sample = (inspect.getsource(getattr(WORKER, name)) for name in ("_run_prompt", "_agent_loop_postprocess"))
    assert "tq.async_kv_put(key=uid, partition_id=partition_id, tag=" in prompt
    assert "tq.async_kv_batch_put(\n" in sample
    assert "fields=list_of_dict_to_tensordict(fields)" in sample


def test_a_client_calls_a_server_and_its_balancer_where_we_stand_in():
    source = inspect.getsource(LLMServerClient.generate)
    assert "await self._acquire_server(" in source
    assert "await server.generate.remote(" in source
    assert "self._release_server(" in source
    for name, ours in (("_acquire_server", "acquire"), ("_release_server", "release")):
        assert parameters(getattr(LLMServerClient, name)) == parameters(getattr(shared_calls.SharedCalls, ours))
    assert "get_all_servers" in vars(GlobalRequestLoadBalancer)
    made = inspect.getsource(LLMServerManager._init_global_load_balancer)
    assert "from verl.workers.rollout.router import get_router_handle" in made


def test_the_step_is_written_in_the_order_in_which_verl_runs_it():
    """`trainer.py` is read from top to bottom; verl's loop calls the same stages in the same order."""

    def order(source: str, calls: list[str]) -> list[int]:
        return [source.index(f"self.{call}(") for call in calls]

    step = order(inspect.getsource(PPOTrainerSync.step), ["prepare_step", "_step_once"])
    once = ["on_sample_begin", "replay_buffer.sample", "_compute_advantage", "_update_actor"]
    inner = order(inspect.getsource(PPOTrainerSync._step_once), once)
    outer = order(inspect.getsource(PPOTrainerSync.fit), ["step", "_save_checkpoint", "on_step_end"])
    assert (step, inner, outer) == (sorted(step), sorted(inner), sorted(outer))
    ours = [name for name, value in vars(trainer.OnPolicyDistillationTrainer).items() if inspect.isfunction(value)]
    assert tuple(name for name in ours if hasattr(PPOTrainerSync, name)) == STAGES


def test_a_guarded_mask_is_what_verl_counts_and_sums_over():
    assert 'data["loss_mask"].sum()' in inspect.getsource(FSDPEngine.forward_backward_batch)
    assert 'data["response_mask"]' in inspect.getsource(ppo_loss)
    assert 'field["loss_mask"] = field["response_mask"]' in inspect.getsource(WORKER._agent_loop_postprocess)


def test_verl_keeps_a_reference_where_the_guard_asks_for_one(composed_config):
    config = composed_config.copy()
    assert not need_reference_policy(config)
    runner.ask_for_reference(config, MethodConfig(guards=GuardsConfig(reference_kl_coef=0.1)))
    assert need_reference_policy(config)
    assert config.algorithm.kl_ctrl.kl_coef == 0.0
    validate_config(config, use_reference_policy=True, use_critic=False)
    assert 'data["ref_log_prob"]' in inspect.getsource(PPOTrainerSync._compute_ref_log_prob)


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
        if key not in {*neutral_on_other_hardware, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"}:
            assert ours[key] == value, key


def test_the_queue_that_is_started_early_is_found_by_verl():
    assert "if _init_from_existing():\n        return conf" in inspect.getsource(interface.init)
    assert "tq.init(config.transfer_queue)" in inspect.getsource(TaskRunnerV1.__ray_metadata__.modified_class.run)


def test_verl_asks_for_agent_loop_workers_by_no_option_that_matters():
    source = inspect.getsource(AgentLoopManager._init_agent_loop_workers)
    assert re.findall(r"^ {20}(\w+)=", source, re.MULTILINE) == ["name", "scheduling_strategy"]
