"""What it costs to ask the teacher for more than the sampled tokens: its own top-k, or named tokens.

python -m benchmarks.support_scoring --json support_scoring.json

One SGLang server on a random model of the tiny pair's size, one compute thread; the arms in turn on the same random
samples, each with an empty prefix cache. Time and CPU seconds (client and server) are over those of the sampled token,
medians over rounds of the ratio within a round. SGLang takes one list of named tokens a sample and answers all of them
at each position, so an arm is named by K and the list's length.
"""

import argparse
import asyncio
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.arms.runs import report
from benchmarks.arms.scoring_arms import Model, Outcome, ServerArms, Workload, write_model
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.types import ScoreRequest

MODEL = Model("0.85M", vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=3)
WORKLOADS = (Workload(60, 2, 4, prompts=96), Workload(64, 256, 4, prompts=8))
K = 16
NAMED = (32, 256)
"""Different tokens of a sample, at most."""
SAMPLED, TEACHERS = "sampled token", f"teacher's top {K}"
Arms = dict[str, list[ScoreRequest]]


def arms_of(requests: Sequence[ScoreRequest]) -> Arms:
    """The same samples, asked for more and more."""
    arms = {SAMPLED: list(requests), TEACHERS: [dataclasses.replace(one, top_k=K) for one in requests]}
    for named in NAMED:
        arms[f"{K} named, {named} different"] = [with_named(one, named, seed) for seed, one in enumerate(requests)]
    return arms


def with_named(request: ScoreRequest, named: int, seed: int) -> ScoreRequest:
    """The request for K tokens a position out of `named`."""
    draw = np.random.default_rng(seed)
    pool = draw.choice(MODEL.vocab_size, named, replace=False)
    ids_RK = np.array([draw.choice(pool, K, replace=False) for _ in request.response_ids], np.int32)
    return dataclasses.replace(request, support_ids=ids_RK)


async def measure(arms: ServerArms, workload: Workload, rounds: int) -> list[dict]:
    """A row an arm."""
    found: dict[str, list[Outcome]] = {}
    for number in range(rounds):
        for name, requests in arms_of(workload.requests(MODEL.vocab_size, seed=number + 1)).items():
            outcome = await arms.ours(requests)
            assert len(outcome.logprobs) == len(requests)
            found.setdefault(name, []).append(outcome)
    samples = workload.prompts * workload.n
    return [
        {
            "workload": workload.name,
            "arm": name,
            "samples_per_s": samples / statistics.median(one.seconds for one in outcomes),
            "time_over_sampled": ratio(outcomes, found[SAMPLED], lambda one: one.seconds),
            "cpu_over_sampled": ratio(outcomes, found[SAMPLED], lambda one: one.client_cpu + one.server_cpu),
        }
        for name, outcomes in found.items()
    ]


def ratio(ours: list[Outcome], plain: list[Outcome], of: Callable[[Outcome], float]) -> float:
    return statistics.median(of(one) / of(other) for one, other in zip(ours, plain, strict=True))


async def run(folder: Path, rounds: int) -> list[dict]:
    write_model(MODEL, folder)
    config = TeacherConfig(model_path=str(folder), startup_timeout_s=240, context_length=512)
    with ManagedServer(config, folder / "sglang.log") as server:
        server.wait_ready()
        arms = ServerArms(server, MODEL.vocab_size)
        for requests in arms_of(Workload(60, 2, 4, prompts=2).requests(MODEL.vocab_size, seed=0)).values():
            await arms.ours(requests)  # first-call costs belong to no round
        return [row for workload in WORKLOADS for row in await measure(arms, workload, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(run(Path(folder), arguments.rounds))
    print("| prompt/response/n | asked for | samples/s | time | CPU seconds |\n|---|---|---|---|---|")
    for row in rows:
        ratios = [f"{row[f'{name}_over_sampled']:.2f}" for name in ("time", "cpu")]
        print(f"| {row['workload']} | {row['arm']} | {row['samples_per_s']:.3g} | {' | '.join(ratios)} |")
    report(rows, [], arguments.json)


if __name__ == "__main__":
    main()
