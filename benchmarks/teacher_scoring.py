"""Samples/s of the teacher service: our pool, the same server asked from position 0, and verl's own vLLM teacher.

python -m benchmarks.teacher_scoring --json teacher_scoring.json

The arms (`scoring_arms.py`, `verl_teacher.py`) score the same random sequences in turn, each with an empty prefix
cache, one compute thread an engine; a ratio is the median over rounds of the ratio within a round. The client's share
is its CPU seconds over those of the server's processes. Memory is what Python allocates while one call of `score` runs
(tracemalloc), its results included and its requests not.
"""

import argparse
import asyncio
import gc
import statistics
import tempfile
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import report
from benchmarks.arms.scoring_arms import Model, Outcome, ServerArms, Workload, write_model
from benchmarks.arms.verl_teacher import VerlTeacher
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.types import Score, ScoreRequest

MAX_MODEL_LEN = 2048
ROUNDS = 3
COMPUTE_BOUND = Model("26M", vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=3)
TINY_PAIR = Model("0.85M", vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=3)
ARMS = ("ours", "from_zero", "verl")
LONG_PROMPT, LONG_RESPONSE = "1000/16/8", "64/256/4"
WARM_UP = Workload(60, 2, 4, prompts=2)
WORKLOADS = {
    COMPUTE_BOUND: (Workload(1000, 16, 8, prompts=1), Workload(64, 256, 4, prompts=4), Workload(60, 2, 4, prompts=12)),
    TINY_PAIR: (Workload(1000, 16, 8, prompts=4), Workload(64, 256, 4, prompts=16), Workload(60, 2, 4, prompts=96)),
}
# Samples/s from position 0 over ours, at most; 1 where not named.
FROM_ZERO_BARS = {
    (COMPUTE_BOUND.name, LONG_PROMPT): 1 / 5,
    (COMPUTE_BOUND.name, LONG_RESPONSE): 1 / 1.2,
    (TINY_PAIR.name, LONG_PROMPT): 1 / 3,
}
VERL_BAR = 1.0  # verl's samples/s over ours
CLIENT_CPU_BAR = 0.1
NATS_BAR = 1e-4
QUEUED = (2_000, 10_000)
QUEUE = Workload(16, 4, 4, prompts=QUEUED[-1] // 4)
MEMORY_BAR_MIB = 32.0
QUEUE_TIMEOUT_S = 180

Bar = tuple[str, float, float]
Arm = Callable[[Sequence[ScoreRequest]], Awaitable[Outcome]]


def greatest_difference(left: list[list[float]], right: list[list[float]]) -> float:
    """Nats between two arms at the token where they differ most."""
    return max(abs(a - b) for ours, other in zip(left, right, strict=True) for a, b in zip(ours, other, strict=True))


async def measure(model: Model, workload: Workload, arms: dict[str, Arm], rounds: int) -> dict:
    """All arms in turn on the same sequences, `rounds` times; medians."""
    found: dict[str, list[Outcome]] = {name: [] for name in arms}
    gap = 0.0
    for number in range(rounds):
        requests = workload.requests(model.vocab_size, seed=number + 1)
        for name, arm in arms.items():
            outcome = await arm(requests)
            found[name].append(outcome)
            gap = max(gap, greatest_difference(found["ours"][-1].logprobs, outcome.logprobs))
            print(
                f"  {model.name} {workload.name} round {number + 1}: {name} {outcome.seconds:.2f} s, CPU of server "
                f"{outcome.server_cpu:.2f} s, of client {outcome.client_cpu:.2f} s",
                flush=True,
            )
    samples = workload.prompts * workload.n
    row: dict = {"model": model.name, "workload": workload.name, "samples": samples, "difference_nats": gap}
    for name, outcomes in found.items():
        paired = list(zip(found["ours"], outcomes, strict=True))
        row |= {
            f"{name}_samples_per_s": samples / statistics.median(o.seconds for o in outcomes),
            f"{name}_cpu_s": statistics.median(o.client_cpu + o.server_cpu for o in outcomes),
            f"{name}_over_ours": statistics.median(ours.seconds / o.seconds for ours, o in paired),
        }
    row["client_cpu_share"] = statistics.median(o.client_cpu / o.server_cpu for o in found["ours"])
    return row


async def measure_queue(server: ManagedServer, model: Model, count: int) -> dict:
    """Greatest memory of one call with `count` requests over what was there before, MiB."""
    requests = QUEUE.requests(model.vocab_size, seed=0)[:count]
    async with TeacherPool(server.config, model.vocab_size, [server.url]) as pool:
        await pool.probe()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            outcomes = await asyncio.wait_for(pool.score(requests), QUEUE_TIMEOUT_S)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    scored = sum(isinstance(outcome, Score) for outcome in outcomes)
    row = {"queued": count, "scored": scored, "peak_mib": (peak - before) / 2**20, "kept_mib": (after - before) / 2**20}
    print(f"  {count} requests in one call: {row}", flush=True)
    return row


async def run_model(model: Model, rounds: int, folder: Path) -> list[dict]:
    """Start both engines on one random model, measure all workloads, stop them."""
    path = folder / model.name
    write_model(model, path)
    gc.freeze()  # what the model's libraries made: else one arm pays for a collection that walks through it
    print(f"starting SGLang and vLLM on {model.name} (logs: {path}/*.log)", flush=True)
    config = TeacherConfig(model_path=str(path), startup_timeout_s=240, context_length=MAX_MODEL_LEN)
    async with AsyncExitStack() as stack:
        server = stack.enter_context(ManagedServer(config, path / "sglang.log"))
        server.wait_ready()  # before vLLM, which could take the port that SGLang binds last
        verl = await stack.enter_async_context(VerlTeacher(path, MAX_MODEL_LEN, path / "vllm.log"))
        sglang = ServerArms(server, model.vocab_size)
        arms: dict[str, Arm] = dict(zip(ARMS, (sglang.ours, sglang.from_zero, verl.score), strict=True))
        for arm in arms.values():  # first-call costs belong to no round
            await arm(WARM_UP.requests(model.vocab_size, seed=0))
        rows = [await measure(model, workload, arms, rounds) for workload in WORKLOADS[model]]
        if model == TINY_PAIR:
            rows += [await measure_queue(server, model, count) for count in QUEUED]
    return rows


def show(rows: list[dict]) -> None:
    table = Table(title="samples/s, medians; CPU seconds a round of client and server together")
    for column in ("model", "prompt/response/n", "ours", "from 0", "verl", "ours/from 0", "ours/verl", "client CPU"):
        table.add_column(column, justify="right")
    for row in rows:
        speeds = [f"{row[f'{arm}_samples_per_s']:.3g} ({row[f'{arm}_cpu_s']:.1f} s)" for arm in ARMS]
        ratios = [f"{1 / row[f'{arm}_over_ours']:.2f}" for arm in ARMS[1:]]
        table.add_row(row["model"], row["workload"], *speeds, *ratios, f"{row['client_cpu_share']:.3f}")
    Console().print(table)


def bars_of(speeds: list[dict], queues: list[dict]) -> list[Bar]:
    bars: list[Bar] = []
    for row in speeds:
        key = row["model"], row["workload"]
        bars.append((f"from_zero_over_ours_{'_'.join(key)}", row["from_zero_over_ours"], FROM_ZERO_BARS.get(key, 1.0)))
        bars.append((f"verl_over_ours_{'_'.join(key)}", row["verl_over_ours"], VERL_BAR))
    share = max(row["client_cpu_share"] for row in speeds if row["model"] == COMPUTE_BOUND.name)
    bars.append((f"client_cpu_over_server_{COMPUTE_BOUND.name}", share, CLIENT_CPU_BAR))
    bars.append(("greatest_difference_nats", max(row["difference_nats"] for row in speeds), NATS_BAR))
    bars += [(f"unscored_of_{row['queued']}", row["queued"] - row["scored"], 0.0) for row in queues]
    bars += [(f"peak_mib_{row['queued']}_queued", row["peak_mib"], MEMORY_BAR_MIB) for row in queues]
    return bars


def main() -> None:
    parser = argparse.ArgumentParser(description="samples/s of the teacher service against two other ways to score")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each arm runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        rows = [row for model in WORKLOADS for row in asyncio.run(run_model(model, options.rounds, Path(folder)))]
    speeds, queues = [row for row in rows if "workload" in row], [row for row in rows if "queued" in row]
    show(speeds)
    report(rows, bars_of(speeds, queues), options.json)


if __name__ == "__main__":
    main()
