"""TRL's arm of `benchmarks.vs_trl`, in an environment that has TRL 1.16.0: SDFT with the sampled token's reverse KL.

python benchmarks/arms/sdft_trl.py SETTINGS.json

SETTINGS.json: `model`, `rows`, `heldout` (null: no accuracies), `out`, `steps`, `prompts`, `n`, `micro`, `tokens`,
`whole` (every answer has all its tokens), `lr`, `seed`. Writes `out/steps.jsonl`: after each step its unix time, and
the held-out accuracy of greedy answers where asked for, whose seconds are taken off the time.
"""

# pyright: reportMissingImports=false
# TRL lives in an environment of its own; this file imports nothing of ours.

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

EVALUATED_AT_ONCE = 100


def privileged(row: dict[str, Any], tokenizer: Any) -> str:
    """What the teacher reads before the student's question; TRL's template puts the two together again.

    Earlier turns as the chat template writes them: TRL takes one text, and its tokens are the same.
    """
    prompt, teacher = (
        tokenizer.apply_chat_template(row[key], tokenize=False, add_generation_prompt=True)
        for key in ("prompt", "teacher_messages")
    )
    before, question, after = prompt.partition(row["prompt"][-1]["content"])
    if len(row["prompt"]) != 1 or not (teacher.startswith(before) and teacher.endswith(question + after)):
        raise ValueError("expected one message of the student's, with which the teacher's end")
    return teacher.removeprefix(before).removesuffix(question + after)


class Noted(TrainerCallback):
    """Writes a line after each step."""

    def __init__(self, settings: dict[str, Any], tokenizer: Any) -> None:
        self.file = Path(settings["out"]) / "steps.jsonl"
        self.tokens, self.tokenizer, self.not_training = settings["tokens"], tokenizer, 0.0
        self.heldout = pq.read_table(settings["heldout"]).to_pylist() if settings["heldout"] else []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        del args, control, more
        now = time.time()
        row = {"step": state.global_step, "unix_time": now - self.not_training}
        if self.heldout:
            row["accuracy"] = self.accuracy(model)
            self.not_training += time.time() - now
        with self.file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")

    @torch.no_grad()
    def accuracy(self, model: Any) -> float:
        right = 0
        for start in range(0, len(self.heldout), EVALUATED_AT_ONCE):
            rows = self.heldout[start : start + EVALUATED_AT_ONCE]
            inputs = self.tokenizer.apply_chat_template(
                [row["prompt"] for row in rows],
                **{"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"},
                **{"padding": True, "tokenizer_kwargs": {"padding_side": "left"}},
            )
            answers = model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
            texts = self.tokenizer.batch_decode(answers[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right += sum(text.strip() == row["label"] for text, row in zip(texts, rows, strict=True))
        return right / len(self.heldout)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    Path(settings["out"]).mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    rows = pq.read_table(settings["rows"], columns=["prompt", "teacher_messages"]).to_pylist()
    examples = [{"prompt": row["prompt"], "privileged_context": privileged(row, tokenizer)} for row in rows]
    samples = settings["prompts"] * settings["n"]
    trainer = SDFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
        args=SDFTConfig(
            output_dir=f"{settings['out']}/trl",
            per_device_train_batch_size=settings["micro"],
            gradient_accumulation_steps=samples // settings["micro"],
            num_generations=settings["n"],
            max_steps=settings["steps"],
            learning_rate=settings["lr"],
            lr_scheduler_type="constant",
            adam_beta1=0.9,
            adam_beta2=0.95,
            weight_decay=0.0,
            max_grad_norm=0.0,
            seed=settings["seed"],
            distillation_mode="sampled_token",
            distillation_alpha=1.0,
            distillation_is_clip=None,
            teacher_model_kind="base",
            teacher_prompt_template="{privileged_context}{prompt}",
            max_prompt_length=None,
            max_completion_length=settings["tokens"],
            generation_kwargs={"min_new_tokens": settings["tokens"]} if settings["whole"] else None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=settings["steps"],
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[Noted(settings, tokenizer)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
