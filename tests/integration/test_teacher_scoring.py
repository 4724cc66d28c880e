"""Real servers on the CPU, SGLang's and vLLM's: log-probs against transformers, and that nothing stays behind."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from verl_ext.run.sweep import group_members
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.actor import ManagedTeacher, with_absolute_paths
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.types import Score, ScoreRequest, TeacherResponseError

torch.set_num_threads(1)  # the server needs the other core
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4  # nats, fp32
VOCAB = 258
API_KEY = "a-secret-for-the-test"
PATHS = {"sglang": ["/generate"], "vllm": ["/v1/completions", "/tokenize", "/health"]}
Sequences = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def server(
    request: pytest.FixtureRequest, tiny_qwen3: Path, teacher_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ManagedServer]:
    # So that a longer prompt is scored in chunks.
    chunked = {"sglang": ["--chunked-prefill-size", "128"], "vllm": ["--max-num-batched-tokens", "128"]}
    config = TeacherConfig(
        model_path=str(tiny_qwen3),
        engine=request.param,
        python=teacher_python if request.param == "sglang" else sys.executable,
        startup_timeout_s=240,
        context_length=1024,
        extra_args=chunked[request.param],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(config.api_key_env, API_KEY)
        with ManagedServer(config, tmp_path_factory.mktemp("teacher") / "teacher.log") as server:
            server.wait_ready()
            yield server


def open_pool(server: ManagedServer, **changes: Any) -> TeacherPool:
    return TeacherPool(dataclasses.replace(server.config, **changes), VOCAB, [server.url])


def random_sequences(count: int, seed: int = 1) -> Sequences:
    """Prompts of 1 to 300 tokens in groups of four that share one, responses of 1 to 60."""
    rng = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))]

    prompts = [tokens(300) for _ in range((count + 3) // 4)]
    return [(prompts[i // 4], tokens(60)) for i in range(count)]


def reference_logprobs(model: torch.nn.Module, sequences: Sequences) -> list[float]:
    """transformers' log-probs of all response tokens, one sequence at a time, no padding."""
    out: list[float] = []
    with torch.no_grad():
        for prompt, response in sequences:
            ids = torch.tensor([prompt + response])
            logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            out += logprobs.gather(1, torch.tensor(response)[:, None])[:, 0].tolist()
    return out


async def score_all(pool: TeacherPool, sequences: Sequences, **more: Any) -> list[float]:
    """Scores in the order of `sequences`, asked for in another one."""
    order = random.Random(3).sample(range(len(sequences)), len(sequences))
    outcomes = await pool.score([ScoreRequest(*sequences[i], **more) for i in order])
    scores = dict(zip(order, outcomes, strict=True))
    return [float(logprob) for i in range(len(sequences)) for logprob in scored(scores[i]).logprobs]


def scored(outcome: object) -> Score:
    assert isinstance(outcome, Score), outcome
    return outcome


def greatest_difference(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


@pytest.fixture(scope="module")
def reference(tiny_qwen3: Path) -> tuple[Sequences, list[float]]:
    """Sequences with 5,000 response tokens, and transformers' log-probs."""
    sequences = random_sequences(170)
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    expected = reference_logprobs(model, sequences)
    assert len(expected) > 5000
    return sequences, expected


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"prime": False, "max_concurrency": 1, "batch_tokens": 1}, {}),  # first, so that nothing is cached
        ({"prime": True, "max_concurrency": 4, "batch_tokens": 2048}, {}),
        ({"prime": True, "max_concurrency": 2, "batch_tokens": 16384}, {"top_k": 8}),
    ],
    ids=["one by one", "primed and batched", "cached, with top-k"],
)
async def test_every_path_equals_transformers_and_a_shift_does_not(
    server: ManagedServer, reference: tuple[Sequences, list[float]], settings: dict[str, Any], more: dict[str, Any]
) -> None:
    sequences, expected = reference
    prompt_tokens = sum(len(prompt) for prompt, _ in sequences)
    async with open_pool(server, **settings) as pool:
        found = await score_all(pool, sequences, **more)
        metrics = pool.metrics()
    difference = greatest_difference(found, expected)
    print(f"\n{len(found)} log-probs, greatest difference to transformers {difference:.2e} nats, {metrics}")
    assert difference < TOLERANCE
    assert greatest_difference(found[1:], expected[:-1]) > 100 * TOLERANCE  # one position off would be seen
    if settings["prime"] and server.config.engine == "sglang":
        assert metrics["cached_tokens"] > 0.6 * prompt_tokens


