"""On what vLLM samples, SGLang, verl's actor and vLLM itself give the same weights the same log-probs.

The tiny pair as it samples in training, and a real shape with random weights.
"""

import asyncio
import itertools
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

SHAPE = os.environ.get("AGREEMENT_SHAPE", "Qwen/Qwen3-0.6B")
PAIR_PROMPTS, PAIR_RESPONSE = 256, 8  # tokens at most: a label and the end
RANDOM_PROMPTS, RANDOM_PROMPT, RANDOM_RESPONSE = 32, 64, 64
BF16_NATS = 0.02  # mean absolute difference between two engines
ROUNDING = 2.0  # or this many times what bf16 does to transformers, where that is more: random weights amplify it
FP32_NATS = 1e-4  # largest difference
FP8_NATS = 0.5  # mean: a broken kernel is caught, FP8's own error is stated
ENGINES = ("vllm", "actor", "exact", "rounded")


@dataclass(frozen=True)
class Scored:
    """Log-probs of the same responses by engine, flat."""

    name: str
    request: dict[str, Any]
    logprobs: dict[str, list[float]]


def pairs_prompts(pair: Path) -> list[list[int]]:
    """The held-out rows as the student sees them."""
    import pyarrow.parquet as pq

    from verl_ext.run.models import load_tokenizer, render_chat

    tokenizer = load_tokenizer(str(pair / "base"))
    rows = pq.read_table(pair / "data/heldout.parquet").to_pylist()[:PAIR_PROMPTS]
    return [render_chat(tokenizer, row["prompt"], {}) for row in rows]


def random_prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, 150_000) for _ in range(RANDOM_PROMPT)] for _ in range(RANDOM_PROMPTS)]


@pytest.fixture(scope="module", params=["pair", "real_shape"])
def scored(request, machine, pair: Path, run_module: Callable[..., str], tmp_path_factory) -> Scored:
    """Sampled by vLLM, scored by every engine but the teacher's."""
    folder = tmp_path_factory.mktemp(request.param)
    asked: dict[str, Any] = {"device": machine.platform, "dtype": machine.dtype, "words": machine.words}
    if request.param == "pair":
        asked |= {"model": str(pair / "base"), "prompts": pairs_prompts(pair)}
        asked |= {"length": PAIR_RESPONSE, "ignore_eos": False}
    else:
        if machine.platform == "cpu":
            # 0.6 billion parameters by default, loaded four times over: here the tiny pair shows the agreement.
            pytest.skip("PLATFORM=cpu: AGREEMENT_SHAPE is for a GPU")
        from benchmarks.arms.random_model import make_model

        make_model(folder / "model", SHAPE, machine.platform, machine.dtype)
        asked |= {"model": str(folder / "model"), "prompts": random_prompts()}
        asked |= {"length": RANDOM_RESPONSE, "ignore_eos": True}
    logprobs = {}
    for engine in ENGINES:
        (folder / "request.json").write_text(json.dumps(asked))
        words = (engine, str(folder / "request.json"), str(folder / f"{engine}.json"))
        run_module(f"agreement_{request.param}_{engine}", "tests/gpu/score_with.py", *words)
        answer = json.loads((folder / f"{engine}.json").read_text())
        asked |= {"responses": answer["responses"]} if engine == "vllm" else {}
        logprobs[engine] = list(itertools.chain.from_iterable(answer["logprobs"]))
    return Scored(request.param, asked, logprobs)


def teachers_logprobs(settings: dict[str, Any], asked: dict[str, Any], log: Path) -> list[float]:
    from verl_ext.teacher.client.pool import TeacherPool
    from verl_ext.teacher.config import TeacherConfig
    from verl_ext.teacher.server.process import ManagedServer
    from verl_ext.teacher.teachers import vocab_size_of
    from verl_ext.teacher.types import Score, ScoreRequest

    config = TeacherConfig(**settings)
    requests = [ScoreRequest(p, r) for p, r in zip(asked["prompts"], asked["responses"], strict=True)]

    async def score(url: str) -> list[float]:
        vocab_size = vocab_size_of(asked["model"], trust_remote_code=False)
        async with TeacherPool(config, vocab_size, [url]) as pool:
            outcomes = await pool.score(requests)
        return [value for outcome in outcomes if isinstance(outcome, Score) for value in outcome.logprobs.tolist()]

    with ManagedServer(config, log) as server:
        return asyncio.run(score(server.wait_ready(300)))


def gap(one: list[float], other: list[float]) -> dict[str, float]:
    """Mean and largest absolute difference, nats."""
    found = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return {"mean": sum(found) / len(found), "max": max(found)}


def test_engines_agree(precision: str, scored: Scored, machine, out: Path) -> None:
    name = f"agreement_{scored.name}_{precision}"
    settings = machine.teacher_settings(Path(scored.request["model"]), precision, context_length=1024)
    teacher = teachers_logprobs(settings, scored.request, out / f"{name}_teacher.log")
    logprobs = scored.logprobs | {"sglang": teacher}
    assert len(teacher) == len(logprobs["vllm"]) > len(scored.request["prompts"])
    gaps = {f"{a}-{b}": gap(logprobs[a], logprobs[b]) for a, b in itertools.combinations(logprobs, 2)}
    (out / f"{name}.json").write_text(json.dumps(gaps, indent=2) + "\n")
    print(json.dumps(gaps, indent=2))
    random_weights = scored.name == "real_shape"
    bar = max(BF16_NATS, ROUNDING * gaps["exact-rounded"]["mean"]) if random_weights else BF16_NATS
    for key in ("vllm-actor", "vllm-sglang", "actor-sglang"):
        if machine.platform == "cpu":
            assert gaps[key]["max"] <= FP32_NATS, key
        elif precision == "fp8" and "sglang" in key:
            assert 0 < gaps[key]["mean"] <= FP8_NATS, key
        else:
            assert gaps[key]["mean"] <= bar, key
    if precision != "fp8":
        shifted = gap(teacher[1:], scored.logprobs["actor"][:-1])
        assert shifted["mean"] > 10 * gaps["actor-sglang"]["mean"]  # one position off would be seen
