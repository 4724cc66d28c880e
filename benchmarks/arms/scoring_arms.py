"""The arms of `teacher_scoring.py` and `teacher_engines.py`: the same sequences by our pool, and from position 0.

verl_teacher.py has the third, verl's own.

Every arm gives seconds, the log-probs (nats) of the response tokens, and the CPU seconds of client and server.
"""

import asyncio
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil

from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.server.process import ManagedServer, group_members
from verl_ext.teacher.types import Score, ScoreRequest

ARM_TIMEOUT_S = 300


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


class ServerArms:
    """Both ways to ask one server; each call begins with an empty prefix cache. From zero: of SGLang."""

    def __init__(self, server: ManagedServer, vocab_size: int) -> None:
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
        timeout, path = aiohttp.ClientTimeout(total=30), engine_of(self.server.config.engine).flush_path
        if path is None:
            return
        url = f"{self.server.url}{path}?timeout=10"  # seconds that it waits for an idle scheduler
        async with aiohttp.ClientSession(timeout=timeout) as session, session.post(url) as answer:
            answer.raise_for_status()


def own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cpu_of_group(group: int) -> float:
    """CPU seconds so far of a process group's living processes."""
    times = [psutil.Process(pid).cpu_times() for pid in group_members(group)]
    return sum(t.user + t.system for t in times)
