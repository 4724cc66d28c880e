"""What verl's keys may be: verl takes nonsense and fails later, in a worker, or not at all.

Ranges by key, for both trainers; a key that is not here is checked by its type alone (`verl_ext.run.overrides`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_ext.run.settings import LARGEST

AT_ONCE = 2**20
"""Rows, samples or sequences that no step handles at once."""


@dataclass(frozen=True)
class Number:
    """A range of numbers."""

    low: float
    high: float = LARGEST
    whole: bool = True
    """Whole numbers alone."""
    open_low: bool = False
    """`low` itself is not legal."""
    open_high: bool = False
    """`high` itself is not legal."""
    also: tuple[Any, ...] = ()
    """Further legal values, null as None."""

    def takes(self, value: Any) -> bool:
        if any(value is each or (each is not None and value == each) for each in self.also):
            return not isinstance(value, bool)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.whole and not isinstance(value, int):
            return False
        if (self.open_low and value == self.low) or (self.open_high and value == self.high):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bound = f"> {self.low:g}" if self.open_low else f">= {self.low:g}"
        most = "below" if self.open_high else "at most"
        largest = "" if self.high in (math.inf, LARGEST) else f", {most} {self.high}"
        return " or ".join([f"{kind} {bound}{largest}", *("null" if each is None else str(each) for each in self.also)])


@dataclass(frozen=True)
class Text:
    """Words; a number or a list is none."""

    def takes(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip())

    def __str__(self) -> str:
        return "a text"


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    allowed: tuple[Any, ...]
    why: str = ""
    """What any other value would do."""

    def takes(self, value: Any) -> bool:
        return any(value is each if each is None or isinstance(each, bool) else value == each for each in self.allowed)

    def __str__(self) -> str:
        shown = ", ".join("null" if each is None else str(each).lower() for each in self.allowed)
        wanted = f"one of {shown}" if len(self.allowed) > 1 else shown
        return f"{wanted} ({self.why})" if self.why else wanted


Rule = Number | Text | Choice
POSITIVE, STEPS = Number(1), Number(1, also=(None,))
SHARE, FREQUENCY = Number(0, 1, whole=False), Number(1, also=(-1,))
SWITCH = Choice((True, False))
DTYPES = Choice(("fp32", "bf16", "fp16", "float32", "bfloat16", "float16"))
OPTIMIZER = {
    "lr": Number(0, 1, whole=False, open_low=True),
    "weight_decay": Number(0, 1, whole=False),
    "clip_grad": Number(0, math.inf, whole=False, open_low=True),  # 0.0 would zero every gradient
    "lr_warmup_steps": Number(0, also=(-1, None)),
    "lr_warmup_steps_ratio": SHARE,
    "min_lr_ratio": Number(0, 1, whole=False, also=(None,)),
    "num_cycles": Number(0, whole=False),
    **{f"betas.{place}": Number(0, 1, whole=False, open_high=True) for place in (0, 1)},
}
BOTH: Mapping[str, Rule] = {
    "student.path": Text(),
    "run_dir": Text(),
    "trainer.default_local_dir": Text(),
    "trainer.project_name": Text(),
    "data.train_batch_size": Number(1, AT_ONCE),
    "data.train_max_samples": FREQUENCY,
    "data.val_max_samples": FREQUENCY,
    "trainer.total_epochs": POSITIVE,
    "trainer.total_training_steps": STEPS,
    "trainer.n_gpus_per_node": Number(1, AT_ONCE),
    "trainer.nnodes": Number(1, AT_ONCE),
    "trainer.resume_mode": Choice(("auto", "disable", "resume_path")),
    "resume_anyway": SWITCH,
    "trainer.device": Choice(("cuda", "cpu"), "platform= sets it"),
    "trainer.balance_batch": SWITCH,
}
TRAIN: Mapping[str, Rule] = BOTH | {
    "data.max_prompt_length": POSITIVE,
    "data.max_response_length": POSITIVE,
    "data.val_batch_size": Number(1, AT_ONCE, also=(None,)),
    "data.dataloader_num_workers": Number(0, 1024),
    "data.seed": Number(0, also=(None,)),
    "data.shuffle": SWITCH,
    "data.truncation": Choice(("error", "left", "right", "middle")),
    "actor_rollout_ref.rollout.n": Number(1, AT_ONCE),
    "actor_rollout_ref.rollout.gpu_memory_utilization": Number(0, 1, whole=False, open_low=True),
    "actor_rollout_ref.rollout.tensor_model_parallel_size": Number(1, AT_ONCE),
    "actor_rollout_ref.rollout.data_parallel_size": Number(1, AT_ONCE),
    "actor_rollout_ref.rollout.pipeline_model_parallel_size": Number(1, AT_ONCE),
    "actor_rollout_ref.rollout.max_model_len": STEPS,
    "actor_rollout_ref.rollout.max_num_seqs": Number(1, AT_ONCE),
    "actor_rollout_ref.rollout.max_num_batched_tokens": POSITIVE,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": Number(1, AT_ONCE, also=(None,)),
    "actor_rollout_ref.rollout.dtype": Choice(("auto", *DTYPES.allowed[3:])),
    "actor_rollout_ref.rollout.val_kwargs.n": Number(1, AT_ONCE),
    "actor_rollout_ref.rollout.val_kwargs.temperature": Number(0, whole=False),
    "actor_rollout_ref.rollout.val_kwargs.top_p": Number(0, 1, whole=False, open_low=True),
    "actor_rollout_ref.rollout.val_kwargs.top_k": FREQUENCY,
    "actor_rollout_ref.rollout.agent.num_workers": Number(1, 1024),
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes": POSITIVE,
    **{f"actor_rollout_ref.actor.optim.{key}": rule for key, rule in OPTIMIZER.items()},
    "actor_rollout_ref.actor.optim.lr_scheduler_type": Choice(("constant", "cosine")),
    "actor_rollout_ref.actor.use_dynamic_bsz": SWITCH,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": POSITIVE,
    "actor_rollout_ref.actor.ppo_mini_batch_size": Number(1, AT_ONCE),
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": Number(1, AT_ONCE, also=(None,)),
    "actor_rollout_ref.actor.ppo_epochs": POSITIVE,
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": Number(1, AT_ONCE),
    "actor_rollout_ref.actor.entropy_coeff": Number(0, whole=False),
    "actor_rollout_ref.actor.kl_loss_coef": Number(0, whole=False),
    "actor_rollout_ref.actor.loss_agg_mode": Choice(
        ("token-sum", "token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
    ),
    "actor_rollout_ref.actor.fsdp_config.fsdp_size": FREQUENCY,
    "actor_rollout_ref.actor.fsdp_config.model_dtype": DTYPES,
    "actor_rollout_ref.model.lora_rank": Number(0, AT_ONCE),
    "actor_rollout_ref.model.lora_alpha": Number(0, whole=False, open_low=True),
    "trainer.save_freq": FREQUENCY,
    "trainer.test_freq": FREQUENCY,
    "trainer.max_actor_ckpt_to_keep": STEPS,
    "trainer.val_before_train": SWITCH,
    "stall_timeout_s": Number(0, whole=False, open_low=True),
    "stop_timeout_s": Number(0, whole=False, open_low=True),
    "seeded_rollout": SWITCH,
    "algorithm.rollout_correction.bypass_mode": SWITCH,
    "ray_kwargs.ray_init.num_cpus": STEPS,
    "ray_kwargs.ray_init.num_gpus": Number(0, AT_ONCE, also=(None,)),
}
SFT: Mapping[str, Rule] = BOTH | {
    "data.max_length": Number(2),
    "data.micro_batch_size_per_gpu": Number(1, AT_ONCE),
    "data.max_token_len_per_gpu": POSITIVE,
    "data.use_dynamic_bsz": SWITCH,
    "data.truncation": Choice(("right", "error")),
    "data.num_workers": Number(0, 1024),
    **{f"optim.{key}": rule for key, rule in OPTIMIZER.items()},
    "optim.lr_scheduler_type": Choice(("linear", "constant", "cosine")),
    "model.lora_rank": Number(0, AT_ONCE),
    "model.lora_alpha": Number(0, whole=False, open_low=True),
    "engine.strategy": Choice(("fsdp2",)),
    "engine.model_dtype": DTYPES,
    "engine.ulysses_sequence_parallel_size": Number(1, AT_ONCE),
    "trainer.save_freq": FREQUENCY,  # verl divides by both
    "trainer.test_freq": FREQUENCY,
    "trainer.max_ckpt_to_keep": STEPS,
}
"""Ranges of verl's keys in SFT."""

