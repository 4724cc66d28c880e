"""verl 0.9.1, as far as replay stands on it (`verl_ext/trainer/replaying.py`, `verl_ext/trainer/replay/queue.py`)."""

import inspect

import pytest
import torch
from seams import parameters
from transfer_queue.controller import TransferQueueController
from verl.trainer.ppo import padding_utils
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss

from verl_ext.trainer.replay import queue
from verl_ext.trainer.replaying import ReplayingTrainer

OVERRIDDEN = (
    *("on_init_end", "step", "_next_train_batch", "_step_once", "_balance_batch"),
    *("_load_checkpoint", "_init_tokenizer"),
)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_override_has_the_signature_of_what_it_overrides(name):
    assert parameters(vars(ReplayingTrainer)[name]) == parameters(getattr(PPOTrainerSync, name))


def test_our_overrides_are_all_listed():
    ours = {name for name, value in vars(ReplayingTrainer).items() if callable(value) and hasattr(PPOTrainerSync, name)}
    assert {name for name in ours if not name.startswith("__")} == set(OVERRIDDEN)


def lines(function) -> str:
    return inspect.getsource(function)


def test_a_step_asks_for_its_prompts_then_for_each_updates_samples():
    step = lines(PPOTrainerSync.step)
    assert step.index("self.prepare_step()") < step.index(
        "self._step_once(iter_metrics, timing_raw, sample_batch_size)"
    )
    assert "self.local_trigger_step = trigger_idx" in step
    assert "self._next_train_batch()" in lines(PPOTrainerSync._add_batch_to_generate)
    once = lines(PPOTrainerSync._step_once)
    assert "batch_size=sample_batch_size" in once
    assert once.index("self.replay_buffer.sample(") < once.index("batch = self._balance_batch(batch, metrics=metrics)")
    assert once.index("self._balance_batch(") < once.index("self._compute_old_log_prob(")


def test_a_step_is_over_before_its_checkpoint_its_sync_and_its_samples_end():
    """What a step drew and sampled is kept when `step` returns, while vLLM sleeps and the queue still has it."""
    fit = lines(PPOTrainerSync.fit)
    order = ["self.step(", "self._save_checkpoint()", "self.on_step_end()", "self._compute_metrics(", "tq.kv_clear("]
    places = [fit.index(each) for each in order]
    assert places == sorted(places)


def test_the_first_draw_of_a_resumed_run_is_before_vllm_gets_weights():
    assert "self._load_checkpoint()" in lines(PPOTrainerSync._setup)
    assert "update_weights" in lines(PPOTrainerSync.on_init_end)


def test_the_loss_reads_the_weights_of_a_rollout_correction_that_verl_does_not_make_in_bypass_mode():
    assert 'if "rollout_is_weights" in data:' in lines(ppo_loss)
    assert "rollout_is_weights=rollout_is_weights" in lines(ppo_loss)
    advantage = lines(PPOTrainerSync._compute_advantage)
    assert "not bypass_recomputing_logprobs" in advantage
    assert advantage.index("if rollout_correction:") < advantage.index('"rollout_is_weights"')


def test_a_batch_is_read_in_the_fields_that_all_its_samples_have():
    """A replayed sample has none of the data row's."""
    controller = TransferQueueController.__ray_metadata__.modified_class
    assert "must fetch fields that the requested samples all have" in lines(controller.kv_retrieve_meta)


def test_a_replayed_samples_tags_are_those_of_the_agent_loop():
    source = lines(AgentLoopWorkerTQ.__ray_metadata__.modified_class._agent_loop_postprocess)
    for tag in ("status", "prompt_len", "response_len", "seq_len", "global_steps", "min_global_steps"):
        assert f'"{tag}":' in source
        assert f'"{tag}":' in lines(queue.put)


def test_a_forward_pass_takes_whole_micro_batches_of_the_size_that_the_batch_says():
    infer = lines(TrainingWorker.infer_batch)
    assert "micro_batch_size_per_gpu=self.engine_config.infer_micro_batch_size_per_gpu" in infer
    assert "if key not in data.keys():" in infer
    assert "self.actor.infer_batch(data)" in lines(ActorRolloutRefWorker.compute_log_prob)


def test_verl_pads_with_rows_that_say_so():
    template, tag = padding_utils.construct_minimal_padding_template({"prompts": torch.ones(1)}, {"replayed": True}, 2)
    assert tag["is_padding"]
    assert template["response_mask"].sum() == 0
