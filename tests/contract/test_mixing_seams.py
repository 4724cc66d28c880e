"""verl 0.9.1, as far as answers of the teacher in a batch stand on it (`verl_ext/trainer/mixing.py`)."""

import inspect

import pytest
from seams import parameters
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss

from verl_ext.trainer.mixing import MixingTrainer

OVERRIDDEN = ("step", "_step_once", "_balance_batch", "_init_tokenizer", "_update_actor")


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_override_has_the_signature_of_what_it_overrides(name):
    assert parameters(vars(MixingTrainer)[name]) == parameters(getattr(PPOTrainerSync, name))


def test_our_overrides_are_all_listed():
    ours = {name for name, value in vars(MixingTrainer).items() if callable(value) and hasattr(PPOTrainerSync, name)}
    assert {name for name in ours if not name.startswith("__")} == set(OVERRIDDEN)


def test_a_loss_is_masked_by_the_response_mask_and_divided_by_the_tokens_of_the_loss_mask():
    """So the samples' loss can be taken with the teacher's answers masked out, over the denominator of both."""
    loss = inspect.getsource(ppo_loss)
    assert 'fields = ["response_mask", "old_log_probs", "advantages"]' in loss
    assert 'config.global_batch_info["batch_num_tokens"] = data["batch_num_tokens"]' in loss
    assert 'batch_num_tokens = data["loss_mask"].sum()' in inspect.getsource(FSDPEngine.forward_backward_batch)


def test_a_loss_is_called_by_keywords_in_both_of_its_roles():
    engine = inspect.getsource(FSDPEngineWithLMHead)
    assert "logits_processor_func(student_logits=logits_rmpad.unsqueeze(0), data=micro_batch)" in engine
    assert "model_output=model_output, data=micro_batch, dp_group=self.get_data_parallel_group()" in engine


def test_log_probs_are_made_unless_distillation_is_all_there_is():
    assert "distillation_only" in inspect.getsource(FSDPEngineWithLMHead.prepare_model_outputs)
