"""The settings of a training run that people change, in the order of `--help`.

Texts of verl's keys and of those of `configs/on_policy_distillation.yaml`; "" where a dataclass of ours documents it.
"""

from verl_ext.trainer.config import DIRECT_LOSSES, POLICY_GRADIENT

KEYS = {
    "student.path": "Model folder or hub name that is trained.",
    "data.train_files": "Rows (docs/data.md): one file or a list.",
    "data.val_files": "Held-out rows: one file or a list.",
    "run_dir": "Everything of the run; the same command resumes it.",
    "data.train_batch_size": "Prompts a step, >= 1.",
    "data.max_prompt_length": "Longest prompt, tokens; a longer one is refused.",
    "data.max_response_length": "Longest answer, tokens.",
    "actor_rollout_ref.rollout.n": "Samples a prompt, >= 1.",
    "actor_rollout_ref.rollout.gpu_memory_utilization": "vLLM's share of a GPU's memory, in (0, 1].",
    "actor_rollout_ref.actor.optim.lr": "Learning rate of Adam, > 0.",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": "Tokens of a micro-batch on a GPU, at most.",
    "trainer.total_training_steps": "Steps, >= 1, whatever epochs they take; null: total_epochs.",
    "trainer.total_epochs": "Passes over the rows, >= 1, where no steps are set.",
    "trainer.save_freq": "Steps between checkpoints; -1 for none.",
    "trainer.test_freq": "Steps between evaluations of data.val_files; -1 for none.",
    "trainer.n_gpus_per_node": "GPUs of a node for the trainer, >= 1.",
    "trainer.nnodes": "Nodes of the Ray cluster, >= 1.",
    "stall_timeout_s": "Seconds without a finished step until the run is given up.",
    "teacher.model_path": "",
    "teacher.mode": "",
    "teacher.urls": "",
    "teacher.python": "",
    "teacher.mem_fraction_static": "",
    "teacher.share_device": "",
    "teacher.store_path": "",
    "pipeline.mode": "`sync`, `one_step_off` or `stream` (docs/pipeline.md).",
    "method.coef": "",
    "method.discount": "",
    "method.loss": f"`{POLICY_GRADIENT}`, or at every position: {', '.join(DIRECT_LOSSES)}.",
    "method.baseline": "",
    "method.top_k": "",
    "replay.share": "Share of a step that earlier samples make, in [0, 1); 0: none.",
}

PLANNED = {
    "student.path": KEYS["student.path"],
    "teacher.model_path": "",
    "picture": "File for the picture, .svg, .png or .pdf; null for none.",
    **{
        key: KEYS[key]
        for key in (
            "data.train_batch_size",
            "data.max_prompt_length",
            "data.max_response_length",
            "actor_rollout_ref.rollout.n",
            "actor_rollout_ref.rollout.gpu_memory_utilization",
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
            "trainer.n_gpus_per_node",
            "trainer.nnodes",
        )
    },
    "actor_rollout_ref.model.lora_rank": "Rank of LoRA; 0 trains every weight. Better: update=lora.",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "GPUs that one vLLM is divided among, >= 1.",
    "actor_rollout_ref.rollout.max_num_seqs": "Samples that one vLLM works on at once.",
    "actor_rollout_ref.actor.fsdp_config.param_offload": "Keep the weights in main memory between updates.",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload": "The same for Adam's moments.",
    "actor_rollout_ref.model.use_fused_kernels": "Log-probs in chunks, without the logits of a micro-batch.",
    **dict.fromkeys(("teacher.tp", "teacher.dp", "teacher.mem_fraction_static", "teacher.share_device"), ""),
}
"""Those that a memory plan depends on, in the order of its `--help`."""
