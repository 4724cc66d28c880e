"""SGLang: `POST /generate` scores from any position on, and reads its prefix cache up to there."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_ext.teacher.client import protocol
from verl_ext.teacher.client.protocol import Span
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.engine import Ask, Engine, Served
from verl_ext.teacher.engines.sizes import answer_bytes
from verl_ext.teacher.types import Score, ScoreRequest

LAUNCHER = Path(__file__).parents[2] / "platform" / "torch_store.py"
"""Runs a module in the teacher's environment, which has torch and nothing of ours."""


class SGLang(Engine):
    """See `Engine`."""

    title = "SGLang"
    packages = ("sglang",)
    path = "/generate"
    flush_path = "/flush_cache"
    scores_named_tokens = True
    fills_share = False
    leaks = ()

    def body(self, spans: Sequence[Span], requests: Sequence[ScoreRequest | None]) -> dict[str, Any]:
        return protocol.build_body(spans, requests)

    def largest_answer(self, body: dict[str, Any]) -> int:
        sequences = body["input_ids"]
        tops = body.get("top_logprobs_num", [0] * len(sequences))
        named = body.get("token_ids_logprob", [[]] * len(sequences))
        entries = sum(len(ids) * (1 + top + len(more)) for ids, top, more in zip(sequences, tops, named, strict=True))
        return answer_bytes(len(sequences), entries)

    def answers(self, text: bytes) -> list[Any]:
        return protocol.read_metas(text)

    def logprobs(self, answer: Any, span: Span, vocab_size: int) -> np.ndarray:
        return protocol.read_logprobs(answer, span, vocab_size)

    def score(self, answer: Any, span: Span, request: ScoreRequest, vocab_size: int) -> Score:
        return protocol.read_score(answer, span, request, vocab_size)

    def cached_tokens(self, answer: Any) -> int:
        return protocol.read_cached_tokens(answer)

    async def served(self, ask: Ask, config: TeacherConfig) -> Served:
        """Of `/model_info` and `/server_info`; the latter also holds the API key in clear, which is not read."""
        del config  # it says everything itself
        model, server = await ask("/model_info"), await ask("/server_info")
        return Served(
            model_path=str(model["model_path"]),
            name=str(model.get("served_model_name") or model["model_path"]),
            weight_version=str(model["weight_version"]),
            dtype=server["dtype"],
            quantization=server["quantization"],
            kv_cache_dtype=server["kv_cache_dtype"],
            version=server["version"],
        )

    async def tokenize(self, ask: Ask, texts: Sequence[str]) -> list[list[int]]:
        answer = await ask("/v1/tokenize", {"prompt": list(texts), "add_special_tokens": False})
        return [[int(token) for token in ids] for ids in answer["tokens"]]

    def arguments(self, config: TeacherConfig, model: str, port: int) -> list[str]:
        arguments = [str(LAUNCHER), "sglang.launch_server", "--model-path", model]
        arguments += ["--host", config.host, "--port", str(port), "--device", config.device, "--dtype", config.dtype]
        arguments += ["--load-format", "safetensors"]  # never a pickle, where a name of the hub has both or that alone
        arguments += ["--mem-fraction-static", str(config.mem_fraction_static)]
        arguments += ["--max-total-tokens", str(config.max_total_tokens)]
        arguments += ["--tp-size", str(config.tp), "--dp-size", str(config.dp)]
        if config.context_length is not None:
            arguments += ["--context-length", str(config.context_length)]
        if config.quantization is not None:
            arguments += ["--quantization", config.quantization]
        if config.dtype != "float32":
            # The last matmul in fp32: bf16 logits are rounded to ~0.03 near 8, which lands in every log-prob.
            arguments += ["--enable-fp32-lm-head"]
        if config.trust_remote_code:
            arguments += ["--trust-remote-code"]
        if config.metrics_port >= 0:
            arguments += ["--enable-metrics"]
        if config.device == "cpu":
            # The two back ends that are plain torch; the others need kernels that have no CPU wheel.
            arguments += ["--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
            # The scheduler otherwise spins while it has nothing to do, and takes a core from the trainer.
            arguments += ["--sleep-on-idle"]
        return arguments

    def environment(self, config: TeacherConfig) -> dict[str, str]:
        # Without it SGLang 0.5.12 to 0.5.15 (first name) keep fp32 logits of a whole prefill: 8,192 tokens at a
        # vocabulary of 152k are 5 GB a copy, ~17 GB in all. From 0.5.17 (second name) it is the default; we do not
        # leave it to that.
        environment = {"SGLANG_ENABLE_LOGITS_PROCESSER_CHUNK": "1", "SGLANG_ENABLE_LOGPROB_CHUNK": "1"}
        return environment | ({"SGLANG_USE_CPU_ENGINE": "1"} if config.device == "cpu" else {})

    def hide_key(self, key: str, scratch: Path) -> tuple[list[str], int]:
        """By a link of a name that SGLang reads; what it leads to is in the server's process alone."""
        memory, link = os.memfd_create("key"), scratch / "key.yaml"
        os.write(memory, f"api-key: {json.dumps(key)}\n".encode())
        link.symlink_to(f"/proc/self/fd/{memory}")
        # At log level `info` SGLang prints all its settings, the key among them.
        return ["--config", str(link), "--log-level", "warning"], memory
