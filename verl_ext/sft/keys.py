"""The settings of an SFT run that people change, in the order of `--help`.

Texts of verl's keys and of those of `configs/sft/sft.yaml`; "" where `SftConfig` documents it.
"""

KEYS = {
    "student.path": "Model folder or hub name that is trained.",
    "data.train_files": "Conversations, .jsonl, .json or .parquet (docs/data.md): one file or a list.",
    "data.val_files": "The same, for a loss on held-out rows; null for none.",
    "run_dir": "Everything of the run; the same command resumes it.",
    "data.train_batch_size": "Rows a step, of all processes together, >= 1.",
    "data.micro_batch_size_per_gpu": "Rows of a micro-batch, where data.use_dynamic_bsz is false.",
    "data.use_dynamic_bsz": "Micro-batches of equal numbers of tokens.",
    "data.max_token_len_per_gpu": "Tokens of such a micro-batch, at most.",
    "data.max_length": "Longest row, tokens; a longer one is cut.",
    "optim.lr": "Learning rate of Adam, > 0.",
    "optim.lr_scheduler_type": "linear (to zero), constant or cosine.",
    "optim.lr_warmup_steps_ratio": "Share of the steps in which the rate rises, in [0, 1].",
    "optim.weight_decay": "Of AdamW, >= 0.",
    "optim.clip_grad": "Largest gradient norm, > 0; .inf for no bound.",
    "model.lora_rank": "Rank of LoRA; 0 trains every weight.",
    "model.lora_alpha": "Scale of LoRA: alpha / rank.",
    "model.target_modules": "Layers with an adapter.",
    "engine.model_dtype": "Dtype of the weights: fp32 or bf16.",
    "trainer.total_epochs": "Passes over the rows, >= 1.",
    "trainer.total_training_steps": "Steps, >= 1; null goes by the epochs.",
    "trainer.save_freq": "Steps between checkpoints; -1 for none.",
    "trainer.test_freq": "Steps between looks at data.val_files.",
    "trainer.logger": "Some of console, tensorboard, wandb, trackio.",
    "sft.renderer": "",
    "sft.seed": "",
    "sft.adapter_dtype": "",
}
