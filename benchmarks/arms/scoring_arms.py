"""The arms of `teacher_scoring.py`: the same sequences scored by our pool, from position 0, and as verl 0.9.1 does.

    python -m benchmarks.arms.scoring_arms MODEL MAX_MODEL_LEN   # verl's teacher as a child process: `VerlTeacher`

Every arm gives seconds, the log-probs (nats) of the response tokens, and the CPU seconds of client and server.
"""

import asyncio
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import orjson
import psutil

from verl_ext.sampling.vllm import prepare_engine_environment
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.server.process import SGLangServer, group_members
from verl_ext.teacher.types import Score, ScoreRequest

ARM_TIMEOUT_S = 300
START_TIMEOUT_S = 240
REPLY_BYTES = 1 << 26


@dataclass(frozen=True)
class Model:
    """Shape of a random Qwen3, tied embeddings, heads of 32 and half as many of them for keys and values."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int


@dataclass(frozen=True)
class Workload:
    """What a round scores: `prompts` prompts, `n` responses each; lengths in tokens."""

    prompt: int
    response: int
    n: int
    prompts: int

    @property
    def name(self) -> str:
        return f"{self.prompt}/{self.response}/{self.n}"

    def requests(self, vocab_size: int, seed: int) -> list[ScoreRequest]:
        """Random ids, the responses of a prompt side by side."""
        rng = random.Random(seed)
        prompts = [rng.choices(range(vocab_size), k=self.prompt) for _ in range(self.prompts)]
        return [
            ScoreRequest(prompt, rng.choices(range(vocab_size), k=self.response))
            for prompt in prompts
            for _ in range(self.n)
        ]


@dataclass(frozen=True)
class Outcome:
    """One arm, one round."""

    seconds: float
    logprobs: list[list[float]]
    """Of each request's response tokens."""
    client_cpu: float
    """CPU seconds of this process; 0 where client and server are one."""
    server_cpu: float


def write_model(model: Model, folder: Path) -> None:
    """Random fp32 weights and a tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    heads = model.hidden_size // 32
    config = Qwen3Config(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    write_tokenizer(folder, model.vocab_size)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Every id is a word; the engines load one, nothing is tokenized."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t1"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t0", pad_token="t1").save_pretrained(folder)


class SGLangArms:
    """Both ways to ask one SGLang server; each call begins with an empty prefix cache."""

    def __init__(self, server: SGLangServer, vocab_size: int) -> None:
        self.server = server
        self.vocab_size = vocab_size
        # The guard, whose command line names the port, leads the server's process group.
        self._group = next(p.pid for p in psutil.Process().children() if str(server.port) in p.cmdline())

    async def ours(self, requests: Sequence[ScoreRequest]) -> Outcome:
        """`TeacherPool` with its defaults, new, and connected before the clock starts."""
        async with TeacherPool(self.server.config, self.vocab_size, [self.server.url]) as pool:
            await pool.probe()

            async def score() -> list[list[float]]:
                outcomes = await pool.score(requests)
                return [outcome.logprobs.tolist() for outcome in outcomes if isinstance(outcome, Score)]

            return await self._measure(score)

    async def from_zero(self, requests: Sequence[ScoreRequest]) -> Outcome:
        """One request a sample, all at once, log-probs of every position: what verl, slime and miles send to SGLang.

        verl also has one token sampled (`max_tokens=1`); this arm does not. Up to 100 connections, aiohttp's default:
        with the pool's own 4 the server batches less and this arm was slower.
        """
        async with aiohttp.ClientSession() as session:

            async def score_one(request: ScoreRequest) -> list[float]:
                body = {
                    "input_ids": [*request.prompt_ids, *request.response_ids],
                    "sampling_params": {"max_new_tokens": 0, "temperature": 0},
                    "return_logprob": True,
                    "logprob_start_len": 0,
                }
                headers = {"Content-Type": "application/json"}
                async with session.post(
                    f"{self.server.url}/generate", data=orjson.dumps(body), headers=headers
                ) as answer:
                    answer.raise_for_status()
                    entries = orjson.loads(await answer.read())["meta_info"]["input_token_logprobs"]
                return [entry[0] for entry in entries[len(request.prompt_ids) :]]

            return await self._measure(lambda: asyncio.gather(*(score_one(request) for request in requests)))

    async def _measure(self, score: Callable[[], Any]) -> Outcome:
        await self._flush()
        server_cpu, client_cpu, started = cpu_of_group(self._group), own_cpu(), time.perf_counter()
        logprobs = await asyncio.wait_for(score(), ARM_TIMEOUT_S)
        seconds = time.perf_counter() - started
        return Outcome(seconds, logprobs, own_cpu() - client_cpu, cpu_of_group(self._group) - server_cpu)

    async def _flush(self) -> None:
        timeout = aiohttp.ClientTimeout(total=30)
        url = f"{self.server.url}/flush_cache?timeout=10"  # seconds that it waits for an idle scheduler
        async with aiohttp.ClientSession(timeout=timeout) as session, session.post(url) as answer:
            answer.raise_for_status()


def own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cpu_of_group(group: int) -> float:
    """CPU seconds so far of a process group's living processes."""
    times = [psutil.Process(pid).cpu_times() for pid in group_members(group)]
    return sum(t.user + t.system for t in times)


