"""verl 0.9.1 where the pipeline meets it: hooks, buffers, the client, and verl's defects that we work around."""

import inspect
import sys

import pytest
from ray._private.node import Node
from seams import parameters
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineManager, CheckpointEngineRegistry
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

from verl_ext.platform import HUAWEIS
from verl_ext.platform.lean_ray import UNUSED
from verl_ext.trainer import adapted, buffer, client, host_weights, pipelined, separate, trainer

OVERRIDES = [
    (pipelined.PipelinedTrainer, PPOTrainerColocateAsync, ("on_train_begin", "prepare_step", "on_sample_end")),
    (pipelined.PipelinedTrainer, PPOTrainerColocateAsync, ("_load_checkpoint",)),
    (pipelined.PipelinedTrainer, PPOTrainerColocateAsync, ("on_step_end",)),
    (buffer.BoundedWait, ReplayBuffer, ("sample", "_wait_for_next_poll", "_sync_metadata_from_transfer_queue")),
    (buffer.BoundedWait, ReplayBuffer, ("_materialize_batch", "_clear_groups", "_evict_terminal_groups")),
    (
        buffer.PipelineBuffer,
        ReplayBufferAsync,
        ("_stale_terminal_keys", "_has_enough_samples", "_evict_terminal_groups"),
    ),
    (client.ResumingClient, LLMServerClient, ("generate",)),
    (separate.SeparateTrainer, PPOTrainerSeparateAsync, ("_setup", "_get_n_gpus_for_throughput")),
]


@pytest.mark.parametrize(("ours", "theirs", "names"), OVERRIDES, ids=lambda value: getattr(value, "__name__", ""))
def test_an_override_has_the_signature_of_what_it_overrides(ours, theirs, names):
    for name in names:
        assert parameters(vars(ours)[name]) == parameters(getattr(theirs, name))


def test_our_overrides_are_all_listed():
    for ours, theirs, _ in OVERRIDES:
        listed = {name for kind, _, names in OVERRIDES if kind is ours for name in names}
        hiding = {name for name, value in vars(ours).items() if callable(value) and hasattr(theirs, name)}
        assert {name for name in hiding if not name.startswith("__")} == listed


def test_the_mode_that_pipelines_is_asynchronous_to_verl():
    """Its prompts are saved with a checkpoint and sent again on resume; its buffer replaces what fails."""
    assert adapted.VERLS_PIPELINE != "sync"
    for method in (PPOTrainer._save_checkpoint, PPOTrainer._load_checkpoint, PPOTrainer._submit_batch_to_rollout):
        assert 'self.trainer_mode != "sync"' in inspect.getsource(method)
    assert "self.config.trainer.v1.get(self.trainer_mode, {}).get" in inspect.getsource(PPOTrainer.__init__)


def test_the_pipelines_trainer_differs_from_the_synchronous_one_in_hooks_alone():
    """So that ours can stand on the synchronous one: what neither replaces is the same method of the base."""
    hooks = {"get_llm_client", "on_init_end", "on_train_begin", "on_step_end", "on_sample_end"}
    for theirs in (PPOTrainerSync, PPOTrainerColocateAsync):
        assert {name for name in vars(theirs) if not name.startswith("_")} <= hooks
    ours = set(vars(pipelined.PipelinedTrainer)) | set(vars(adapted.AdaptedTrainer))
    assert {name for name in vars(PPOTrainerColocateAsync) if not name.startswith("_")} <= ours
    source = inspect.getsource(PPOTrainerColocateAsync)
    assert source.index("update_weights(self.global_steps)\n            # resume") < source.index("abort_replicas()")


def test_a_buffer_keeps_every_argument_under_its_own_name():
    source = inspect.getsource(ReplayBuffer.__init__)
    for name in inspect.signature(ReplayBuffer).parameters:
        assert f"self.{name} = {name}\n" in source
    assert parameters(ReplayBufferAsync.__init__) == parameters(ReplayBuffer.__init__)


