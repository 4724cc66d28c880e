"""Real faults against real SGLang servers: every sample is scored as transformers scores it, or an error in its place.

The servers are shared, and used up in the order of the tests: `first` is stopped, killed and comes back as another
model; `second` stays well throughout, with a KV cache too small for a long sequence.
"""

import asyncio
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.arms.faulty_proxy import FAULTS, above_zero, proxy
from verl_ext.run.sweep import group_members
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError

torch.set_num_threads(1)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TOLERANCE = 1e-4  # nats, fp32
VOCAB_SIZE = 258
SMALL_CACHE = 640  # tokens
REQUEST_TIMEOUT_S = 5.0


def make_server(model: Path, python: str, log_path: Path, port: int = 0, **settings: int) -> ManagedServer:
    config = TeacherConfig(model_path=str(model), python=python, startup_timeout_s=300, port=port, **settings)
    return ManagedServer(config, log_path)


@pytest.fixture(scope="module")
def servers(
    tiny_qwen3: Path, teacher_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ManagedServer, ManagedServer]]:
    folder = tmp_path_factory.mktemp("faults")
    with (
        make_server(tiny_qwen3, teacher_python, folder / "first.log") as first,
        make_server(tiny_qwen3, teacher_python, folder / "second.log", max_total_tokens=SMALL_CACHE) as second,
    ):
        first.wait_ready()
        second.wait_ready()
        yield first, second


@pytest.fixture(scope="module")
def model(tiny_qwen3: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()


def make_pool(*urls: str, **changes: float) -> TeacherPool:
    """Small requests, so that a fault meets some of a batch; unprimed, so that each server counts samples alone."""
    settings = {"prime": False, "batch_tokens": 1000, "max_concurrency": 2, "breaker_cooldown_s": 0.5}
    settings |= {"request_timeout_s": REQUEST_TIMEOUT_S, "sample_timeout_s": 60, **changes}
    config = TeacherConfig(mode="external", urls=[*urls], **settings)
    return TeacherPool(config, VOCAB_SIZE)


def make_requests(count: int) -> list[ScoreRequest]:
    """Prompts of 50 to 150 tokens, responses of 1 to 60."""
    rng = random.Random(count)

    def ids(fewest: int, most: int) -> list[int]:
        return [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(fewest, most))]

    return [ScoreRequest(ids(50, 150), ids(1, 60)) for _ in range(count)]


def reference(model: torch.nn.Module, request: ScoreRequest) -> np.ndarray:
    """transformers' log-probs of the response, no padding."""
    with torch.no_grad():
        logits = model(torch.tensor([[*request.prompt_ids, *request.response_ids]])).logits[0]
    logprobs = logits[len(request.prompt_ids) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(request.response_ids)[:, None])[:, 0].numpy()