class VerlTeacher:
    """verl 0.9.1's vLLM teacher in a child process; `async with VerlTeacher(...) as teacher`.

    Included: vLLM's AsyncLLM in its own processes with the engine arguments of verl's `launch_server` and
    `distillation.yaml`, the sampling parameters of `_get_teacher_sampling_params`, every sample its own request, all
    at once, verl's `extract_prompt_logprobs` and the two tensors a sample. Left out, in verl's favour: Ray's remote
    calls, the load balancer, and padding.
    """

    def __init__(self, model: Path, max_model_len: int, log: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.arms.scoring_arms", str(model), str(max_model_len)]
        self._log = log
        self._child: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "VerlTeacher":
        with self._log.open("wb") as log:
            self._child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=REPLY_BYTES,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"},
            )
        try:
            await self._read(START_TIMEOUT_S)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exception: object) -> None:
        assert self._child is not None
        for pid in group_members(self._child.pid):
            os.kill(pid, signal.SIGKILL)
        await self._child.wait()

    async def score(self, requests: Sequence[ScoreRequest]) -> Outcome:
        """The clock runs in the child, from the first request to the last sample's tensors."""
        assert self._child is not None
        assert self._child.stdin is not None
        before = cpu_of_group(self._child.pid)
        self._child.stdin.write(orjson.dumps([[*r.prompt_ids, *r.response_ids] for r in requests]) + b"\n")
        await self._child.stdin.drain()
        reply = await self._read(ARM_TIMEOUT_S)
        logprobs = [row[len(r.prompt_ids) - 1 : -1] for row, r in zip(reply["logprobs"], requests, strict=True)]
        return Outcome(reply["seconds"], logprobs, 0.0, cpu_of_group(self._child.pid) - before)

    async def _read(self, timeout_s: float) -> Any:
        assert self._child is not None
        assert self._child.stdout is not None
        line = await asyncio.wait_for(self._child.stdout.readline(), timeout_s)
        if not line:
            raise RuntimeError(f"verl's teacher ended: {self._log.read_text(errors='replace')[-2000:]}")
        return json.loads(line)


async def serve_verl_teacher(model: str, max_model_len: int, replies: int) -> None:
    """Score each line of stdin (a JSON list of sequences) and answer with a line on `replies`."""
    prepare_engine_environment()
    import torch
    from verl.workers.rollout.vllm_rollout.utils import extract_prompt_logprobs
    from vllm import SamplingParams, TokensPrompt
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            dtype="float32",
            max_model_len=max_model_len,
            max_num_seqs=1024,
            max_num_batched_tokens=8192,
            enable_chunked_prefill=True,
            enable_prefix_caching=True,  # vLLM does not read it for a request with prompt log-probs
            logprobs_mode="processed_logprobs",
            enforce_eager=True,
            distributed_executor_backend="mp",
            scheduling_policy="fcfs",
            disable_log_stats=True,
        )
    )

    async def score_one(ids: list[int]) -> list[float]:
        params = SamplingParams(
            max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False, repetition_penalty=1.0, logprobs=None
        )
        final = None
        async for output in engine.generate(TokensPrompt(prompt_token_ids=ids), params, uuid4().hex):
            final = output
        assert final is not None
        fields: dict[str, list] = {}
        extract_prompt_logprobs(final, 0, fields)
        teacher_ids = torch.tensor(fields["prompt_ids"], dtype=torch.int32)
        teacher_logprobs = torch.tensor(fields["prompt_logprobs"])
        assert teacher_ids.shape == teacher_logprobs.shape == (len(ids), 1)
        return teacher_logprobs[:, 0].tolist()

    await score_one([0, 1])
    os.write(replies, b"{}\n")
    while line := await asyncio.to_thread(sys.stdin.readline):
        sequences = json.loads(line)
        started = time.perf_counter()
        logprobs = await asyncio.gather(*(score_one(ids) for ids in sequences))
        reply = orjson.dumps({"seconds": time.perf_counter() - started, "logprobs": logprobs}) + b"\n"
        with os.fdopen(os.dup(replies), "wb") as out:
            out.write(reply)
    engine.shutdown()


if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever prints goes to the log
    asyncio.run(serve_verl_teacher(sys.argv[1], int(sys.argv[2]), answers))
