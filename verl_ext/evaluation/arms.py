"""What each arm answers, and how good that is: against the right answers, and against the teacher's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from verl_ext.data import conversations as labels
from verl_ext.data.rows import MATH, MOST_LABELS, check_rows, known_labels, label_set_of, without_rows
from verl_ext.evaluation.answers import Judged, answers_file, print_wrong, report_of, write_answers
from verl_ext.evaluation.labels import Agreement, accuracy_by, agreement, evaluate_answers
from verl_ext.evaluation.labels_report import ArmResult, plot_confusion, print_tables
from verl_ext.evaluation.match import boxed_answer, math_match
from verl_ext.evaluation.math_answers import MathResult, evaluate_math, math_table
from verl_ext.ledger.entries import EVALUATE
from verl_ext.ledger.meter import written
from verl_ext.run.settings import one_of, within
from verl_ext.run.terminal import Terminal
from verl_ext.run.visible import print
from verl_ext.sampling.types import DTYPES, Answer, EngineConfig, Request, SamplingConfig
from verl_ext.sampling.vllm import VllmSampler

# arm name -> the column whose messages the model sees
ARMS = {"base": "prompt", "base_prompted": "teacher_messages", "teacher": "teacher_messages", "student": "prompt"}

Rows = list[dict[str, Any]]


class Evaluated(NamedTuple):
    """What an evaluation found, by arm."""

    results: Mapping[str, ArmResult | MathResult]
    judged: Mapping[str, Sequence[Judged]]
    """Row by row, edge cases behind the others."""

    def as_dict(self) -> dict[str, Any]:
        """For the report: each arm's numbers, and its first wrong answers."""
        return {arm: one.as_dict() | {"wrong": report_of(self.judged[arm])} for arm, one in self.results.items()}


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
    """Evaluate the first `limit` rows of each file only, >= 0; 0 for all."""
    dtype: str = "auto"
    """vLLM's dtype: `auto`, `float32`, `bfloat16`, `float16`."""
    tp: int = 1
    """Tensor-parallel ranks, >= 1; one GPU each."""
    gpu_memory_utilization: float = 0.8
    """vLLM's share of a GPU's memory, in (0, 1]; on a CPU of no effect."""
    seed: int = 0
    """vLLM's seed, >= 0."""

    def __post_init__(self) -> None:
        for key, least in (("max_tokens", 1), ("limit", 0), ("tp", 1), ("seed", 0)):
            within(key, vars(self)[key], least, float("inf"))
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization={self.gpu_memory_utilization} must be above 0, at most 1")
        one_of("dtype", self.dtype, DTYPES)
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
    folder = Path(config.out).expanduser().absolute().parent
    with VllmSampler(model, sampling, engine, requests) as sampler, written(sampler.meter, EVALUATE, folder):
        answers = sampler.answer(requests)
    return {arm: answers[number * len(rows) : (number + 1) * len(rows)] for number, arm in enumerate(arms)}


def judge_answers(
    config: EvaluateConfig, arm: str, answers: Sequence[Answer], rows: Rows, *, problems: bool, edge: bool = False
) -> list[Judged]:
    """What is read in an arm's answers, and whether it is right, row by row."""
    column = ARMS[arm]
    extract = config.extract_prompted if column == "teacher_messages" else config.extract
    judged = []
    for answer, row in zip(answers, rows, strict=True):
        truth = "" if edge else row["reward_model"]["ground_truth"]
        if problems:
            read, right = boxed_answer(answer.text) or "", bool(math_match(answer.text, truth))
        else:
            read = labels.read_label(answer.text, extract, config.policy, config.labels).label
            right = None if edge else read == truth
        judged.append(
            Judged(
                arm=arm,
                row=row["row"],
                edge=edge,
                prompt=row[column][-1]["content"],
                answer=answer.text,
                read=read,
                truth=truth,
                right=right,
                finish=answer.finish,
                truncated=answer.truncated,
                tokens=answer.tokens,
            )
        )
    return judged


