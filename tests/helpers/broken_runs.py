"""What can be wrong with a run: for each check of the list, how to break a good run and the line that says so."""

from breaking import words
from broken_settings import SETTINGS

BROKEN = [
    (
        "secrets",
        words("+ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY=abc"),
        r"env_vars\.WANDB_API_KEY is a secret, .*; leave it out, and export WANDB_API_KEY",
    ),
    (
        "secrets",
        words("teacher.mode=external", "teacher.urls=[http://me:pass@host:1]"),
        r"teacher\.urls holds a password",
    ),
    ("required settings", words("data.val_files=null"), r"data\.val_files is not set"),
    ("ranges", words("actor_rollout_ref.rollout.n=0"), r"actor_rollout_ref\.rollout\.n=0 must be a whole number >= 1"),
    ("ranges", words("data.train_batch_size=-1"), r"data\.train_batch_size=-1 must be a whole number >= 1"),
    ("ranges", words("actor_rollout_ref.actor.optim.lr=.nan"), r"optim\.lr=nan must be a number > 0, at most 1"),
    ("keys of the method", words("actor_rollout_ref.rollout.ignore_eos=true"), r"ignore_eos=true must be false \(else"),
    ("keys of the method", words("algorithm.adv_estimator=grpo"), r"adv_estimator=grpo must be reverse_kl"),
    (
        "keys of the method",
        words("actor_rollout_ref.actor.policy_loss.loss_mode=vanilla"),
        r"loss_mode=vanilla is not method\.policy_loss\.kind=importance_sampling: leave it out",
    ),
    (
        "sizes",
        words("actor_rollout_ref.rollout.max_model_len=163"),
        r"max_model_len=163 is less than data\.max_prompt_length=160 \+ data\.max_response_length=4; raise it to 164",
    ),
    (
        "sizes",
        words("actor_rollout_ref.actor.use_dynamic_bsz=true", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=100"),
        r"actor\.ppo_max_token_len_per_gpu=100 is less than",
    ),
    (
        "sizes",
        words("actor_rollout_ref.rollout.tensor_model_parallel_size=2"),
        r"tensor_model_parallel_size.*=2 does not divide trainer\.nnodes=1 x trainer\.n_gpus_per_node=1",
    ),
    ("sizes", words("actor_rollout_ref.actor.ppo_mini_batch_size=64"), r"ppo_mini_batch_size=64 is more than data\.tr"),
    ("sizes", words("trainer.n_gpus_per_node=3"), r"data\.train_batch_size=32: a mini-batch .* the 3 ranks"),
    ("sizes", words("actor_rollout_ref.rollout.max_num_batched_tokens=8"), r"max_num_batched_tokens=8 is less than"),
    (
        "checkpoint",
        words("trainer.resume_mode=resume_path", "trainer.resume_from_path=/nowhere/global_step_3"),
        r"trainer\.resume_from_path=/nowhere/global_step_3: no checkpoint folder",
    ),
    ("loggers", words("trainer.logger=[console,wandbb]"), r"trainer\.logger=wandbb: expected some of console"),
    ("loggers", words("trainer.logger=[mlflow]"), r"trainer\.logger=mlflow: the package is not installed"),
    ("loggers", words("trainer.logger=wandb"), r"trainer\.logger=wandb: nobody is logged in.*WANDB_MODE=offline"),
    ("devices", words("trainer.n_gpus_per_node=2"), r"trainer\.n_gpus_per_node=2 is more than the 1 slots of this CPU"),
    ("devices", words("trainer.nnodes=2"), r"trainer\.nnodes=2: this run starts a Ray of its own.*address=auto"),
    ("devices", words("trainer.device=cuda"), r"trainer\.n_gpus_per_node=1: torch sees no GPU.*set platform=cpu"),
    ("teacher device", words("teacher.device=cuda"), r"teacher\.device=cuda.*no GPU.*set teacher\.device=cpu"),
    (
        "context length",
        words("data.max_response_length=100000", "actor_rollout_ref.rollout.max_model_len=null"),
        r"data\.max_prompt_length \+ data\.max_response_length=100160 tokens, and student\.path=.* takes \d+; lower",
    ),
    ("method", words("method.student_logprobs=old"), r"method\.student_logprobs=old.*set it to false"),
    ("report", words("report.alternatives=101"), r"report\.alternatives=101 must be in \[0, 100\]"),
    ("base teacher", words("teacher.mode=base"), r"teacher\.mode=base: the sampler keeps the base.*set update=lora"),
    (
        "base teacher",
        words(
            *("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8"),
            "actor_rollout_ref.model.target_modules=[q_proj,lm_head]",
        ),
        r"target_modules=\['q_proj', 'lm_head'\]: with teacher\.mode=base .* leave it out",
    ),
    (
        "base teacher",
        words(
            *("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8", "teacher.refresh_every=1"),
            *("replay.share=0.25", "method.policy_loss.kind=truncated_importance_sampling"),
        ),
        r"replay\.share=0\.25 with teacher\.refresh_every: .*moved on; leave one out",
    ),
    (
        "base teacher",
        words(
            *("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8"),
            *("teachers.one.refresh_every=2", "teachers.other.refresh_every=1", "teachers.other.ema=0.5"),
        ),
        r"refresh_every=1, ema=0\.5 and refresh_every=2, ema=0: one earlier student is kept; give all the same",
    ),
    (
        "base teacher",
        words("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8", "teacher.model_path=other"),
        r"teacher\.model_path=other: teacher\.mode=base is the student's own base.*leave it out",
    ),
    (
        "base teacher",
        words(
            *("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8", "method.loss=forward_kl", "method.top_k=32"),
        ),
        r"method\.top_k=32: with teacher\.mode=base vLLM gives at most 20 a position",
    ),
    *SETTINGS,
]
