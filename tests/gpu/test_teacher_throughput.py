"""Tokens/s of FP8 against bfloat16 teachers of real shapes with random weights, and FP8's share of the chip's limit."""

import asyncio
import json
import os
import statistics
import time
from pathlib import Path

import pytest

SHAPES = {"4b": "Qwen/Qwen3-4B-Instruct-2507", "8b": "Qwen/Qwen3-8B-Base"}
LENGTHS = {"long prompt": (1000, 16, 8, 32), "long response": (64, 256, 4, 64)}
"""Tokens of a prompt, of a response, responses of a prompt, prompts."""
ROUNDS = 3
FP8_PEAK = float(os.environ.get("FP8_PEAK", "1.979e15"))

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def measure(machine, folder: Path, precision: str, log: Path) -> dict[str, dict[str, float]]:
    """Median seconds of both arms by workload."""
    from benchmarks.arms.scoring_arms import ServerArms, Workload
    from verl_ext.teacher.config import TeacherConfig
    from verl_ext.teacher.server.process import ManagedServer
    from verl_ext.teacher.teachers import vocab_size_of

    vocab_size = vocab_size_of(str(folder), trust_remote_code=False)
    found: dict[str, dict[str, float]] = {}
    with ManagedServer(
        TeacherConfig(**machine.teacher_settings(folder, precision, context_length=2048)), log
    ) as server:
        server.wait_ready(300)
        sglang = ServerArms(server, vocab_size)
        for name, lengths in LENGTHS.items():
            workload = Workload(*lengths)
            requests = workload.requests(vocab_size, seed=1)
            arms = {"ours": sglang.ours, "from_zero": sglang.from_zero}
            seconds: dict[str, list[float]] = {arm: [] for arm in arms}
            for number in range(ROUNDS + 1):
                for arm, score in arms.items():
                    outcome = asyncio.run(score(requests))
                    assert [len(row) for row in outcome.logprobs] == [workload.response] * len(requests)
                    if number:  # the first warms up
                        seconds[arm].append(outcome.seconds)
            found[name] = {arm: statistics.median(values) for arm, values in seconds.items()}
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_is_no_slower_than_bfloat16(shape: str, cuda, out: Path, tmp_path: Path) -> None:
    from benchmarks.arms import flops
    from benchmarks.arms.random_model import make_model
    from verl_ext.plan.shape import load_shape

    started, folder = time.time(), tmp_path / shape
    make_model(folder, SHAPES[shape], "cuda", "bfloat16")
    numbers = load_shape("shape", str(folder))
    seconds = {p: measure(cuda, folder, p, out / f"teacher_throughput_{shape}_{p}.log") for p in ("bf16", "fp8")}
    found: dict[str, dict] = {"tokens_per_s": {}, "fp8_share_of_peak": {}}
    for name, (prompt, response, n, prompts) in LENGTHS.items():
        tokens = prompts * n * (prompt + response)  # a token counts once, cached or not
        found["tokens_per_s"][name] = {
            precision: {arm: tokens / value for arm, value in timed[name].items()}
            for precision, timed in seconds.items()
        }
        # From position 0 each sequence is computed whole, log-probs of the prompt too.
        computed = prompts * n * flops.answers(numbers, 1, prompt + response, 1)
        found["fp8_share_of_peak"][name] = computed / seconds["fp8"][name]["from_zero"] / FP8_PEAK
    file = out / f"teacher_throughput_{shape}.json"
    file.write_text(json.dumps(found | {"fp8_peak": FP8_PEAK, "seconds": time.time() - started}, indent=2) + "\n")
    print(file.read_text())
    for name in LENGTHS:
        assert seconds["fp8"][name]["from_zero"] <= seconds["bf16"][name]["from_zero"]
        assert 0 < found["fp8_share_of_peak"][name] < 1
