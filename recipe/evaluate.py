"""Accuracy on held-out rows with vLLM: the base without the prompt, the teacher with it, the student without it.

python -m recipe.evaluate data=heldout.parquet base=BASE teacher=BASE student=RUN/student out=eval.json
"""

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
from rich.console import Console
from rich.table import Table

from verl_ext import preflight
from verl_ext.config import settings_of
from verl_ext.evaluation import Evaluation, evaluate_answers
from verl_ext.verbs import register_verb

# What vLLM needs beside other programs on a CPU; without a GPU only, and where the user did not set it.
CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",  # our vLLM plugin: sleep, do not spin, while waiting
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; by default vLLM takes half of the memory and clears it first
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

# arm name -> the column whose messages the model sees
ARMS = {"base": "prompt", "teacher": "teacher_messages", "student": "prompt"}


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation.

    data: parquet of rows with labels (data/README.md).
    base: model evaluated without the prompt before training; empty to leave the arm out.
    teacher: model evaluated with the prompt; empty to leave the arm out.
    student: model evaluated without the prompt after training; empty to leave the arm out.
    out: file for the result, JSON.
    max_tokens: longest answer, tokens, >= 1.
    limit: evaluate the first `limit` rows only; 0 for all.
    dtype: vLLM's dtype: `auto`, `float32`, `bfloat16`.
    gpu_memory_utilization: vLLM's share of a GPU's memory, in (0, 1]; on a CPU the share of nothing.
    seed: vLLM's seed; decoding is greedy.
    """

    data: str = "???"
    base: str = ""
    teacher: str = ""
    student: str = ""
    out: str = "eval.json"
    max_tokens: int = 1000
    limit: int = 0
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be >= 1")
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must be >= 0")

    def models(self) -> dict[str, str]:
        """Arm -> model, in the order of ARMS, arms without a model left out."""
        named = {"base": self.base, "teacher": self.teacher, "student": self.student}
        return {arm: named[arm] for arm in ARMS if named[arm]}


register_verb("evaluate", EvaluateConfig)


def answer(model: str, prompts: dict[str, list[list[dict[str, str]]]], config: EvaluateConfig) -> dict[str, list[str]]:
    """Greedy answers of one model to several arms' conversations, one engine for all of them."""
    import torch

    if not torch.cuda.is_available():
        for key, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(key, value)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype=config.dtype,  # pyright: ignore[reportArgumentType]  vLLM checks it
        seed=config.seed,
        enforce_eager=True,
        gpu_memory_utilization=config.gpu_memory_utilization,
        generation_config="vllm",
    )
    sampling = SamplingParams(temperature=0.0, top_p=1.0, top_k=-1, max_tokens=config.max_tokens)
    return {
        arm: [output.outputs[0].text for output in llm.chat(conversations, sampling)]  # type: ignore[arg-type]
        for arm, conversations in prompts.items()
    }


def evaluate(config: EvaluateConfig) -> dict[str, Evaluation]:
    """Evaluate every arm; models shared by arms are loaded once.

    Raises:
        ValueError: on a missing model or file, or rows without labels.
    """
    models = config.models()
    if not models:
        raise ValueError("nothing to evaluate: set at least one of base=, teacher=, student=")
    for arm, model in models.items():
        preflight.check_model(arm, model)
    rows = [row for row in preflight.check_rows("data", config.data) if row["reward_model"]["ground_truth"]]
    rows = rows[: config.limit or None]
    labels = [row["reward_model"]["ground_truth"] for row in rows]
    answers: dict[str, list[str]] = {}
    for model in dict.fromkeys(models.values()):
        arms = {arm: [row[ARMS[arm]] for row in rows] for arm in models if models[arm] == model}
        answers |= answer(model, arms, config)
    return {arm: evaluate_answers(answers[arm], labels) for arm in models}


def print_tables(results: dict[str, Evaluation]) -> None:
    """The arms side by side, then their recall per class."""
    console = Console()
    table = Table(title="held-out accuracy")
    for column in ("arm", "sees the prompt", "accuracy", "95 % interval", "invalid", "rows"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, result in results.items():
        low, high = result.accuracy.interval
        sees = "yes" if ARMS[arm] == "teacher_messages" else "no"
        accuracy, invalid = f"{result.accuracy.value:.3f}", f"{result.invalid.value:.3f}"
        table.add_row(arm, sees, accuracy, f"{low:.3f}-{high:.3f}", invalid, str(result.accuracy.n))
    console.print(table)
    classes = Table(title="correct / rows per class")
    classes.add_column("label")
    for arm in results:
        classes.add_column(arm, justify="right")
    for rows in zip(*(result.classes for result in results.values()), strict=True):
        classes.add_row(rows[0].label, *(f"{row.correct}/{row.n}" for row in rows))
    console.print(classes)


@hydra.main(version_base=None, config_path=None, config_name="evaluate")
def main(config: Any) -> None:
    started = time.perf_counter()
    try:
        settings = settings_of(config, EvaluateConfig)
        results = evaluate(settings)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print_tables(results)
    seconds = time.perf_counter() - started
    report = {"config": asdict(settings), "seconds": seconds} | {
        arm: result.as_dict() for arm, result in results.items()
    }
    preflight.write_json(Path(settings.out), report)
    print(f"{settings.out} written after {seconds:.0f} s")


if __name__ == "__main__":
    main()