async def test_one_norm_scaled_by_a_thousandth_is_seen(
    server: ManagedServer, tiny_qwen3: Path, reference: tuple[Sequences, list[float]]
) -> None:
    sequences = reference[0][:40]
    async with open_pool(server) as pool:
        found = await score_all(pool, sequences)
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(1.001)
    assert greatest_difference(found, reference_logprobs(model, sequences)) > 10 * TOLERANCE


async def test_top_k_equals_transformers(server: ManagedServer, tiny_qwen3: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    (prompt, response), mask = random_sequences(1, seed=5)[0], [1, 0, 1, 1]
    response = response[:4]
    async with open_pool(server) as pool:
        (outcome,) = await pool.score([ScoreRequest(prompt, response, mask, top_k=VOCAB)])
    score = scored(outcome)
    with torch.no_grad():
        logprobs_RV = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    logprobs_RV[1] = 0  # masked
    assert score.top_ids is not None
    assert score.top_logprobs is not None
    of_top = logprobs_RV.gather(1, torch.from_numpy(score.top_ids).long())
    torch.testing.assert_close(torch.from_numpy(score.top_logprobs), of_top, atol=TOLERANCE, rtol=0)
    assert [sorted(score.top_ids[i].tolist()) for i in (0, 2, 3)] == [list(range(VOCAB))] * 3


async def test_named_tokens_equal_transformers_at_each_position(server: ManagedServer, tiny_qwen3: Path) -> None:
    """Beside requests that name none; over chunks of the prompt; the vocabulary's last id among them. vLLM refuses."""
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    draw = np.random.default_rng(0)
    requests = []
    for number, (prompt, response) in enumerate(random_sequences(12, seed=6)):
        ids = np.array([draw.choice(VOCAB, 5, replace=False) for _ in response], np.int32)
        ids[0, 0], ids[-1, 1] = VOCAB - 1, -1
        mask = [int(i != 1) for i in range(len(response))]
        requests.append(ScoreRequest(prompt, response, mask, support_ids=ids if number % 3 else None))
    async with open_pool(server, prime=True) as pool:
        if server.config.engine == "vllm":
            with pytest.raises(ValueError, match=r"^teacher\.engine=vllm scores no tokens that it is given"):
                await pool.score(requests)
            return
        outcomes = await pool.score(requests)
    largest = 0.0
    for request, outcome in zip(requests, outcomes, strict=True):
        score = scored(outcome)
        ids, logprobs = score.top_ids, score.top_logprobs
        if request.support_ids is None:
            assert ids is None
            continue
        assert ids is not None
        assert logprobs is not None
        with torch.no_grad():
            tokens = torch.tensor([[*request.prompt_ids, *request.response_ids]])
            wanted = model(tokens).logits[0, len(request.prompt_ids) - 1 : -1].log_softmax(-1)
        for position, keep in enumerate(request.response_mask or ()):
            for column, token in enumerate(request.support_ids[position] if keep else ()):
                assert ids[position, column] == token
                if token < 0:
                    assert logprobs[position, column] == -np.inf
                else:
                    largest = max(largest, abs(float(logprobs[position, column] - wanted[position, token])))
            if not keep:
                assert not ids[position].any()
                assert not logprobs[position].any()
    print(f"\ngreatest difference to transformers {largest:.2e} nats")
    assert 0 < largest < TOLERANCE


async def test_long_and_edge_requests(server: ManagedServer, tiny_qwen3: Path) -> None:
    """The extremes of what a run sends: one token, the last vocabulary id, a full context, more than the context."""
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32).eval()
    rng = random.Random(2)
    last = VOCAB - 1
    long = [rng.randrange(last) for _ in range(1000)]
    sequences = [([5], [6]), ([last], [last, 3, last]), (long[:10], long[10:]), (long[:990], long[990:])]
    async with open_pool(server) as pool:
        found = await score_all(pool, sequences)
        assert greatest_difference(found, reference_logprobs(model, sequences)) < TOLERANCE
        too_long, good = await pool.score([ScoreRequest(long, long), ScoreRequest([1], [2])])
        assert isinstance(too_long, TeacherResponseError)
        assert "400" in str(too_long)
        scored(good)
        await pool.probe()  # and the server lives on


