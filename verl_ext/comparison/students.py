"""What every trained arm answers on the held-out rows, at its end and along the way: few engines for all of them."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from verl_ext.comparison.config import BOTH, SFT, CompareConfig
from verl_ext.comparison.curve import Point, on_policy_points, sft_point, write_curve
from verl_ext.comparison.plan import SFT_PART, heldout
from verl_ext.comparison.record import EVALUATION, Arm, Headroom
from verl_ext.evaluation.arms import EvaluateConfig, Rows, evaluate, is_math, judge_answers, read_rows, with_labels
from verl_ext.run.files import write_json
from verl_ext.run.hydra import schema_of
from verl_ext.run.settings import settings_of
from verl_ext.sampling.types import Answer, EngineConfig, Request, SamplingConfig
from verl_ext.sampling.vllm import VllmSampler
from verl_ext.student.export import export_checkpoint


@dataclass(frozen=True)
class Heldout:
    """The held-out rows, and how an answer to them is judged."""

    config: EvaluateConfig
    rows: Rows
    problems: bool
    """Judged as mathematics, not as labels."""

    @classmethod
    def of(cls, config: CompareConfig) -> "Heldout":
        words = OmegaConf.from_dotlist([*config.task.evaluate, f"data={heldout(config.task)}", "student=."])
        settings = settings_of(OmegaConf.merge(schema_of(EvaluateConfig), words), EvaluateConfig)
        rows, _ = read_rows(settings)
        problems = is_math(settings, rows)
        return cls(settings if problems else with_labels(settings, rows), rows, problems)

    @property
    def requests(self) -> list[Request]:
        return [Request(number, row["prompt"]) for number, row in enumerate(self.rows)]

    def accuracy(self, answers: Sequence[Answer]) -> float:
        judged = judge_answers(self.config, "student", answers, self.rows, problems=self.problems)
        return sum(bool(each.right) for each in judged) / len(judged)

    @contextlib.contextmanager
    def engine(self, model: Path) -> Iterator[VllmSampler]:
        config = self.config
        sampling = SamplingConfig(
            temperature=0.0, max_tokens=config.max_tokens, seed=config.seed, enable_thinking=config.enable_thinking
        )
        engine = EngineConfig(dtype=config.dtype, tp=config.tp, gpu_memory_utilization=config.gpu_memory_utilization)
        with VllmSampler(str(model), sampling, engine, self.requests) as sampler:
            yield sampler


def evaluate_students(
    config: CompareConfig, headroom: Headroom, arms: Sequence[Arm], tell: Callable[[Arm], None]
) -> dict[str, str]:
    """Write `eval.json`, `answers.jsonl` and `accuracy.jsonl` of each arm, one after the other.

    `tell` is called before each. Arms whose students have the same tensors share an engine.

    Returns:
        Why it could not be done, of runs where it could not.
    """
    out, rows = Path(config.out), Heldout.of(config)
    groups: dict[str, list[Arm]] = {}
    failed: dict[str, str] = {}
    for arm in arms:
        try:
            groups.setdefault(tensors_of(out / arm.run / "student"), []).append(arm)
        except (OSError, ValueError) as error:
            failed[arm.run] = f"its student cannot be read: {error}"
    for group in groups.values():
        with rows.engine(out / group[0].run / "student") as sampler:
            for arm in group:
                tell(arm)
                start = Point(0, 0, 0, headroom.base, len(rows.rows))
                evaluate_arm(out / arm.run, arm.kind, config.task.base, rows, sampler, start)
    return failed


def evaluate_arm(run: Path, kind: str, base: str, rows: Heldout, sampler: VllmSampler, start: Point) -> None:
    """The checkpoints of SFT, then the student. `start`: the point of the base."""

    def asked(model: str, *_: Any) -> dict[str, list[Answer]]:
        sampler.take_weights(model)
        return {"student": sampler.answer(rows.requests)}

    settings = replace(rows.config, student=f"{run}/student", out=f"{run}/{EVALUATION}")
    found = evaluate(settings, asked)
    points = [start]
    if kind in (SFT, BOTH):
        points += sft_points(
            run if kind == SFT else run / SFT_PART, base, rows, lambda model: asked(str(model))["student"]
        )
    if kind != SFT:
        points += [point.after(points[-1]) for point in on_policy_points(run, len(rows.rows))]
    write_curve(run, points)
    write_json(Path(settings.out), {"config": asdict(settings)} | found.as_dict())


def sft_points(run: Path, base: str, rows: Heldout, answers_of: Callable[[Path], list[Answer]]) -> list[Point]:
    """Accuracy at each checkpoint of an SFT run, which becomes a whole model for a moment."""
    points = []
    for checkpoint in sorted((run / "checkpoints").glob("global_step_*"), key=step_of):
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            export_checkpoint(checkpoint, base, Path(folder))
            answers = answers_of(Path(folder) / "student")
        points.append(sft_point(run, step_of(checkpoint), rows.accuracy(answers), len(rows.rows)))
    return points


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("_")[2])


def tensors_of(model: Path) -> str:
    """Names and shapes of the tensors of a model folder, from the headers of its safetensors files."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{model} holds no safetensors; delete the file `trained` beside it to train the arm again")
    shapes: dict[str, Any] = {}
    for file in files:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        shapes |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    return json.dumps(sorted(shapes.items()))
