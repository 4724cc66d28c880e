"""A teacher that is asked 100,000 times, 1,000 at once, while one answer in a hundred is spoilt.

    python -m benchmarks.many_scorings --json many_scorings.json

A real SGLang server behind a proxy that spoils answers (500, cut off, NaN, a log-prob above zero, one token or one
sample short). Each round asks the same requests twice, through a proxy that spoils and through one that does not, in
turn first; their scores must be equal. Memory is what each process holds, from the second round to the last.
"""

import argparse
import asyncio
import itertools
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.arms.faulty_proxy import FAULTS, proxy
from benchmarks.arms.runs import report
from benchmarks.arms.scoring_arms import Model, Workload, write_model
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer, group_members
from verl_ext.teacher.types import Score, ScoreRequest

MIB = 2**20
TINY = Model("0.85M", vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=3)
AT_ONCE, ROUND = 1_000, 5_000
PROMPTS = Workload(prompt=16, response=4, n=4, prompts=ROUND // 4)
SHARE, NATS, THROUGHPUT = 0.01, 1e-4, 0.9
BATCH_TOKENS = 256
"""Of a request: about a dozen samples, so that there are thousands of answers to spoil one in a hundred of."""
WHO = ("client", "server")
GROWTH_MIB = 50.0
"""Of a process over all rounds, at most: a leak of one kilobyte a scoring would be twice that."""


def any_fault(draw: random.Random):
    """A fault that is another one each time."""
    return lambda answer: draw.choice(FAULTS)(answer)


async def ask(pool: TeacherPool, requests: Sequence[ScoreRequest]) -> tuple[list[list[float] | None], float]:
    """What each request was given, None where it has no score, and the seconds; `AT_ONCE` wait at any moment."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(request: ScoreRequest) -> list[float] | None:
        async with free:
            (outcome,) = await pool.score([request])
            return outcome.logprobs.tolist() if isinstance(outcome, Score) else None

    began = time.perf_counter()
    return list(await asyncio.gather(*(one(request) for request in requests))), time.perf_counter() - began


async def measure(server: ManagedServer, total: int) -> list[dict[str, float]]:
    """A row a round."""
    rows = []
    async with (
        proxy(server.url, any_fault(random.Random(0)), SHARE) as spoilt,
        proxy(server.url) as clean,
        TeacherPool(server.config, TINY.vocab_size, [spoilt.url]) as faulty,
        TeacherPool(server.config, TINY.vocab_size, [clean.url]) as faultless,
    ):
        await asyncio.gather(faulty.probe(), faultless.probe())
        for number in range(total // ROUND):
            requests = PROMPTS.requests(TINY.vocab_size, seed=number)
            pools = (faulty, faultless) if number % 2 == 0 else (faultless, faulty)
            found = {pool: await ask(pool, requests) for pool in pools}
            (scores, seconds), (right, faultless_seconds) = found[faulty], found[faultless]
            pairs = list(zip(scores, right, strict=True))
            gaps = [abs(a - b) for ours, other in pairs if ours and other for a, b in zip(ours, other, strict=True)]
            rows.append(
                {
                    "scored": sum(score is not None for score in scores),
                    "lost": sum(score is None for each in pairs for score in each),
                    "faults": spoilt.faults,
                    "nats": max(gaps),
                    "seconds": seconds,
                    "faultless_seconds": faultless_seconds,
                    "client_mib": psutil.Process().memory_info().rss / MIB,
                    "server_mib": sum(psutil.Process(pid).memory_info().rss for pid in members(server)) / MIB,
                }
            )
            print(f"  {(number + 1) * ROUND} scorings, {spoilt.faults} spoilt answers: {rows[-1]}", flush=True)
    return rows


def members(server: ManagedServer) -> list[int]:
    """Processes of the server; its guard leads their group."""
    guards = (each.pid for each in psutil.Process().children() if str(server.port) in each.cmdline())
    return list(itertools.chain.from_iterable(group_members(os.getpgid(guard)) for guard in guards))


def growth(values: Sequence[float]) -> float:
    """Of the line through the values behind the first, from its start to its end."""
    after = values[1:]
    return linear_regression(range(len(after)), after).slope * (len(after) - 1) if len(after) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total", type=int, default=100_000, help=f"scorings, a multiple of {ROUND}")
    parser.add_argument("--json", type=Path, help="write the rows and the bars here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        write_model(TINY, Path(folder) / "model")
        config = TeacherConfig(
            model_path=f"{folder}/model", startup_timeout_s=240, context_length=256, batch_tokens=BATCH_TOKENS
        )
        with ManagedServer(config, Path(folder) / "sglang.log") as server:
            server.wait_ready()
            rows = asyncio.run(measure(server, options.total))
    table = Table(title="rounds: one answer in a hundred spoilt, and none")
    for column in ("scorings", "spoilt answers", "samples/s", "none spoilt: samples/s", "client, MiB", "server, MiB"):
        table.add_column(column, justify="right")
    for number, row in enumerate(rows, 1):
        speeds = (f"{ROUND / row[key]:.0f}" for key in ("seconds", "faultless_seconds"))
        memory = (f"{row[key]:.0f}" for key in ("client_mib", "server_mib"))
        table.add_row(f"{number * ROUND}", f"{row['faults']:.0f}", *speeds, *memory)
    Console().print(table)
    ratio = sum(row["seconds"] for row in rows) / sum(row["faultless_seconds"] for row in rows)
    bars = [
        ("lost", sum(row["lost"] for row in rows), 0.0),
        ("greatest_difference_nats", max(row["nats"] for row in rows), NATS),
        ("seconds_over_faultless", ratio, 1 / THROUGHPUT),
        *(
            (f"{who}_growth_mib", growth([row[f"{who}_mib"] for row in rows]), GROWTH_MIB)
            for who in ("client", "server")
        ),
    ]
    report(rows, bars, options.json)


if __name__ == "__main__":
    main()