async def test_api_key_is_needed_and_shows_nowhere(server: ManagedServer) -> None:
    for given in (None, "", "Bearer wrong", f"Bearer {API_KEY}0", API_KEY):
        wrong = {} if given is None else {"Authorization": given}
        for path in PATHS[server.config.engine]:
            request = urllib.request.Request(f"{server.url}{path}", b"{}", wrong)
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(request, timeout=10)
    assert API_KEY not in server.log_path.read_text()
    assert server._process is not None
    for pid in group_members(server._process.pid):
        assert API_KEY not in Path(f"/proc/{pid}/cmdline").read_text()
        assert API_KEY not in Path(f"/proc/{pid}/environ").read_text()


async def test_a_server_loads_no_adapter_while_it_runs(server: ManagedServer) -> None:
    """vLLM then has no such path; SGLang has it, and refuses, since it was not started with --enable-lora."""
    path, status, said = {
        "vllm": ("/v1/load_lora_adapter", 404, ""),
        "sglang": ("/load_lora_adapter", 400, "LoRA is not enabled"),
    }[server.config.engine]
    adapter = json.dumps({"lora_name": "a", "lora_path": "/nowhere"}).encode()
    words = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}{path}", adapter, words), timeout=10)
    assert refused.value.code == status
    assert said in refused.value.read().decode()


def test_port_in_use_is_said_before_starting(server: ManagedServer, tmp_path: Path) -> None:
    config = TeacherConfig(model_path="m", python=server.config.python, port=server.port)
    with pytest.raises(ValueError, match=rf"teacher\.port: cannot listen on 127\.0\.0\.1:{server.port}"):
        ManagedServer(config, tmp_path / "log").start()


def test_stop_leaves_no_process(server: ManagedServer) -> None:
    """Last user of the shared server."""
    assert server._process is not None
    group = server._process.pid
    assert len(group_members(group)) >= 4  # guard, server, and what that starts
    started = time.monotonic()
    server.stop()
    assert group_members(group) == []
    assert time.monotonic() - started < 10


def test_a_server_that_dies_is_reported_with_its_log(tmp_path: Path, teacher_python: str) -> None:
    (tmp_path / "empty").mkdir()
    config = TeacherConfig(model_path=str(tmp_path / "empty"), python=teacher_python)
    server = ManagedServer(config, tmp_path / "log")
    server.start()
    with pytest.raises(RuntimeError, match=r"(?s)the teacher ended with status 1; end of .*Error"):
        server.wait_ready(120)


PARENT = """
import sys, time
from pathlib import Path
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer
server = ManagedServer(TeacherConfig(model_path=sys.argv[1], python=sys.argv[2]), Path(sys.argv[3]))
server.start()
print(server._process.pid, flush=True)
time.sleep(300)
"""


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.1)


def test_kill_9_of_the_parent_while_loading_leaves_no_orphan(
    tiny_qwen3: Path, teacher_python: str, tmp_path: Path
) -> None:
    """While loading, because SGLang's own children do not watch their parent yet."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny_qwen3), teacher_python, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    wait_until(lambda: len(group_members(group)) >= 4, 120)  # the children exist, and import
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not group_members(group), 10)


def group_of_port(port: int) -> int:
    """Process group of the server that was started with this port."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"--port\0{port}\0" in entry.read_text(errors="replace"):
                return os.getpgid(int(entry.parent.name))
    raise AssertionError(f"no server on port {port}")


async def test_managed_teacher_serves_and_dies_with_its_actor(
    tiny_qwen3: Path, teacher_python: str, tmp_path: Path
) -> None:
    config = with_absolute_paths(TeacherConfig(model_path=str(tiny_qwen3), python=teacher_python))
    ray.init("local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    try:
        actor = ManagedTeacher.remote(config, str(tmp_path / "log"))
        ray.get(actor.start.remote(), timeout=60)
        url = ray.get(actor.wait_ready.remote(), timeout=240)
        async with TeacherPool(config, VOCAB, [url]) as pool:
            await pool.probe()
        group = group_of_port(int(url.rpartition(":")[2]))
        assert len(group_members(group)) >= 4
        ray.kill(actor)
        wait_until(lambda: not group_members(group), 10)
    finally:
        ray.shutdown()
