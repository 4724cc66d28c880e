"""The planner's estimate of the trainer's process beside what it takes: verl's actor under FSDP2 on the CPU.

python -m benchmarks.plan_memory --json plan_memory.json

A Qwen3 of 29 M random parameters, in a fresh process each. Measured: the peak resident memory of the second step
(VmHWM, reset before it), less what was resident before the model was built, imports done. Planned: `recipe.plan`'s
phase `update` of the same command line; 0.08 GiB of it are the libraries' own memory, a constant of the planner.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import DEMO, arguments, report
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.plan.hardware import GIB
from verl_ext.plan.memory import trainer_update
from verl_ext.plan.run import read_run

ARM_TIMEOUT_S = 240
BAR = 0.10
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LORA, CHECKPOINTING = "update=lora", "actor_rollout_ref.model.enable_gradient_checkpointing=true"
ARMS = {
    "full, 256 tokens": (256,),
    "full, 512 tokens, checkpointing": (512, CHECKPOINTING),
    "LoRA, 512 tokens": (512, LORA),
    "LoRA, 256 tokens, checkpointing": (256, LORA, CHECKPOINTING),
}
PROMPT_LENGTH = 16


def make_model(folder: Path) -> None:
    """Random weights; the tokenizer is the demo's, which nothing reads but verl's loader."""
    script = (
        f"from transformers import Qwen3Config, Qwen3ForCausalLM as M; "
        f"M(Qwen3Config(**{SHAPE})).save_pretrained({str(folder)!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=ARM_TIMEOUT_S)
    for file in (DEMO / "models/base").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())


def overrides(model: Path, length: int, *more: str) -> list[str]:
    """The command line of an arm: two micro-batches of two rows."""
    return [
        *("platform=cpu", f"student.path={model}", "data.train_files=-", "data.val_files=-"),
        *("data.train_batch_size=2", "actor_rollout_ref.rollout.n=2"),
        f"data.max_prompt_length={PROMPT_LENGTH}",
        f"data.max_response_length={length - PROMPT_LENGTH}",
        *more,
    ]


def planned(words: list[str]) -> int:
    with initialize_config_dir(str(Path("configs").resolve()), version_base=None):
        return sum(trainer_update(read_run(compose("on_policy_distillation", words))).values())


def measured(words: list[str], folder: Path, name: str) -> int:
    """Bytes that the arm's process took at its peak."""
    out = folder / f"{name}.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "VERL_PLATFORM": "cpu"}
    with (folder / f"{name}.log").open("w") as log:
        command = [sys.executable, "-m", "benchmarks.arms.plan_memory_arm", str(out), *words]
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=ARM_TIMEOUT_S, env=environment)
    return json.loads(out.read_text())["peak"]


def main() -> None:
    options = arguments("the planner's trainer against measured memory", steps=2)
    prepare_training_configs()
    model = options.out / "model"
    make_model(model)
    table = Table(title="peak memory of the trainer's process in an update, GiB")
    for column in ("", "measured", "planned", "measured / planned"):
        table.add_column(column, justify="left" if not column else "right")
    rows, bars = [], []
    for number, (name, (length, *more)) in enumerate(ARMS.items()):
        words = overrides(model, length, *more)
        real, estimate = measured(words, options.out, f"arm{number}"), planned(words)
        ratio = real / estimate
        table.add_row(name, f"{real / GIB:.3f}", f"{estimate / GIB:.3f}", f"{ratio:.3f}")
        rows.append({"arm": name, "measured": real, "planned": estimate, "ratio": ratio})
        bars.append((f"plan_error_{name.replace(', ', '_').replace(' ', '_')}", abs(ratio - 1), BAR))
    Console().print(table)
    report(rows, bars, options.json)


if __name__ == "__main__":
    main()
