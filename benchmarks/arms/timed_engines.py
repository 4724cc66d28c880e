"""Engines that only take time: a student, a teacher and a trainer whose work is a sleep of a stated length.

Everything between them is real: Ray's actors, verl's load balancer, the agent-loop worker and its client that resumes
answers, the teacher's client over HTTP, TransferQueue, the replay buffers and verl's training loop.
"""

import asyncio
import random
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
from aiohttp import web
from verl.workers.rollout.replica import TokenOutput

from verl_ext.ledger.flops import Work
from verl_ext.trainer.adapted import AdaptedTrainer
from verl_ext.trainer.client import ResumingClient
from verl_ext.trainer.engine import READ
from verl_ext.trainer.pipelined import PipelinedTrainer
from verl_ext.trainer.shared_calls import Answering, Answers, Requests
from verl_ext.trainer.trainer import OnPolicyDistillationTrainer

SLOTS = 4
"""Answers that one student replica works on at once."""
VOCABULARY = 300
"""Token ids that are drawn, from 1 on."""
SPREAD = 1.0
"""Standard deviation of the logarithm of an answer's length, heavy-tailed; its mean is 1."""


@dataclass(frozen=True)
class Durations:
    """What a batch costs, seconds, with one replica of each."""

    student: float
    teacher: float
    training: float
    sync: float = 0.1
    heavy: bool = False
    """Answers of log-normal instead of equal length."""


class TimedStudent:
    """vLLM's place: `SLOTS` answers at once, each as long as it says; an abort hands back the tokens so far."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(SLOTS)
        self._open, self._stop = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._version, self._answer_s, self._heavy = 0, 0.0, False
        self._answering = Answering(self.generate)

    async def begin(self, client: str, requests: Requests) -> None:
        await self._answering.begin(client, requests)

    async def ended(self, client: str) -> Answers:
        return await self._answering.ended(client)

    async def set(self, answer_s: float, heavy: bool) -> None:
        """The mean length of an answer, seconds. The weights are version 0 again."""
        self._version, self._answer_s, self._heavy = 0, answer_s, heavy

    async def abort(self) -> None:
        self._open.clear()
        self._stop.set()

    async def resume(self, version: int) -> None:
        self._version = version
        self._stop = asyncio.Event()
        self._open.set()

    async def generate(self, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        await self._open.wait()
        async with self._slots:
            await self._open.wait()
            stop, version = self._stop, self._version
            wanted, whole = sampling_params["max_tokens"], sampling_params["whole"]
            sampled = whole - wanted
            draw = random.Random(sampling_params["seed"])
            ids = [draw.randint(1, VOCABULARY) for _ in range(wanted)]
            first = prompt_ids[-sampled] if sampled else ids[0]
            length = random.Random(first).lognormvariate(-(SPREAD**2) / 2, SPREAD) if self._heavy else 1.0
            token_s = self._answer_s * length / whole
            begun = time.monotonic()
            try:
                await asyncio.wait_for(stop.wait(), wanted * token_s)
                done = min(wanted, int((time.monotonic() - begun) / token_s))
            except TimeoutError:
                done = wanted
        ended = done == wanted
        return TokenOutput(
            token_ids=ids[:done],
            log_probs=[-1.0] * done,
            stop_reason="completed" if ended else "aborted",
            extra_fields={"global_steps": version, "finish_reason": "length" if ended else "abort"},
        )


class TimedTeacher:
    """SGLang's place: one sequence after the other, over HTTP, each as long as it says."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()
        self._sequence_s = 0.0

    async def start(self) -> str:
        """Its URL."""
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def set(self, sequence_s: float) -> None:
        self._sequence_s = sequence_s

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        async with self._one:
            await asyncio.sleep(self._sequence_s * (len(body["input_ids"]) - 1))  # one is the client's own canary
        asked = zip(body["input_ids"], body["logprob_start_len"], strict=True)
        return web.json_response([self._answer(ids, start) for ids, start in asked])

    def _answer(self, ids: list[int], start: int) -> dict[str, Any]:
        entries = [[-1.0 if position else None, token, None] for position, token in enumerate(ids[start:])]
        return {"text": "", "meta_info": {"input_token_logprobs": entries, "cached_tokens": start}}


def start(kind: type, count: int) -> list[Any]:
    """So many actors of a class, which answer as many calls at once as come."""
    actor: Any = ray.remote(kind)
    return [actor.options(num_cpus=0, max_concurrency=10_000).remote() for _ in range(count)]


class SleepingActor:
    """The actor's worker group: an update is a sleep, shared out among the mini-batches of a step."""

    def __init__(self, training_s: float, samples: int) -> None:
        self._dispatch_info = {"actor": [0]}
        self._sample_s = training_s / samples

    def set_loss_fn(self, loss: Any) -> None: ...

    def update_actor(self, batch: Any) -> dict[str, Any]:
        time.sleep(self._sample_s * len(batch))
        nothing_read = {f"{READ}{name}": [0.0] for name in vars(Work())}
        return {"metrics": {"mfu": [0.0], "grad_norm": [1.0]} | nothing_read}


class SleepingSync:
    """The checkpoint engine: students stop, the transfer is a sleep, students go on."""

    def __init__(self, students: list[Any], sync_s: float) -> None:
        self._students, self._sync_s, self._step = students, sync_s, 0

    def sleep_replicas(self) -> None: ...

    def abort_replicas(self) -> None:
        ray.get([student.abort.remote() for student in self._students])

    def update_weights(self, step: int) -> None:
        self._step = step
        time.sleep(self._sync_s)
        ray.get([student.resume.remote(step) for student in self._students])

    def resume_generation_replicas(self) -> None: ...


class TimedClient(ResumingClient):
    """Says how long a whole answer is, which the student's server needs to know of a part."""

    async def generate(
        self, request_id: Any, *, prompt_ids: list[int], sampling_params: dict, **more: Any
    ) -> TokenOutput:
        whole = self.config.actor_rollout_ref.rollout.response_length
        params = {"max_tokens": whole} | sampling_params | {"whole": whole}
        return await super().generate(request_id, prompt_ids=prompt_ids, sampling_params=params, **more)


class TimedSetup(AdaptedTrainer):
    """`_setup` with the engines above in place of worker groups and replicas."""

    actor: Any
    sync: Any

    def _setup(self) -> None:
        self._init_tokenizer()
        self._init_dataloader()
        self._init_dump_executor()
        self.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 1)
        self.actor_rollout_wg = self.actor
        self.checkpoint_manager = self.sync
        self.llm_server_manager = SimpleNamespace(get_replicas=list)  # none that could be gone
        self.ref_policy_wg, self.ref_in_actor = self.actor, False
        self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
        self._load_checkpoint()


class TimedTrainer(TimedSetup, OnPolicyDistillationTrainer): ...


class TimedPipelined(TimedSetup, PipelinedTrainer): ...
