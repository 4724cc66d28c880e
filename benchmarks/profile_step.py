"""One training step taken apart: seconds, tokens/s and share of the chip's limit of each stage, memory beside the plan.

    python -m benchmarks.profile_step --json profile.json                       # the tiny pair of `make demo`, on a CPU
    python -m benchmarks.profile_step --platform cuda --hardware h200_1x --shape Qwen/Qwen3-4B-Instruct-2507 \
        --peak-flops 9.89e14 --teacher-peak-flops 1.979e15 update=lora teacher=fp8

Runs `recipe.on_policy_distillation` with whatever overrides follow the options. `--shape` gives random weights of a
published shape (or of a config.json), one model as student and teacher, and rows of `--prompt`, `--teacher-prompt` and
`--response` tokens; without it the student is `--model` and the rows are those of `--data`. Seconds are medians of the
steps after the first two. FLOPs are what the mathematics asks for (arms/flops.py); `--peak-flops` is the chip's limit
in the trainer's and vLLM's precision, dense, and `--teacher-peak-flops` in the teacher's. Sampling and scoring
overlap, on one device too: the seconds of scoring lie within those of sampling.

Memory: arms/memory_watch.py beside `recipe.plan`'s phases of the same overrides. With CUDA the plan has bars; on a
CPU a model that is small beside its libraries says nothing of it (`benchmarks.plan_memory` does).
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from benchmarks.arms import flops, random_model
from benchmarks.arms.memory_watch import ALL, TEACHER, TRAINER, VLLM, Bytes, MemoryWatch
from benchmarks.arms.runs import DEMO, report
from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.plan import memory
from verl_ext.plan.hardware import GIB, HardwareConfig, hardware_of
from verl_ext.plan.layout import PHASES, Pool, pools
from verl_ext.plan.run import Run, read_run
from verl_ext.run.metrics import read_metrics

WARM_UP = 2
SGLANG_RESERVES = 16
"""More tokens of context than its longest input; it wants 6."""
PLAN_BAR, UNEXPLAINED_BAR = 0.10, 0.10
BARRED_PHASES = ("generate", "update")
TENSORS = "trainer's tensors"
"""What PyTorch's allocator handed out, without what it keeps beside and without the context."""
STAGES = ("timing_s/gen", "timing_s/old_log_prob", "timing_s/adv", "timing_s/update_actor", "timing_s/update_weights")

Row = dict[str, float]


