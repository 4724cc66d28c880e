"""What `teacher.extra_args` may hold: the engines' options of speed and memory, by their full names.

The others of their hundreds open ports (`--host`, `--grpc-port`, `--kv-events-config`), run code
(`--trust-remote-code`, `--enable-custom-logit-processor`, `--forward-hooks`, `--middleware`, `--worker-cls`), read and
write files (`--config`, `--chat-template`, `--crash-dump-folder`), put keys into the process list (`--api-key`) or
prompts into logs (`--log-requests`), or change what a setting of ours says. A list of those would lack the next one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Of one engine's server."""

    allowed: tuple[str, ...]
    """Those of speed and memory, without `--`."""
    ours: dict[str, str]
    """Those that a setting of `teacher` stands for, and the setting."""
    example: str
    """One that is allowed."""


SGLANG_ALLOWED = (
    *("attention-backend", "decode-attention-backend", "prefill-attention-backend", "sampling-backend"),
    *("fp8-gemm-backend", "fp4-gemm-backend", "bf16-gemm-backend", "mamba-backend", "linear-attn-backend"),
    *("moe-runner-backend", "moe-a2a-backend", "triton-attention-reduce-in-fp32"),
    *("triton-attention-num-kv-splits", "triton-attention-split-tile-size", "chunked-prefill-size"),
    *("max-prefill-tokens", "prefill-max-requests", "max-running-requests", "max-queued-requests"),
    *("schedule-policy", "schedule-conservativeness", "enable-mixed-chunk", "enable-dynamic-chunking"),
    *("disable-overlap-schedule", "scheduler-recv-interval", "stream-interval", "sleep-on-idle", "page-size"),
    *("swa-full-tokens-ratio", "disable-hybrid-swa-memory", "disable-radix-cache"),
    *("disable-chunked-prefix-cache", "radix-eviction-policy", "kv-cache-dtype", "cuda-graph-max-bs-decode"),
    *("cuda-graph-max-bs-prefill", "cuda-graph-bs-decode", "cuda-graph-bs-prefill", "disable-cuda-graph"),
    *("disable-prefill-cuda-graph", "disable-decode-cuda-graph", "disable-cuda-graph-padding"),
    *("enable-cudagraph-gc", "enable-torch-compile", "torch-compile-max-bs", "enable-tf32-matmul"),
    *("enable-fp32-lm-head", "ep-size", "moe-dense-tp-size", "enable-dp-attention", "enable-dp-lm-head"),
    *("enable-two-batch-overlap", "enable-single-batch-overlap", "disable-shared-experts-fusion"),
    *("disable-custom-all-reduce", "enable-mscclpp", "enable-symm-mem", "enable-nccl-nvls", "enable-p2p-check"),
    *("cpu-offload-gb", "base-gpu-id", "gpu-id-step", "numa-node", "grammar-backend"),
    *("disable-piecewise-cuda-graph", "enable-deterministic-inference", "rl-on-policy-target", "random-seed"),
    *("watchdog-timeout", "soft-watchdog-timeout", "dist-timeout", "skip-server-warmup", "enable-cache-report"),
    *("decode-log-interval", "tokenizer-worker-num", "detokenizer-worker-num", "weight-loader-disable-mmap"),
    *("weight-loader-prefetch-checkpoints",),
)
VLLM_ALLOWED = (
    *("attention-backend", "linear-backend", "moe-backend", "all2all-backend", "mamba-backend", "block-size"),
    *("max-num-batched-tokens", "max-num-seqs", "max-num-scheduled-tokens", "long-prefill-token-threshold"),
    *("enable-chunked-prefill", "no-enable-chunked-prefill", "async-scheduling", "no-async-scheduling"),
    *("scheduling-policy", "stream-interval", "enforce-eager", "optimization-level", "performance-mode"),
    *("cudagraph-capture-sizes", "max-cudagraph-capture-size", "kv-cache-dtype", "kv-cache-memory-bytes"),
    *("cpu-offload-gb", "enable-expert-parallel", "enable-eplb", "enable-dbo", "dbo-prefill-token-threshold"),
    *("disable-custom-all-reduce", "disable-cascade-attn", "disable-hybrid-kv-cache-manager", "numa-bind"),
    *("safetensors-load-strategy", "max-parallel-loading-workers", "renderer-num-workers", "watermark", "seed"),
    *("distributed-timeout-seconds", "cpu-distributed-timeout-seconds"),
)
_NAMED_ALIKE = {
    **{name: name.replace("-", "_") for name in ("host", "port", "dtype", "quantization")},
    **{"api-key": "api_key_env", "trust-remote-code": "trust_remote_code"},
}
OPTIONS = {
    "sglang": Options(
        SGLANG_ALLOWED,
        _NAMED_ALIKE
        | {name: name.replace("-", "_") for name in ("model-path", "device", "mem-fraction-static", "context-length")}
        | {"max-total-tokens": "max_total_tokens", "tp-size": "tp", "dp-size": "dp"},
        "--chunked-prefill-size",
    ),
    "vllm": Options(
        VLLM_ALLOWED,
        _NAMED_ALIKE
        | {"model": "model_path", "gpu-memory-utilization": "mem_fraction_static", "max-model-len": "context_length"}
        | {"num-gpu-blocks-override": "max_total_tokens", "tensor-parallel-size": "tp", "data-parallel-size": "dp"},
        "--max-num-seqs",
    ),
}
"""By `teacher.engine`."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def check_extra_args(words: Sequence[str], engine: str) -> None:
    """Refuse words that are none of the engine's allowed options with its values.

    The engines take any beginning of an option's name that is not another's too (`--hos`), which the lists do not have.
    Values are not shown: one may be a key.

    Raises:
        ValueError: naming the option and the fix.
    """
    options = OPTIONS[engine]
    for number, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError("teacher.extra_args: one of its words is no text; write numbers in quotes")
        is_value = not word.startswith("-") or _NUMBER.fullmatch(word)
        if is_value and number:
            continue
        name = word.partition("=")[0]
        option = name.removeprefix("--")
        if name == f"--{option}" and option in options.allowed:
            continue
        if is_value:
            raise ValueError(f"teacher.extra_args: its first word is no option; give one, as {options.example}")
        if name == f"--{option}" and option in options.ours:
            raise ValueError(
                f"teacher.extra_args: {name} has a setting of its own; give teacher.{options.ours[option]}"
            )
        raise ValueError(
            f"teacher.extra_args: {name} is none of {engine}'s options of speed and memory that are passed on "
            "(verl_ext/teacher/server_options.py); start that server yourself and set teacher.mode=external"
        )
