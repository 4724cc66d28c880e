"""A whole run in this process: verl's trainer, agent-loop worker and TransferQueue as they are, our scorer over HTTP.

Played is only what needs a cluster or an engine: the sampler (vLLM), the actor's worker group and the weight sync.
"""

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transfer_queue as tq
from fake_sglang import FakeSGLang, serve
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from transfer_queue import interface
from transfer_queue.controller import TransferQueueController
from transfer_queue.storage.simple_storage import SimpleStorageUnit
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
from verl.workers.rollout.replica import TokenOutput

from verl_ext.demo.tiny_pair import CHAT_TEMPLATE, build_model, train_tokenizer
from verl_ext.run.files import save_resolved_config
from verl_ext.run.metrics import read_metrics
from verl_ext.trainer.adapted import AdaptedTrainer
from verl_ext.trainer.agent_loop import DistillationAgentLoopWorker
from verl_ext.trainer.engine import READ
from verl_ext.trainer.failures import FILE as FAILED_ROWS
from verl_ext.trainer.pipeline_config import SYNC
from verl_ext.trainer.pipelined import PipelinedTrainer
from verl_ext.trainer.presence import Presence
from verl_ext.trainer.runner import plain_class
from verl_ext.trainer.support import ASKED, IDS, LOGPROBS
from verl_ext.trainer.trainer import OnPolicyDistillationTrainer

LABELS = ("de", "en", "fr")
TEACHER_PROMPT = "Say the language of: "


@contextlib.contextmanager
def queue_in_this_process() -> Iterator[list[tuple[str, int]]]:
    """The real TransferQueue without Ray: controller and storage unit answer from threads of this process.

    Yields:
        Addresses and ports of the controller, which asks nobody for a key.
    """
    controller = plain_class(TransferQueueController)()
    storage = plain_class(SimpleStorageUnit)({"num_data_storage_units": 1})
    config = OmegaConf.create({}, flags={"allow_objects": True})
    config = OmegaConf.merge(config, OmegaConf.load(str(resources.files("transfer_queue") / "config.yaml")))
    config.controller.zmq_info = controller.get_zmq_server_info()
    config.backend.SimpleStorage.zmq_info = {"unit": storage.get_zmq_server_info()}
    client = interface._maybe_create_tq_client(config)
    try:
        with mock.patch.object(tq, "init"):  # looks for a controller among Ray's actors
            info = controller.get_zmq_server_info()
            yield [(info.ip, port) for port in info.ports.values()]
    finally:
        client.close()
        interface._TQ_CLIENT = None
        storage.shutdown()


def empty_queue() -> None:
    for partition, keys in (tq.kv_list() or {}).items():
        if keys:
            tq.kv_clear(keys=list(keys), partition_id=partition)


