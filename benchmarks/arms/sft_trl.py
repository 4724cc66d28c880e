"""TRL's arm of `benchmarks.sft_step`, in an environment that has TRL 1.16.0; writes the same `speed.jsonl`.

python benchmarks/arms/sft_trl.py MODEL ROWS.parquet OUT STEPS
"""

# pyright: reportMissingImports=false
# TRL lives in an environment of its own; this file imports nothing of ours.

import json
import resource
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

BATCH, MICRO, RANK = 128, 32, 32
# TRL refuses an adapter on lm_head ("would never be trained"), so its arm has one adapter less than ours.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Timed(TrainerCallback):
    """Writes a line whenever a step starts, about the step before it."""

    def __init__(self, file: Path, tokens: float) -> None:
        self.file, self.tokens, self.before = file, tokens, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        del args, state, control, kwargs
        now = time.perf_counter()
        if self.before:
            with self.file.open("a") as lines:
                lines.write(json.dumps({"tokens": self.tokens, "seconds": now - self.before}) + "\n")
        self.before = now


def main() -> None:
    model, rows, out, steps = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    chats = pq.read_table(rows, columns=["messages"]).to_pylist()
    lengths = [len(tokenizer.apply_chat_template(c["messages"], return_dict=False)) - 1 for c in chats]
    data = Dataset.from_list([{"prompt": c["messages"][:-1], "completion": c["messages"][-1:]} for c in chats])
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(out / "trl"),
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=BATCH // MICRO,
            max_steps=steps,
            learning_rate=5e-3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            max_length=512,
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=[Timed(out / "speed.jsonl", BATCH * sum(lengths) / len(lengths))],
    )
    trainer.train()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with (out / "speed.jsonl").open("a") as lines:
        lines.write(json.dumps({"peak_gib": peak_gib, "engine": "TRL"}) + "\n")


if __name__ == "__main__":
    main()