@dataclass(frozen=True)
class Stage:
    """One line of the table."""

    name: str
    seconds: float
    """Median of the steps."""
    tokens: float = 0.0
    """Of a step: sampled, scored or trained; 0 where the stage works on none."""
    flops: float = 0.0
    peak_flops: float = 0.0
    """The chip's limit, FLOP/s; 0 where it is not known."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def share(self) -> float:
        return self.flops_per_s / self.peak_flops if self.peak_flops else 0.0


def median(rows: list[Row], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def stages(rows: list[Row], run: Run, n: int, peak_flops: float, teacher_peak_flops: float) -> list[Stage]:
    """The stages of a step, from the metrics of the steps after warm-up."""
    prompt, response = median(rows, "prompt_length/mean"), median(rows, "response_length/mean")
    samples = median(rows, "teacher/scored") + median(rows, "teacher/unscored")
    groups, generated = samples / n, samples * response
    # What was sent is every prompt once more than its samples (to prime it), which leaves the teacher's prompt.
    teacher_prompt = (median(rows, "teacher/tokens") - generated) / median(rows, "teacher/sequences")
    student, teacher = run.student, run.teacher_shape
    trained = groups * flops.update(student, prompt, response, n, adapters=run.adapters)
    sampled = groups * flops.answers(student, prompt, response, n)
    scored = groups * flops.answers(teacher, teacher_prompt, response, n)
    second = {key: median(rows, key) for key in (*STAGES, "timing_s/step", "teacher/seconds")}
    return [
        Stage("sampling, scoring within it", second["timing_s/gen"], generated, sampled, peak_flops),
        Stage("a sample is at the teacher", second["teacher/seconds"], generated, scored, teacher_peak_flops),
        Stage("log-probs again", second["timing_s/old_log_prob"]),
        Stage("advantage", second["timing_s/adv"]),
        Stage("update", second["timing_s/update_actor"], samples * (prompt + response), trained, peak_flops),
        Stage("weight sync", second["timing_s/update_weights"]),
        Stage("step", second["timing_s/step"], generated, sampled + scored + trained, peak_flops),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="where the seconds and bytes of a training step go")
    parser.add_argument("--json", type=Path, help="write the tables and the bars here")
    parser.add_argument("--out", type=Path, help="folder for the run; default: a new temporary one")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--hardware", default="cpu", help="a file of configs/hardware")
    parser.add_argument("--model", type=Path, default=DEMO / "models/base", help="the student's folder")
    parser.add_argument("--data", type=Path, default=DEMO / "data", help="folder of train.parquet and heldout.parquet")
    parser.add_argument("--shape", help="random weights instead: a published Qwen3, or a config.json")
    parser.add_argument("--prompt", type=int, default=256, help="with --shape: tokens of the student's prompt")
    parser.add_argument("--teacher-prompt", type=int, default=1024, help="with --shape: tokens of the teacher's prompt")
    parser.add_argument("--response", type=int, default=512, help="with --shape: tokens of every response")
    parser.add_argument("--batch", type=int, default=32, help="prompts a step")
    parser.add_argument("--n", type=int, default=4, help="samples of each prompt")
    parser.add_argument("--steps", type=int, default=6, help=f"training steps, of which {WARM_UP} warm up")
    parser.add_argument("--peak-flops", type=float, default=0.0, help="the chip's limit, FLOP/s; 0: no shares")
    parser.add_argument("--teacher-peak-flops", type=float, default=0.0, help="the same in the teacher's precision")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that the run may take")
    parser.add_argument("overrides", nargs="*", help="of the training command")
    parsed = parser.parse_args()
    if parsed.steps <= WARM_UP:
        parser.error(f"--steps={parsed.steps}: more than the {WARM_UP} that warm up")
    parsed.out = parsed.out or Path(tempfile.mkdtemp(prefix="benchmark-"))
    return parsed


def make_inputs(options: argparse.Namespace) -> list[str]:
    """Write the random model and its rows; returns the overrides that go with them."""
    shape, vocab = options.shape, random_model.shape_of(options.shape)["vocab_size"]
    model, data = options.out / "model", options.out / "data"
    random_model.make_model(model, shape, options.platform, "bfloat16" if options.platform == "cuda" else "float32")
    random_model.write_rows(data, options.batch * options.steps, vocab, options.prompt, options.teacher_prompt)
    whole = options.prompt + options.response
    return [
        *(f"student.path={model}", f"data.train_files={data}/train.parquet", f"data.val_files={data}/heldout.parquet"),
        *(f"data.max_prompt_length={options.prompt}", f"data.max_response_length={options.response}"),
        # Random weights draw the end token as rarely as any other of the vocabulary.
        f"actor_rollout_ref.rollout.max_model_len={whole}",
        f"teacher.context_length={options.teacher_prompt + options.response + SGLANG_RESERVES}",
    ]


def words_of(options: argparse.Namespace) -> list[str]:
    """Overrides of the training command."""
    if options.shape:
        inputs = make_inputs(options)
    else:
        data = options.data
        inputs = ["task=demo", f"student.path={options.model}"]
        inputs += [f"data.train_files={data}/train.parquet", f"data.val_files={data}/heldout.parquet"]
    return [
        *(f"platform={options.platform}", f"hardware={options.hardware}", f"run_dir={options.out}/run", *inputs),
        *(f"data.train_batch_size={options.batch}", f"actor_rollout_ref.rollout.n={options.n}"),
        *(f"trainer.total_training_steps={options.steps}", "trainer.save_freq=-1"),
        *options.overrides,
    ]


def launch(words: list[str], options: argparse.Namespace) -> MemoryWatch:
    """Train to the end, watching memory; where it fails, exit with the end of its log."""
    run, log_path = options.out / "run", options.out / "run.log"
    (run / "metrics.jsonl").unlink(missing_ok=True)
    command = [sys.executable, "-m", "recipe.on_policy_distillation", *words, "trainer.resume_mode=disable"]
    print(f"running {options.steps} steps (log: {log_path})", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log_path.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            with MemoryWatch(process.pid, run / "metrics.jsonl", cuda=options.platform == "cuda") as watch:
                status = process.wait(options.timeout)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # on which it ends its engines
    if status:
        sys.exit(f"error: the run ended with status {status}; end of {log_path}:\n{log_path.read_text()[-4000:]}")
    return watch


def planned_owners(run: Run, hardware: HardwareConfig) -> Bytes:
    """The most that each engine's processes take on a device by plan; 0 on a CPU, where libraries are counted apart."""
    if run.device == "cpu":
        return {TRAINER: 0, VLLM: 0, TEACHER: 0}
    size = int(hardware.device_memory_gib * GIB)
    return {
        TRAINER: sum(memory.trainer_update(run).values()),
        VLLM: sum(memory.rollout_awake(run, size).values()),
        TEACHER: sum(memory.teacher_scoring(run, size).values()),
    }