def write_student(folder: Path) -> Path:
    """A tiny model whose chat template takes a keyword, `mark`."""
    tokenizer = train_tokenizer([TEACHER_PROMPT], LABELS, 300)
    tokenizer.chat_template = CHAT_TEMPLATE + "{%- if mark %}{{- mark }}{%- endif %}"
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = build_model(tokenizer, shape | {"num_key_value_heads": 1, "head_dim": 16})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int, **columns: list[Any]) -> Path:
    """Rows `text 0` (label `de`), `text 1` (`en`) and so on, with the columns of `data.create`."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"text {i}"}],
            "teacher_messages": [{"role": "user", "content": f"{TEACHER_PROMPT}text {i}"}],
            "data_source": "language",
            "reward_model": {"style": "rule", "ground_truth": LABELS[i % len(LABELS)]},
            "extra_info": {"index": i},
        }
        for i in range(count)
    ]
    for name, values in columns.items():
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


class Sampler:
    """Plays vLLM: an answer is drawn from its request's seed, or anew for each request without one."""

    def __init__(self, vocabulary: int, longest: int) -> None:
        self.vocabulary, self.longest = vocabulary, longest
        self.answers: list[list[int]] = []
        """What is answered in place of that, in turns."""
        self.reply: Callable[[list[int]], list[int]] | None = None
        """What is answered to a prompt, in place of all that."""
        self.finish: dict[int, str] = {}
        """By length, why an answer ended; else one of `longest` tokens was cut off there."""
        self.refused: list[int] = []
        """Numbers of the requests, from 0, that end in an error."""
        self.requests: list[dict[str, Any]] = []
        self.weights = 0
        """Step of the last weight sync, which vLLM notes on every sample."""
        self.lag: dict[int, int] = {}
        """By the number of a request, weight versions by which its first token is older than its last."""

    async def generate(self, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        number = len(self.requests)
        self.requests.append({"prompt_ids": prompt_ids, **sampling_params})
        if number in self.refused:
            raise RuntimeError("the engine is out of memory")
        draw = random.Random(sampling_params.get("seed", number))
        ids = [draw.randrange(self.vocabulary) for _ in range(draw.randint(2, 5))]
        if self.answers:
            ids = self.answers[number % len(self.answers)]
        if self.reply is not None:
            ids = self.reply(prompt_ids)
        reason = self.finish.get(len(ids), "length" if len(ids) >= self.longest else "stop")
        first = self.weights - self.lag.get(number, 0)
        versions = {"global_steps": self.weights, "min_global_steps": first, "max_global_steps": self.weights}
        parts = [[self.weights, len(ids)]] if first == self.weights else [[first, 1], [self.weights, len(ids) - 1]]
        likely = {}
        if columns := sampling_params.get(ASKED):  # token 10, which the answers of all positions share, and some more
            tokens = [[10, *(11 + (place + column) % 7 for column in range(columns - 1))] for place in range(len(ids))]
            likely = {IDS: np.array(tokens, np.int32), LOGPROBS: np.log(np.full((len(ids), columns), 0.5 / columns))}
        return TokenOutput(
            token_ids=list(ids),
            log_probs=[-draw.random() for _ in ids],
            extra_fields={**likely, **versions, "finish_reason": reason, "tokens_by_version": parts},
        )


class Actor:
    """Plays the actor's worker group: keeps what every update brings, as it stands in the queue."""

    def __init__(self) -> None:
        self._dispatch_info = {"actor": [0]}
        self.updates: list[list[dict[str, Any]]] = []
        """The samples of every update: one dictionary of fields each."""
        self.requests: list[dict[str, Any]] = []
        """What the trainer said beside them."""
        self.saved: list[int] = []
        self.loaded: list[str] = []
        self.loss: Any = None
        self.norms: list[float] = []
        """Of the gradients of the next updates; 1 from then on."""
        self.read: dict[str, list[float]] = {f"{READ}{name}": [1.0] for name in ("tokens", "pairs", "rows")}
        """What it says to have read in an update, as verl hands it on."""

    def set_loss_fn(self, loss: Any) -> None:
        self.loss = loss

    def update_actor(self, batch: Any) -> dict[str, Any]:
        self.requests.append(dict(batch.extra_info))
        self.updates.append(samples_of(batch))
        norm = self.norms.pop(0) if self.norms else 1.0
        return {"metrics": {"mfu": [0.0], "grad_norm": [norm]} | self.read}

    def compute_log_prob(self, batch: Any) -> Any:
        """0.01 times its position is the (negative) log-prob of every token."""
        lengths = [len(sample["input_ids"]) for sample in samples_of(batch)]
        positions = [torch.arange(length, dtype=torch.float32) for length in lengths]
        fields = {"log_probs": [-0.01 * row for row in positions], "entropy": [row * 0 for row in positions]}
        nested = {key: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for key, rows in fields.items()}
        return tq.kv_batch_put(batch.keys, batch.partition_id, TensorDict(nested, batch_size=len(batch)))

    compute_ref_log_prob = compute_log_prob

    def save_checkpoint(self, path: str, _remote: str | None, step: int, **_: Any) -> None:
        (Path(path) / "huggingface").mkdir(parents=True)  # never a second time
        (Path(path) / "huggingface" / "config.json").write_text(f'{{"step": {step}}}')
        self.saved.append(step)

    def load_checkpoint(self, *, local_path: str, **_: Any) -> None:
        self.loaded.append(local_path)


def samples_of(batch: Any) -> list[dict[str, Any]]:
    """Everything that the queue holds of a batch."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id)
    values_of = {key: data.get(key) for key in sorted(data.keys())}
    columns = {
        key: value.unbind() if isinstance(value, torch.Tensor) else value.tolist() for key, value in values_of.items()
    }
    return [{key: values[i] for key, values in columns.items()} for i in range(len(batch))]


@dataclass
class WeightSync:
    sampler: Sampler
    steps: list[int] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def update_weights(self, step: int) -> None:
        self.calls.append("update")
        self.steps.append(step)
        self.sampler.weights = step

    def sleep_replicas(self) -> None:
        self.calls.append("sleep")

    def abort_replicas(self) -> None:
        self.calls.append("abort")

    def resume_generation_replicas(self) -> None:
        self.calls.append("resume")


class LocalSetup(AdaptedTrainer):
    """`_setup` builds what verl's builds, less the cluster."""

    actor: Actor
    sync: WeightSync
    _presence = Presence({})  # pyright: ignore[reportAssignmentType]

    def _setup(self) -> None:
        self._init_tokenizer()
        self._init_dataloader()
        self._init_dump_executor()
        self.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 1)
        self.actor_rollout_wg = self.actor
        self.checkpoint_manager = self.sync
        self.ref_policy_wg, self.ref_in_actor = self.actor, False
        self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
        self._load_checkpoint()

    def _workers(self, method: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
        """Asked of the one worker instead of verl's actors."""
        del timeout
        run = self.agent_loop_manager
        return [run.wait(getattr(run.worker, method)(*arguments))]


class LocalTrainer(LocalSetup, OnPolicyDistillationTrainer): ...


class LocalPipelined(LocalSetup, PipelinedTrainer): ...


@contextlib.contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread, as an actor's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class LocalRun:
    """Trainer and worker over one configuration; lives inside `queue_in_this_process`, ends with `close`."""

    def __init__(self, config: DictConfig, teachers: Sequence[str] = (), reward_workers: Sequence[Any] = ()) -> None:
        """`teachers`: names of several, each with a server of its own."""
        self.config = config
        with contextlib.ExitStack() as stack:
            self._loop = stack.enter_context(running_loop())
            self.teachers = [FakeSGLang() for _ in range(max(1, len(teachers)))]
            for teacher in self.teachers:
                server = self.wait(serve(teacher))
                stack.callback(lambda server=server: self.wait(server.cleanup()))
            urls = [teacher.url for teacher in self.teachers]
            config.teacher.urls = urls[:1]
            config.teachers = {name: {"urls": [url]} for name, url in zip(teachers, urls, strict=False)}
            # JSON is YAML, and written ten times as fast.
            save_resolved_config(json.dumps(OmegaConf.to_container(config)), config.run_dir)
            self.worker = self.wait(self._make_worker(reward_workers))
            stack.callback(lambda: self.wait(self.worker.teacher.close()))
            self.sampler = Sampler(len(self.worker.tokenizer), config.data.max_response_length)
            self.worker.llm_client = self.sampler
            for teacher in self.teachers:
                teacher.vocabulary = self.sampler.vocabulary
            self.actor, self.sync = Actor(), WeightSync(self.sampler)
            ADV_ESTIMATOR_REGISTRY.pop(config.algorithm.adv_estimator, None)  # a process of verl's has one trainer
            self.trainer = (LocalTrainer if config.pipeline.mode == SYNC else LocalPipelined)(self.config)
            self.trainer.actor, self.trainer.sync = self.actor, self.sync
            self.trainer.init()
            self.close = stack.pop_all().close

    async def _make_worker(self, reward_workers: Sequence[Any]) -> DistillationAgentLoopWorker:
        return DistillationAgentLoopWorker(self.config, llm_client=None, reward_loop_worker_handles=reward_workers)

    @property
    def teacher(self) -> FakeSGLang:
        (teacher,) = self.teachers
        return teacher

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Of all updates so far."""
        return [sample for update in self.actor.updates for sample in update]

    @property
    def metrics(self) -> list[dict[str, float]]:
        return read_metrics(f"{self.config.run_dir}/metrics.jsonl")

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Of `failed_rows.jsonl`."""
        return [json.loads(line) for line in Path(self.config.run_dir, FAILED_ROWS).read_text().splitlines()]

    def ids(self, text: str) -> list[int]:
        return self.worker.tokenizer.encode(text, add_special_tokens=False)

    def fit(self) -> "LocalRun":
        """Train to `trainer.total_training_steps`, through verl's own loop."""
        self.trainer.fit(self)  # pyright: ignore[reportArgumentType]  `generate_sequences` is all it asks for
        return self

    def generate_sequences(self, batch: Any) -> None:
        """As verl's manager, with one worker; returns when every sample is in the queue."""

        async def sample() -> None:
            await self.worker.generate_sequences(batch)
            await asyncio.gather(*self.worker.background_tasks)

        self.wait(sample())

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)