def check(
    model: torch.nn.Module, pool: TeacherPool, requests: list[ScoreRequest], outcomes: list[Score | TeacherError]
) -> tuple[int, dict[str, float]]:
    """Every place holds transformers' log-probs or an error, and the counts add up. How many errors; the metrics."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, TeacherError)]
    for request, outcome in zip(requests, outcomes, strict=True):
        if isinstance(outcome, Score):
            assert np.abs(outcome.logprobs - reference(model, request)).max() < TOLERANCE
    metrics = pool.metrics()
    assert metrics["pool_unscored"] == len(errors)
    assert metrics["sequences"] == len(requests) - len(errors)
    return len(errors), metrics


async def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_server_with_bad_answers_is_left_and_the_other_scores_all(servers, model, fault) -> None:
    requests = make_requests(40)
    async with proxy(servers[0].url, fault) as bad, make_pool(bad.url, servers[1].url) as pool:
        await pool.probe()  # both are admitted, else the first to be takes all
        outcomes = await pool.score(requests)
        errors, metrics = check(model, pool, requests, outcomes)
        assert (errors, bad.faults > 0, metrics["failures"] > 0) == (0, True, True)


async def test_with_no_other_server_bad_answers_become_errors_that_say_so(servers, model) -> None:
    requests = make_requests(20)
    async with (
        proxy(servers[0].url, above_zero, share=0.5) as bad,
        make_pool(bad.url, max_retries=1, breaker_failures=1000) as pool,
    ):
        outcomes = await pool.score(requests)
        errors, _ = check(model, pool, requests, outcomes)
        assert 0 < errors < len(requests)
        assert "log-prob 0.5 of response token" in next(
            str(outcome) for outcome in outcomes if isinstance(outcome, TeacherError)
        )


async def test_a_server_100_times_slower_costs_time_and_no_score(servers, model) -> None:
    requests = make_requests(30)
    async with proxy(servers[0].url) as slow, make_pool(slow.url, servers[1].url) as pool:
        await pool.probe()
        slow.slower = 100
        outcomes = await pool.score(requests)
        errors, _ = check(model, pool, requests, outcomes)
        assert errors == 0
        assert slow.received > 1


async def test_an_id_outside_the_vocabulary_reaches_no_server(servers) -> None:
    good = make_requests(3)
    async with proxy(servers[0].url) as watched, make_pool(watched.url) as pool:
        for bad in (ScoreRequest([VOCAB_SIZE], [1]), ScoreRequest([1], [-1])):
            with pytest.raises(ValueError, match="outside the teacher's vocabulary"):
                await pool.score([*good, bad])
        assert watched.received == 0


async def test_a_sequence_beyond_the_servers_memory_is_an_error_and_the_others_are_scored(servers, model) -> None:
    requests = [*make_requests(8), ScoreRequest([5] * (SMALL_CACHE + 10), [6] * 40), *make_requests(9)]
    async with make_pool(servers[1].url) as pool:
        outcomes = await pool.score(requests)
        print("\nSGLang, KV cache too small:", outcomes[8])
        errors, _ = check(model, pool, requests, outcomes)
        assert errors == 1
        assert isinstance(outcomes[8], TeacherError)


async def test_a_stopped_server_is_left_and_taken_back_when_it_continues(servers, model) -> None:
    requests = make_requests(200)
    group = servers[0]._process.pid
    async with make_pool(servers[0].url, servers[1].url, breaker_failures=1) as pool:
        await pool.probe()
        os.killpg(group, signal.SIGSTOP)
        try:
            outcomes = await pool.score(requests)
        finally:
            os.killpg(group, signal.SIGCONT)
        errors, metrics = check(model, pool, requests, outcomes)
        assert errors == 0
        assert (metrics["open_breakers"], metrics["server1_sequences"]) == (1, len(requests))
        await pool.score(make_requests(4))  # a call that looks for servers, the one with the open breaker included
        await until(lambda: pool.links[0].admitted, 20)
        pool.metrics()
        check(model, pool, requests, await pool.score(requests))


async def test_kill_9_in_the_middle_of_scoring_loses_no_sample(servers, model) -> None:
    requests = make_requests(200)
    async with make_pool(servers[0].url, servers[1].url) as pool:
        await pool.probe()
        scoring = asyncio.create_task(pool.score(requests))
        await until(lambda: pool.links[0].stats.sequences > 0, 20)
        os.killpg(servers[0]._process.pid, signal.SIGKILL)
        outcomes = await scoring
        errors, metrics = check(model, pool, requests, outcomes)
        assert errors == 0
        assert 0 < metrics["server0_sequences"] < metrics["server1_sequences"]
        assert metrics["failures"] > 0


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """The same architecture with slightly other weights: a difference that no format check can see."""
    folder = tmp_path_factory.mktemp("other-model")
    for file in tiny_qwen3.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    changed = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.05)
    changed.save_pretrained(folder)
    return folder


async def test_another_model_on_the_same_port_never_scores(
    model, tiny_qwen3: Path, other_model: Path, teacher_python: str, tmp_path: Path
) -> None:
    samples = make_requests(60)
    with (
        make_server(tiny_qwen3, teacher_python, tmp_path / "first.log") as replaced,
        make_server(tiny_qwen3, teacher_python, tmp_path / "second.log") as kept,
    ):
        await asyncio.gather(*(asyncio.to_thread(server.wait_ready) for server in (replaced, kept)))
        url, port = replaced.url, replaced.port
        async with make_pool(url, kept.url) as both, make_pool(url, sample_timeout_s=2) as alone:
            await both.probe()
            await alone.probe()
            await asyncio.to_thread(replaced.stop)  # so that the pools see their connections end, and the port is free
            with make_server(other_model, teacher_python, tmp_path / "other.log", port=port) as impostor:
                await asyncio.to_thread(impostor.wait_ready)
                assert impostor.url == url
                errors, metrics = check(model, both, samples, await both.score(samples))
                assert errors == 0
                assert metrics["server1_sequences"] == len(samples)
                outcomes = await alone.score(samples[:5])
                errors, _ = check(model, alone, samples[:5], outcomes)
                assert errors == 5
                assert all("serves another model than before" in str(outcome) for outcome in outcomes)


async def test_a_server_that_runs_out_of_memory_scores_right_or_not_at_all(
    model, tiny_qwen3: Path, teacher_python: str, tmp_path: Path
) -> None:
    """Its scheduler gets no more memory from the system in the middle of scoring; a fresh one has none spare."""
    rng = random.Random(3)
    long = [ScoreRequest([rng.randrange(VOCAB_SIZE)], rng.choices(range(VOCAB_SIZE), k=900)) for _ in range(12)]
    with make_server(tiny_qwen3, teacher_python, tmp_path / "log") as server:
        await asyncio.to_thread(server.wait_ready)
        assert server._process is not None
        (scheduler,) = [pid for pid in group_members(server._process.pid) if "scheduler" in command_of(pid)]
        async with make_pool(server.url, max_retries=1, sample_timeout_s=8) as pool:
            first = await pool.score(make_requests(3))
            assert check(model, pool, make_requests(3), first)[0] == 0
            resource.prlimit(scheduler, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
            outcomes = await pool.score(long)
            errors, _ = check(model, pool, long, outcomes)
            print(f"\nscheduler without memory: {errors} of {len(long)} errors: {outcomes[-1]}; {server.last_error()}")
            assert errors > 0


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
