"""What each arm answers, and how good that is: against the right answers, and against the teacher's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from verl_ext.data import conversations as labels
from verl_ext.data.rows import MATH, MOST_LABELS, check_rows, known_labels, label_set_of, without_rows
from verl_ext.evaluation.labels import Agreement, accuracy_by, agreement, evaluate_answers
from verl_ext.evaluation.labels_report import ArmResult, plot_confusion, print_tables
from verl_ext.evaluation.math_answers import MathResult, evaluate_math, math_table
from verl_ext.sampling.types import Answer, EngineConfig, Request, SamplingConfig
from verl_ext.sampling.vllm import VllmSampler

# arm name -> the column whose messages the model sees
ARMS = {"base": "prompt", "base_prompted": "teacher_messages", "teacher": "teacher_messages", "student": "prompt"}

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    data: str = "???"
    """Parquet of rows (data/README.md); those without a label are left out."""
    edge: str = ""
    """Parquet of edge cases, judged by agreement with the teacher alone; empty: none."""
    base: str = ""
    """Model before training, without the prompt; empty leaves the arm out, as for the three others."""
    base_prompted: str = ""
    """Model before training, with the prompt; of use where the teacher is another model."""
    teacher: str = ""
    """Model whose answers the others are compared with; sees the prompt."""
    student: str = ""
    """Model after training, without the prompt."""
    out: str = "eval.json"
    """File for the result; the picture has the same name and ends in .png."""
    extract: str = "whole"
    """Where the label stands in an answer without the prompt: `whole`, or `final_answer`."""
    extract_prompted: str = "whole"
    """The same for arms that see the prompt: `final_answer` for Tinker's prompt."""
    policy: str = "strict"
    """How a label is read: `strict`, the one that a person would read; `exact`, character for character."""
    labels: list[str] = field(default_factory=list)
    """All labels of the task, any other answer is invalid; empty: the right answers of the rows."""
    max_tokens: int = 1000
    """Longest answer, tokens, >= 1. Decoding is greedy."""
    enable_thinking: bool | None = None
    """Handed to the chat template; null leaves the choice to the template."""
    limit: int = 0
    """Evaluate the first `limit` rows of each file only; 0 for all."""
    dtype: str = "auto"
    """vLLM's dtype: `auto`, `float32`, `bfloat16`."""
    tp: int = 1
    """Tensor-parallel ranks, >= 1; one GPU each."""
    gpu_memory_utilization: float = 0.8
    """vLLM's share of a GPU's memory, in (0, 1]; on a CPU of no effect."""
    seed: int = 0
    """vLLM's seed."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be >= 1")
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must be >= 0")
        for key, value in (("extract", self.extract), ("extract_prompted", self.extract_prompted)):
            if value not in labels.PATTERNS:
                raise ValueError(f"{key}={value}: expected one of {', '.join(labels.PATTERNS)}")
        if self.policy not in ("strict", "exact"):
            raise ValueError(f"policy={self.policy}: expected strict or exact")
        if self.edge and not self.teacher:
            raise ValueError("edge: edge cases have no right answer, only the teacher's: set teacher=, or leave it out")

    def models(self) -> dict[str, str]:
        """Arm -> model, in the order of ARMS, arms without a model left out. ValueError if that is all of them."""
        named = {"base": self.base, "base_prompted": self.base_prompted, "teacher": self.teacher}
        named["student"] = self.student
        if not any(named.values()):
            raise ValueError(f"nothing to evaluate; set at least one of {', '.join(ARMS)}")
        return {arm: named[arm] for arm in ARMS if named[arm]}


def answer(model: str, arms: list[str], rows: Rows, config: EvaluateConfig) -> dict[str, list[Answer]]:
    """What one model says in several arms, one engine for all of them."""
    asked = [(arm, row) for arm in arms for row in rows]
    requests = [Request(number, row[ARMS[arm]]) for number, (arm, row) in enumerate(asked)]
    sampling = SamplingConfig(
        temperature=0.0, max_tokens=config.max_tokens, seed=config.seed, enable_thinking=config.enable_thinking
    )
    engine = EngineConfig(dtype=config.dtype, tp=config.tp, gpu_memory_utilization=config.gpu_memory_utilization)
    with VllmSampler(model, sampling, engine, requests) as sampler:
        answers = sampler.answer(requests)
    return {arm: answers[number * len(rows) : (number + 1) * len(rows)] for number, arm in enumerate(arms)}


def read_labels(arm: str, answers: list[Answer], config: EvaluateConfig) -> list[str]:
    """The labels in an arm's answers; "" where one holds none."""
    extract = config.extract_prompted if ARMS[arm] == "teacher_messages" else config.extract
    return [labels.read_label(one.text, extract, config.policy, config.labels).label for one in answers]


