"""On a GPU: tokens/s of FP8 against bfloat16 teachers of real shapes with random weights, and of the chip's limit.

TEACHER_PYTHON names the teacher's interpreter, OUT the folder of teacher_throughput.json, FP8_PEAK the device's dense
FP8 limit in FLOP/s (default: an H100 or H200 SXM).
"""

import asyncio
import json
import os
import statistics
import time
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.scoring_arms import SGLangArms, Workload, write_tokenizer
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server import SGLangServer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

VOCAB = 151_936
# hidden, intermediate, tied embeddings; both have 36 layers, 32 heads of 128 and 8 for keys and values.
SHAPES = {"4b": (2560, 9728, True), "8b": (4096, 12288, False)}
WORKLOADS = (Workload(1000, 16, 8, prompts=32), Workload(64, 256, 4, prompts=64))
ROUNDS = 3
FP8_PEAK = float(os.environ.get("FP8_PEAK", "1.979e15"))  # NVIDIA's data sheet, without sparsity


def write_qwen3(folder: Path, shape: str) -> int:
    """Random bfloat16 weights; returns the number of parameters that a token is multiplied with."""
    hidden, intermediate, tied = SHAPES[shape]
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=tied,
        dtype="bfloat16",
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCAB)
    return sum(p.numel() for name, p in model.named_parameters() if tied or "embed_tokens" not in name)


def measure(folder: Path, quantization: str | None, log: Path) -> dict[str, dict[str, float]]:
    """Median tokens/s of both arms by workload; a token counts once, cached or not."""
    config = TeacherConfig(
        model_path=str(folder),
        python=os.environ.get("TEACHER_PYTHON", ".venv-teacher/bin/python"),
        device="cuda",
        dtype="bfloat16",
        quantization=quantization,
        context_length=2048,
    )
    rates: dict[str, dict[str, float]] = {}
    with SGLangServer(config, log) as server:
        server.wait_ready()
        sglang = SGLangArms(server, VOCAB)
        for workload in WORKLOADS:
            requests = workload.requests(VOCAB, seed=1)
            tokens = len(requests) * (workload.prompt + workload.response)
            arms = {"ours": sglang.ours, "from_zero": sglang.from_zero}
            seconds: dict[str, list[float]] = {name: [] for name in arms}
            for number in range(ROUNDS + 1):
                for name, arm in arms.items():
                    outcome = asyncio.run(arm(requests))
                    assert [len(row) for row in outcome.logprobs] == [workload.response] * len(requests)
                    if number:  # the first warms up
                        seconds[name].append(outcome.seconds)
            rates[workload.name] = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    return rates


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_is_no_slower_than_bfloat16(shape: str, tmp_path: Path) -> None:
    parameters = write_qwen3(tmp_path / shape, shape)
    torch.cuda.empty_cache()
    started = time.time()
    rates = {
        name: measure(tmp_path / shape, quantization, tmp_path / f"{name}.log")
        for name, quantization in (("bfloat16", None), ("fp8", "fp8"))
    }
    # From position 0 every token is computed: 2 FLOP a parameter and token, attention not counted.
    of_peak = {key: 2 * parameters * rate["from_zero"] / FP8_PEAK for key, rate in rates["fp8"].items()}
    found = {"parameters": parameters, "fp8_peak": FP8_PEAK, "tokens_per_s": rates, "fp8_share_of_peak": of_peak}
    found["seconds"] = time.time() - started
    file = Path(os.environ.get("OUT", tmp_path)) / f"teacher_throughput_{shape}.json"
    file.write_text(json.dumps(found, indent=2) + "\n")
    print(file.read_text())
    for workload in WORKLOADS:
        assert rates["fp8"][workload.name]["from_zero"] >= rates["bfloat16"][workload.name]["from_zero"]
        assert 0 < of_peak[workload.name] < 1