def test_where_a_look_takes_long_it_is_taken_less_often(monkeypatch):
    clock = iter([0.0, 0.001, 10.0, 10.5])
    monkeypatch.setattr(buffer.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(ReplayBuffer, "_sync_metadata_from_transfer_queue", lambda _: None)
    assert "self._sync_metadata_from_transfer_queue()" in inspect.getsource(ReplayBuffer.sample)
    ours = object.__new__(buffer.SyncBuffer)
    ours._sync_metadata_from_transfer_queue()
    assert ours.poll_interval == buffer.POLL_INTERVAL_S
    ours._sync_metadata_from_transfer_queue()
    assert ours.poll_interval == 2.5


def test_the_age_that_verl_counts_is_the_dispatchs_and_its_waits_have_no_end():
    """What `buffer.py` works around; a red test here means that upstream mended it."""
    assert "global_steps - prompt_global_steps.get(uid" in inspect.getsource(ReplayBufferAsync._stale_terminal_keys)
    assert "min_global_steps" not in inspect.getsource(ReplayBufferAsync)
    for method in (ReplayBufferAsync.wait_for_sampleable, ReplayBuffer.sample):
        source = inspect.getsource(method)
        assert "while True:" in source
        assert "Timeout" not in source


def test_verls_resuming_client_waits_forgets_and_repeats_its_seed():
    """What `client.py` works around."""
    source = inspect.getsource(FullyAsyncLLMServerClient.generate)
    assert "await asyncio.sleep(1)" in source
    assert "finish_reason" not in source
    assert "seed" not in source
    assert "await self._resume_event.wait()" in inspect.getsource(vLLMHttpServer._park_until_admitted)


def test_our_trainer_is_what_the_mode_names():
    from verl.trainer.ppo.v1 import get_trainer_cls

    trainer.register()
    assert get_trainer_cls(trainer.NAME) is trainer.OnPolicyDistillationTrainer
    assert get_trainer_cls(trainer.PIPELINED) is pipelined.PipelinedTrainer
    assert get_trainer_cls(trainer.SEPARATED) is separate.SeparateTrainer


def test_vllm_has_devices_of_its_own_where_verl_asks_a_trainer_for_that():
    setup = inspect.getsource(PPOTrainer._setup)
    for asked in (setup, inspect.getsource(PPOTrainer._init_resource_pool_mgr)):
        assert 'getattr(self, "_enable_hybrid_replicas", True)' in asked
    assert setup.index("create_empty(") < setup.index("self._load_checkpoint()")
    assert "create(" in inspect.getsource(PPOTrainerSeparateAsync._setup)
    sync = inspect.getsource(CheckpointEngineManager.update_weights)
    steps = (
        "abort_replicas()",
        "build_process_group(",
        ".update_weights(",
        '"finalize"',
        "resume_generation_replicas()",
    )
    assert sorted(steps, key=sync.rindex) == list(steps)


def test_weights_through_main_memory_are_one_of_verls_checkpoint_engines():
    assert CheckpointEngineRegistry.get(host_weights.NAME) is host_weights.HostWeights
    for name in ("prepare", "build_topology", "finalize", "send_weights", "receive_weights"):
        ours, theirs = (parameters(getattr(kind, name)) for kind in (host_weights.HostWeights, CheckpointEngine))
        assert ours == theirs, name


def test_what_no_run_uses_is_not_imported():
    assert sys.modules[HUAWEIS] is None
    assert "hccl_checkpoint_engine" in CheckpointEngineRegistry._import_errors


def test_rays_spare_processes_are_started_by_the_methods_that_we_leave_out():
    starts = inspect.getsource(Node.start_head_processes) + inspect.getsource(Node.start_ray_processes)
    for name in UNUSED:
        assert f"self.{name}(" in starts


def test_prompts_leave_the_queue_by_the_two_ways_that_are_counted():
    """`_materialize_batch` takes them into a batch, `_clear_groups` drops them; nothing else of the buffers clears."""
    clearing = {
        name
        for kind in (ReplayBuffer, ReplayBufferAsync)
        for name, value in vars(kind).items()
        if callable(value) and "kv_clear(" in inspect.getsource(value)
    }
    assert clearing == {"_materialize_batch", "_clear_groups"}
    source = inspect.getsource(PPOTrainer)
    assert source.count("_submit_batch_to_rollout(") == 3  # its definition, and the two that send prompts out
