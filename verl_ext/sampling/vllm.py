"""vLLM in this process: it answers conversations, and ends before Python does."""

import contextlib
import importlib.util
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from verl_ext.ledger.meter import Meter, shape_or_none
from verl_ext.run.file_hashes import CHAT_FILES, hash_of_model
from verl_ext.run.loopback import ENVIRONMENT
from verl_ext.run.models import load_tokenizer, render_chat
from verl_ext.sampling.interrupts import descendants, ignore_signals, kill, start_apart
from verl_ext.sampling.types import Answer, EngineConfig, Request, Sample, SamplingConfig

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import CompletionOutput, RequestOutput

ENGINE_THREADS = ("EngineCoreOutputQueueThread", "MPClientEngineMonitor")  # vllm/v1/engine/core_client.py
JOIN_S = 30.0
INTERRUPTED_S = 0.5
"""Seconds that vLLM has to end by itself after Ctrl-C."""
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py")
"""What is fetched of a hub name: no weights in formats that vLLM does not read."""


def hash_of_sampler(model: str) -> str:
    """Hash of what decides a model's answers, chat template included; a hub name is downloaded first."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, allow_patterns=list(MODEL_FILES)))
    return hash_of_model(folder, also=CHAT_FILES)


class VllmSampler:
    """vLLM in this process, from `with` to its end."""

    def __init__(
        self,
        model: str,
        sampling: SamplingConfig,
        engine: EngineConfig,
        requests: Sequence[Request],
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """`requests`: all that will be asked; the longest sets the context, so that the KV cache is not too large.

        `template_kwargs` go to the chat template; None: those of `sampling`.

        Raises:
            ValueError: without vLLM or a device for it, or if a prompt leaves the context no room for an answer.
        """
        on_gpu = prepare_engine_environment()
        if importlib.util.find_spec("vllm") is None:
            raise ValueError("vLLM is not installed in this environment: run `make setup`, or serve the model")
        from transformers import AutoConfig
        from vllm import LLM
        from vllm.platforms import current_platform

        if current_platform.is_unspecified():
            raise ValueError(
                "vLLM is installed here for GPUs and finds none: run this where `nvidia-smi` lists one, or install the "
                "build for CPUs with `make setup`"
            )

        tokenizer = load_tokenizer(model)
        self._sampling = sampling
        kwargs = sampling.template_kwargs if template_kwargs is None else template_kwargs
        self._prompts = {r.index: render_chat(tokenizer, r.messages, kwargs) for r in requests}
        index, longest = max(((i, len(ids)) for i, ids in self._prompts.items()), key=lambda item: item[1])
        model_config = AutoConfig.from_pretrained(model).get_text_config()
        limit = model_config.max_position_embeddings
        if longest >= limit:
            raise ValueError(f"row {index}: its prompt has {longest} tokens, {model} takes {limit}; cut it (max_chars)")
        shape = shape_or_none(model, model_config.to_dict())
        self.meter = Meter(shape, gpus=engine.tp if on_gpu else 0, devices=engine.tp if on_gpu else 1)
        self._llm = start_apart(
            lambda: LLM(
                model=model,
                dtype=engine.dtype,  # pyright: ignore[reportArgumentType]  vLLM checks it
                tensor_parallel_size=engine.tp,
                gpu_memory_utilization=engine.gpu_memory_utilization,
                max_model_len=min(limit, longest + sampling.max_tokens),
                enforce_eager=engine.enforce_eager or not on_gpu,
                # vLLM rewinds a request's generator after a part of its prompt, which a CPU generator cannot do.
                enable_chunked_prefill=on_gpu,
                generation_config="vllm",
                load_format="safetensors",  # never a pickle, where a name of the hub has both or that alone
                seed=sampling.seed,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            close(self._llm)
            return
        ignore_signals()
        started = descendants()
        close(self._llm, INTERRUPTED_S)
        kill(started)

    def take_weights(self, model: str) -> None:
        """Answer with the weights of another model folder from now on: one with the same tensors and tokenizer."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
        self._llm.reset_prefix_cache()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(o.text, len(o.token_ids), o.finish_reason or "unknown") for o in self._generate(requests, None)]

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """One answer a request, in order, with its tokens and their log-probs."""
        samples = []
        for output in self._generate(requests, logprobs=0):  # 0: of the sampled token alone
            ids, logprobs = list(output.token_ids), output.logprobs
            assert isinstance(logprobs, list)  # asked for
            chosen = [entry[token].logprob for entry, token in zip(logprobs, ids, strict=True)]
            samples.append(Sample(output.text, len(ids), output.finish_reason or "unknown", ids, chosen))
        return samples

    def _generate(self, requests: Sequence[Request], logprobs: int | None) -> "list[CompletionOutput]":
        from vllm import SamplingParams, TokensPrompt

        wanted = self._sampling
        prompts = [TokensPrompt(prompt_token_ids=self._prompts[request.index]) for request in requests]
        parameters = [
            SamplingParams(
                temperature=wanted.temperature,
                top_p=wanted.top_p,
                top_k=wanted.top_k,
                max_tokens=wanted.max_tokens,
                stop=wanted.stop,
                logprobs=logprobs,
                skip_special_tokens=False,  # else the text never holds `<|im_end|>`, and nothing stops there
                seed=wanted.seed + request.index,
            )
            for request in requests
        ]
        with self.meter.watch.running():
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        for output in outputs:
            self._count(output)
        if not self.meter.watch.gpus:
            self.meter.peak_bytes = peak_of_children()
        return [output.outputs[0] for output in outputs]

    def _count(self, output: "RequestOutput") -> None:
        assert output.prompt_token_ids is not None
        prompt, sampled = len(output.prompt_token_ids), len(output.outputs[0].token_ids)
        self.meter.answered(prompt, output.num_cached_tokens or 0, sampled)


def peak_of_children() -> int | None:
    """Most memory that one of the processes below this one held, bytes; None where the system does not say."""
    peaks = []
    for process in descendants():
        with contextlib.suppress(OSError, IndexError):  # it ended meanwhile; not Linux
            status = Path(f"/proc/{process.pid}/status").read_text()
            peaks.append(int(status.split("VmHWM:")[1].split()[0]) * 1024)
    return max(peaks, default=None)


def close(llm: "LLM", timeout_s: float | None = None) -> None:
    """End vLLM's engine process and the threads that watch it.

    Left to the end of Python, the watcher sees the engine go while the interpreter does, and now and then the process
    aborts (`terminate called without an active exception`, exit code 134) with its work done.
    """
    llm.llm_engine.engine_core.shutdown(timeout_s)
    for thread in threading.enumerate():
        if thread.name in ENGINE_THREADS:
            thread.join(JOIN_S)


# Beside other programs on a CPU; where the user did not set it.
CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",  # our vLLM plugin: sleep, do not spin, while waiting
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; by default vLLM takes half of the memory and clears it first
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
"""Forked, an engine would skip what `recipe` and vLLM's plugins do in a process of their own."""
FREED_NOT_REPORTED = "ignore:resource_tracker:UserWarning"
"""Of the shared memory that an interrupted engine leaves: Ctrl-C is one line."""


def prepare_engine_environment() -> bool:
    """Call before vLLM is imported. Returns whether there is a GPU; without one, sets CPU_ENVIRONMENT."""
    import torch

    os.environ.update(ENVIRONMENT | {START_METHOD: "spawn"})
    os.environ.setdefault("PYTHONWARNINGS", FREED_NOT_REPORTED)
    if torch.cuda.is_available():
        return True
    for key, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    return False