def planned_tensors(run: Run) -> int:
    """Bytes of the trainer's own tensors at the update's peak."""
    return sum(value for key, value in memory.trainer_update(run).items() if key != "context")


def show(lines: list[Stage], memory_rows: list[dict], title: str) -> None:
    table = Table(title=title)
    for column in ("stage", "seconds", "tokens", "tokens/s", "TFLOP/s", "of the limit"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for line in lines:
        speeds = ("", "", "", "")
        if line.tokens:
            share = f"{line.share:.3f}" if line.peak_flops else "-"
            speeds = (f"{line.tokens:,.0f}", f"{line.tokens_per_s:,.0f}", f"{line.flops_per_s / 1e12:.3g}", share)
        table.add_row(line.name, f"{line.seconds:.3f}", *speeds)
    Console().print(table)
    table = Table(title="peak memory, GiB")
    for column in ("what", "planned", "measured", "measured / planned"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in memory_rows:
        planned, measured = (f"{row[key] / GIB:.2f}" if row[key] else "-" for key in ("planned", "measured"))
        ratio = f"{row['measured'] / row['planned']:.3f}" if row["planned"] and row["measured"] else "-"
        table.add_row(row["what"], planned, measured, ratio)
    Console().print(table)


def memory_table(by_phase: dict[str, Bytes], rows: list[Row], run: Run, hardware: HardwareConfig) -> list[dict]:
    """Planned and measured bytes: the device by phase, each engine at its most, the trainer's own tensors."""
    device: Pool = pools(run, hardware)[0]
    where = "device" if run.device == "cuda" else "all processes"
    found = [
        {"what": f"{where}, {phase}", "planned": device.total(phase), "measured": by_phase[phase][ALL]}
        for phase in PHASES
        if by_phase.get(phase)  # one that is shorter than the watch's interval may have none
    ]
    for owner, planned in planned_owners(run, hardware).items():
        measured = max(held.get(owner, 0) for held in by_phase.values())
        found.append({"what": f"{owner}'s processes", "planned": planned, "measured": measured})
    if run.device == "cuda":
        gib = max(row["actor/perf/max_memory_allocated_gb"] for row in rows)
        found.append({"what": TENSORS, "planned": planned_tensors(run), "measured": int(gib * GIB)})
    return found


def bars_of(lines: list[Stage], memory_rows: list[dict], device: str) -> list[tuple[str, float, float]]:
    named = {line.name: line.seconds for line in lines}
    parts = sum(seconds for name, seconds in named.items() if name not in ("step", "a sample is at the teacher"))
    bars = [("share_of_step_not_in_the_table", abs(1 - parts / named["step"]), UNEXPLAINED_BAR)]
    if device == "cuda":
        barred = [*(f"device, {phase}" for phase in BARRED_PHASES), TENSORS]
        for row in memory_rows:
            if row["what"] in barred:
                name = row["what"].replace(", ", "_").replace("'s ", "_")
                bars.append((f"plan_error_{name}", abs(row["measured"] / row["planned"] - 1), PLAN_BAR))
    return bars


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    prepare_training_configs()
    words = words_of(options)
    with initialize_config_dir(str(Path("configs").resolve()), version_base=None):
        config = compose("on_policy_distillation", words)
    run, hardware = read_run(config), hardware_of(config.hardware)
    watch = launch(words, options)
    rows = read_metrics(options.out / "run" / "metrics.jsonl")[WARM_UP:]
    lines = stages(rows, run, options.n, options.peak_flops, options.teacher_peak_flops or options.peak_flops)
    memory_rows = memory_table(watch.by_phase(rows), rows, run, hardware)
    title = f"{run.student_path} on {hardware.name}, {options.batch} prompts x {options.n} samples"
    show(lines, memory_rows, f"{title}, medians of steps {WARM_UP + 1} to {options.steps}")
    found = [asdict(line) | {"tokens_per_s": line.tokens_per_s, "share": line.share} for line in lines]
    report([*found, *memory_rows, {"overrides": words}], bars_of(lines, memory_rows, run.device), options.json)


if __name__ == "__main__":
    main()
