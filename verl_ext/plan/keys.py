"""The settings that a plan depends on and people change, in the order of `--help`; "" as in `verl_ext.trainer.keys`."""

from verl_ext.trainer.keys import KEYS as TRAINING

KEYS = {
    "student.path": TRAINING["student.path"],
    "teacher.model_path": "",
    "picture": "File for the picture, .svg, .png or .pdf; null for none.",
    **{
        key: TRAINING[key]
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