def read_rows(config: EvaluateConfig) -> tuple[Rows, Rows]:
    """Rows with a right answer, and edge cases. ValueError if a file cannot be used."""
    rows = [row for row in check_rows("data", config.data) if row["reward_model"]["ground_truth"]]
    if not rows:
        raise ValueError(f"data={config.data}: no row has a label to judge by")
    edge = check_rows("edge", config.edge) if config.edge else []
    return rows[: config.limit or None], edge[: config.limit or None]


def judge(config: EvaluateConfig, given: dict[str, list[str]], rows: Rows) -> dict[str, ArmResult]:
    """The arms' labels, `rows` first and edge cases behind them, as results."""
    models, n = config.models(), len(rows)
    gold = [row["reward_model"]["ground_truth"] for row in rows]
    languages = [row["extra_info"]["language"] for row in rows]

    def compared(arm: str, part: slice) -> Agreement | None:
        if arm == "teacher" or "teacher" not in given or not given[arm][part]:
            return None
        return agreement(given[arm][part], given["teacher"][part])

    return {
        arm: ArmResult(
            model=models[arm],
            sees_prompt=ARMS[arm] == "teacher_messages",
            gold=evaluate_answers(given[arm][:n], gold, config.labels),
            languages=accuracy_by(languages, given[arm][:n], gold),
            agreement=compared(arm, slice(n)),
            edge=compared(arm, slice(n, None)),
        )
        for arm in models
    }


def judge_math(config: EvaluateConfig, said: dict[str, list[Answer]], rows: Rows) -> dict[str, MathResult]:
    """The arms' answers to problems as results."""
    truths = [row["reward_model"]["ground_truth"] for row in rows]
    same_prompt = all(row["prompt"] == row["teacher_messages"] for row in rows)
    return {
        arm: evaluate_math(model, same_prompt or ARMS[arm] == "teacher_messages", said[arm], truths)
        for arm, model in config.models().items()
    }


def is_math(config: EvaluateConfig, rows: Rows) -> bool:
    """Whether the rows are problems, or else have labels. ValueError if they cannot be judged as one of the two."""
    sources = {row["data_source"] for row in rows}
    if MATH not in sources:
        unknown = sorted({row["reward_model"]["ground_truth"] for row in rows} - set(config.labels))
        if config.labels and unknown:
            raise ValueError(f"labels: {config.data} also has {', '.join(unknown)}; name all labels of your task")
        return False
    if sources != {MATH}:
        others = ", ".join(sorted(sources - {MATH}))
        raise ValueError(f"data={config.data}: data_source is {MATH} and {others}; evaluate each in a file of its own")
    if config.edge:
        raise ValueError(f"edge={config.edge}: edge cases are those of a task with labels; leave it out")
    return True


def with_labels(config: EvaluateConfig, rows: Rows) -> EvaluateConfig:
    """With the labels of the rows where none are given; says which labels no row has."""
    label_set = config.labels or label_set_of(rows)
    if not label_set:
        raise ValueError(
            f"data={config.data}: {MOST_LABELS} different answers or more are no labels; give labels=[...]"
        )
    if unseen := without_rows(config.labels, known_labels(rows)):
        print(f"warning: no row has the label {', '.join(unseen)}: nothing is known about it", flush=True)
    return replace(config, labels=label_set)


def evaluate(config: EvaluateConfig) -> Mapping[str, ArmResult | MathResult]:
    """Evaluate every arm; a model that several arms share is loaded once.

    Raises:
        ValueError: on a missing file, or rows that cannot be judged.
    """
    models = config.models()
    rows, edge = read_rows(config)
    problems = is_math(config, rows)
    if not problems:
        config = with_labels(config, rows)
    said: dict[str, list[Answer]] = {}
    for model in dict.fromkeys(models.values()):
        said |= answer(model, [arm for arm in models if models[arm] == model], rows + edge, config)
    if problems:
        return judge_math(config, said, rows)
    return judge(config, {arm: read_labels(arm, answers, config) for arm, answers in said.items()}, rows)


def show(results: Mapping[str, ArmResult | MathResult], picture: Path) -> str:
    """Print the tables, draw what can be drawn; what to call the files written beside the report."""
    problems = {arm: result for arm, result in results.items() if isinstance(result, MathResult)}
    if problems:
        Console().print(math_table(problems))
        return ""
    labelled = {arm: result for arm, result in results.items() if isinstance(result, ArmResult)}
    print_tables(labelled)
    plot_confusion(labelled, picture)
    return f" and {picture}"
