"""Experts on a CPU: vLLM keeps their weights packed, and what a weight sync brings is what it answers with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
AGREED = 1e-4
"""Nats between float32 log-probs of two engines."""
TOKENS = [*range(5, 45)]
SYNCED = """
import json, sys
import torch
from safetensors.torch import load_file
from vllm import LLM, SamplingParams
from vllm.model_executor.model_loader.utils import process_weights_after_loading

first, second, tokens = json.loads(sys.argv[1])

def score():
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate([{"prompt_token_ids": tokens}], asked, use_tqdm=False)
    return [place[token].logprob for place, token in zip(output.prompt_logprobs[1:], tokens[1:], strict=True)]

llm = LLM(first, dtype="float32", enforce_eager=True, max_model_len=64, enable_prefix_caching=False,
          skip_tokenizer_init=True)
found = [score()]
model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
for folder in (second, first):  # as verl's part of vLLM's worker does
    model.load_weights(load_file(f"{folder}/model.safetensors").items())
    process_weights_after_loading(model, llm.llm_engine.model_config, torch.device("cpu"))
    found.append(score())
print("SCORES", json.dumps(found))
"""
SIZES = {
    **{"vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.1},
    "max_position_embeddings": 64,
}


def write_model(folder: Path, seed: int, width: int) -> list[float]:
    """A model of random weights; the log-probs of TOKENS by transformers, nats."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model("qwen3_moe", moe_intermediate_size=width, **SIZES)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    ids = torch.tensor([TOKENS])
    with torch.no_grad():
        return model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()


def run_vllm(*folders: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        **{"VERL_PLATFORM": "cpu", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"},
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    }
    told = json.dumps([*map(str, folders), TOKENS])
    command = [sys.executable, "-c", SYNCED, told]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_vllm_answers_with_the_experts_that_a_sync_brought(tmp_path):
    first, second = (write_model(tmp_path / name, seed, width=64) for seed, name in enumerate(("first", "second")))
    done = run_vllm(tmp_path / "first", tmp_path / "second")
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("SCORES "))
    for found, wanted in zip(json.loads(line.removeprefix("SCORES ")), (first, second, first), strict=True):
        assert found == pytest.approx(wanted, abs=AGREED)
    assert first != pytest.approx(second, abs=100 * AGREED)


def test_experts_that_vllm_would_pad_are_refused(tmp_path):
    write_model(tmp_path / "narrow", 0, width=40)
    done = run_vllm(tmp_path / "narrow", tmp_path / "narrow")
    assert done.returncode != 0
    assert "experts are 40 wide, which vLLM pads to 64 on a CPU; give them that width" in done.stderr + done.stdout
