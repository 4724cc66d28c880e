"""SGLang and vLLM as teachers on the same sequences: do they agree, and what does each score a second?

python -m benchmarks.teacher_engines --json teacher_engines.json

Both servers run at once, managed, in float32 on a random model, one compute thread each. The arms take turns, SGLang's
prefix cache empty before each: *SGLang* and *vLLM* are `TeacherPool` with its defaults, which primes prompts where the
engine reads a cache; *SGLang from 0* is the same server asked for all positions, one request a sample. Their log-probs
are compared with each other's and with transformers', token by token. A speed is the median over rounds, a ratio the
median of the ratios within a round.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import report
from benchmarks.arms.scoring_arms import Model, Outcome, ServerArms, Workload, write_model
from benchmarks.teacher_scoring import COMPUTE_BOUND, MAX_MODEL_LEN, TINY_PAIR, WARM_UP, WORKLOADS, greatest_difference
from verl_ext.checks.reference import transformers_logprobs
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.types import ScoreRequest

MODELS = {model.name: model for model in (TINY_PAIR, COMPUTE_BOUND)}
PYTHONS = {"sglang": TeacherConfig.python, "vllm": sys.executable}
"""vLLM for a CPU is in the trainer's own environment."""
FROM_ZERO, TRANSFORMERS = "SGLang from 0", "transformers"
NATS_BAR = 1e-4
ROUNDS = 3

Arm = Callable[[Sequence[ScoreRequest]], Awaitable[Outcome]]


async def measure(model: Model, folder: Path, workload: Workload, arms: dict[str, Arm], rounds: int) -> dict:
    """All arms in turn on the same sequences: samples/s, and the greatest difference of each two of them, nats."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    logprobs: dict[str, list[list[float]]] = {}
    for number in range(rounds):
        requests = workload.requests(model.vocab_size, seed=number + 1)
        for name, arm in arms.items():
            outcome = await arm(requests)
            seconds[name].append(outcome.seconds)
            if name != FROM_ZERO:  # the same server, asked otherwise
                logprobs.setdefault(name, []).extend(outcome.logprobs)
            print(f"  {model.name} {workload.name} round {number + 1}: {name} {outcome.seconds:.2f} s", flush=True)
        found = transformers_logprobs(str(folder), requests, dtype="float32", device="cpu")
        logprobs.setdefault(TRANSFORMERS, []).extend(row.tolist() for row in found)
    samples = workload.prompts * workload.n
    gaps = {
        f"{one} - {other}": greatest_difference(logprobs[one], logprobs[other])
        for one, other in combinations(logprobs, 2)
    }
    speeds = {name: samples / statistics.median(each) for name, each in seconds.items()}
    pairs = zip(seconds["SGLang"], seconds["vLLM"], strict=True)
    tokens = sum(len(row) for row in logprobs[TRANSFORMERS])
    return {
        **{"model": model.name, "workload": workload.name, "samples": samples, "compared_tokens": tokens},
        **{"samples_per_s": speeds, "nats": gaps},
        "sglang_over_vllm": statistics.median(vllm / sglang for sglang, vllm in pairs),
    }


async def run_model(model: Model, rounds: int, folder: Path) -> list[dict]:
    """Start both servers on one random model, measure all workloads, stop them."""
    write_model(model, folder)
    print(f"starting SGLang and vLLM on {model.name} (logs: {folder}/*.log)", flush=True)
    with ExitStack() as stack:
        arms = {}
        for engine, python in PYTHONS.items():
            config = TeacherConfig(
                model_path=str(folder),
                engine=engine,
                python=python,
                device="cpu",
                startup_timeout_s=240,
                context_length=MAX_MODEL_LEN,
            )
            server = stack.enter_context(ManagedServer(config, folder / f"{engine}.log"))
            server.wait_ready()  # one after the other: the first could take a port that the other finds free
            arms[engine] = ServerArms(server, model.vocab_size)
        turns: dict[str, Arm] = {
            "SGLang": arms["sglang"].ours,
            FROM_ZERO: arms["sglang"].from_zero,
            "vLLM": arms["vllm"].ours,
        }
        for arm in turns.values():  # first-call costs belong to no round
            await arm(WARM_UP.requests(model.vocab_size, seed=0))
        return [await measure(model, folder, workload, turns, rounds) for workload in WORKLOADS[model]]


def show(rows: list[dict]) -> None:
    table = Table(title="samples/s, medians; greatest difference at a token, nats")
    for column in ("model", "prompt/response/n", *rows[0]["samples_per_s"], "SGLang / vLLM", *rows[0]["nats"]):
        table.add_column(column, justify="right")
    for row in rows:
        speeds = row["samples_per_s"]
        cells = [f"{each:.3g}" for each in speeds.values()] + [f"{row['sglang_over_vllm']:.2f}"]
        table.add_row(row["model"], row["workload"], *cells, *(f"{gap:.1e}" for gap in row["nats"].values()))
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="SGLang and vLLM as teachers: agreement and samples a second")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each arm runs")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="parameters of the model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        rows = [
            row
            for name in options.models
            for row in asyncio.run(run_model(MODELS[name], options.rounds, Path(folder) / name))
        ]
    show(rows)
    pairs = rows[0]["nats"]
    report(rows, [(pair, max(row["nats"][pair] for row in rows), NATS_BAR) for pair in pairs], options.json)


if __name__ == "__main__":
    main()