def read_rows(config: EvaluateConfig) -> tuple[Rows, Rows]:
    """Rows with a right answer, and edge cases, each with its number in the file as `row`.

    Raises:
        ValueError: if a file cannot be used.
    """
    rows = [row for row in numbered("data", config.data) if row["reward_model"]["ground_truth"]]
    if not rows:
        raise ValueError(f"data={config.data}: no row has a label to judge by; give rows that have")
    edge = numbered("edge", config.edge) if config.edge else []
    return rows[: config.limit or None], edge[: config.limit or None]


def numbered(key: str, path: str) -> Rows:
    return [row | {"row": number} for number, row in enumerate(check_rows(key, path))]


def judge(config: EvaluateConfig, judged: Mapping[str, Sequence[Judged]], rows: Rows) -> dict[str, ArmResult]:
    """The arms' labels, of `rows` first and of edge cases behind them, as results."""
    models, n = config.models(), len(rows)
    given = {arm: [each.read for each in answers] for arm, answers in judged.items()}
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


def judge_math(config: EvaluateConfig, judged: Mapping[str, Sequence[Judged]], rows: Rows) -> dict[str, MathResult]:
    """The arms' answers to problems as results."""
    same_prompt = all(row["prompt"] == row["teacher_messages"] for row in rows)
    return {
        arm: evaluate_math(model, same_prompt or ARMS[arm] == "teacher_messages", judged[arm])
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
            f"data={config.data}: {MOST_LABELS} different answers or more are no labels; give labels=[...], or "
            f"data_source={MATH} in rows whose answer stands in a box"
        )
    if unseen := without_rows(config.labels, known_labels(rows)):
        print(f"warning: no row has the label {', '.join(unseen)}: nothing is known about it", flush=True)
    return replace(config, labels=label_set)


def evaluate(config: EvaluateConfig, ask: Callable[..., dict[str, list[Answer]]] = answer) -> Evaluated:
    """Evaluate every arm; a model that several arms share is loaded once. Each one's answers are kept when it is done.

    Args:
        config: which models answer which rows.
        ask: what `answer` does, where an engine runs already.

    Raises:
        ValueError: on a missing file, or rows that cannot be judged.
    """
    models = config.models()
    rows, edge = read_rows(config)
    everything = numbered("data", config.data)
    if unknown := sum(not row["reward_model"]["ground_truth"] for row in everything):
        print(
            f"data={config.data}: {unknown} of {len(everything)} rows have no right answer and are left out", flush=True
        )
    problems = is_math(config, rows)
    if not problems:
        config = with_labels(config, rows)
    judged: dict[str, list[Judged]] = {}
    for model in dict.fromkeys(models.values()):
        said = ask(model, [arm for arm in models if models[arm] == model], rows + edge, config)
        for arm, answers in said.items():
            judged[arm] = judge_answers(config, arm, answers[: len(rows)], rows, problems=problems)
            judged[arm] += judge_answers(config, arm, answers[len(rows) :], edge, problems=False, edge=True)
        write_answers(answers_file(Path(config.out)), chain(*judged.values()))
    return Evaluated(judge_math(config, judged, rows) if problems else judge(config, judged, rows), judged)


def show(found: Evaluated, report: Path) -> str:
    """Print the tables and a few wrong answers, draw what can be drawn; what to call the files beside the report."""
    results, picture, answers = found.results, report.with_suffix(".png"), answers_file(report)
    problems = {arm: result for arm, result in results.items() if isinstance(result, MathResult)}
    if problems:
        Terminal().print(math_table(problems))
        print_wrong(found.judged)
        return f" and {answers}"
    labelled = {arm: result for arm, result in results.items() if isinstance(result, ArmResult)}
    print_tables(labelled)
    print_wrong(found.judged)
    plot_confusion(labelled, picture)
    return f", {answers} and {picture}"