OURS_SAYS_IT = "verl reads it, this method does not"
FIXED: Mapping[str, Choice] = {
    "actor_rollout_ref.rollout.mode": Choice(("async",), "samples come from verl's agent loop"),
    "actor_rollout_ref.rollout.calculate_log_probs": Choice((True,), "the sampler's log-probs are half of the KL"),
    "actor_rollout_ref.rollout.logprobs_mode": Choice(
        ("processed_logprobs", "raw_logprobs"), "logits are no log-probs, and the reverse KL subtracts log-probs"
    ),
    "actor_rollout_ref.rollout.ignore_eos": Choice((False,), "else answers go on behind their end"),
    "actor_rollout_ref.rollout.do_sample": Choice((True,), "greedy answers are not samples of the student"),
    "actor_rollout_ref.rollout.multi_turn.enable": Choice(
        (False,), "read by nothing; actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent takes turns"
    ),
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": Choice(
        ("verl_ext.trainer.agent_loop.DistillationAgentLoopManager",), "it asks the teacher"
    ),
    "actor_rollout_ref.actor.strategy": Choice(("fsdp2",), "the losses are adapted to it"),
    "actor_rollout_ref.hybrid_engine": Choice((True,), "vLLM and the trainer share their devices"),
    "actor_rollout_ref.model.external_lib": Choice(("verl_ext.trainer.losses",), "it holds the losses"),
    "actor_rollout_ref.model.lora.rank": Choice((0,), "Megatron's; set actor_rollout_ref.model.lora_rank"),
    "algorithm.adv_estimator": Choice(("reverse_kl",), "the advantage is the teacher's; method.* shapes it"),
    "algorithm.use_kl_in_reward": Choice(
        (False,), "no advantage here reads it; method.guards.reference_kl_coef pulls to the first student"
    ),
    "algorithm.filter_groups.enable": Choice((False,), "it drops prompts whose rewards are alike, and the teacher's"),
    "algorithm.use_pf_ppo": Choice((False,), "it resamples by a reward that is no part of the method"),
    "algorithm.gamma": Choice((1.0,), f"{OURS_SAYS_IT}; set method.discount"),
    "algorithm.lam": Choice((1.0,), f"{OURS_SAYS_IT}; set method.discount"),
    "algorithm.norm_adv_by_std_in_grpo": Choice((True,), f"{OURS_SAYS_IT}; set method.task_reward.std"),
    "actor_rollout_ref.actor.grad_clip": Choice((1.0,), "read by nothing; set actor_rollout_ref.actor.optim.clip_grad"),
    "actor_rollout_ref.actor.clip_ratio": Choice((0.2,), f"{OURS_SAYS_IT}; set method.policy_loss.low and .high"),
    "actor_rollout_ref.actor.clip_ratio_low": Choice((0.2,), f"{OURS_SAYS_IT}; set method.policy_loss.low"),
    "actor_rollout_ref.actor.clip_ratio_high": Choice((0.2,), f"{OURS_SAYS_IT}; set method.policy_loss.high"),
    "critic.enable": Choice((None, False), "the method has no critic"),
    "reward.reward_model.enable": Choice((False,), "the teacher is the reward"),
    "reward_model.enable": Choice((None, False), "the teacher is the reward"),
    **{
        f"skip.{name}.enable": Choice((False,), "kept answers are not samples of the student as it is")
        for name in ("rollout", "rollout_tq", "async_rollout")
    },
    "distillation.enabled": Choice((False,), "verl's own distillation; `teacher` is this plugin's"),
    "data.prompt_key": Choice(("prompt",), "the rows' own column"),
    "data.reward_fn_key": Choice(("data_source",), "the rows' own column"),
    "data.return_raw_chat": Choice((True,), "the agent loop renders the chat"),
    "data.gen_batch_size": Choice((None,), "a step has data.train_batch_size prompts"),
    "trainer.use_v1": Choice((True,), "the trainer is adapted to it"),
    "trainer.v1.trainer_mode": Choice(("on_policy_distillation",), "any other trainer asks no teacher"),
    "trainer.critic_warmup": Choice((0,), "there is no critic, and the student would not be trained meanwhile"),
    "trainer.val_only": Choice((False,), "nothing would be trained; `python -m recipe.evaluate` evaluates"),
    "trainer.checkpoint_callback_class": Choice(("verl_ext.trainer.checkpoint.LinkStudent",), "it exports the student"),
}
"""Keys that would make the method another one, or that nothing here reads."""


def check_ranges(config: DictConfig, rules: Mapping[str, Rule]) -> None:
    """Refuse the first value out of its range. Raises ValueError naming the key and what it may be."""
    for key, rule in rules.items():
        try:
            value = OmegaConf.select(config, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{key} cannot be resolved ({reason}); give {rule}") from None
        if not rule.takes(value):
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            raise ValueError(f"{key}={shown} must be {rule}")
