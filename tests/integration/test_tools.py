"""Tools in a run as a user starts it: what a step trains on, by real vLLM, SGLang and FSDP2, against transformers.

A random model calls no tool, so the tool agent has a parser that takes every answer for a call; the tool, the loop, the
prompts and the scores are those of any run. A plugin of verl's writes down what is in TransferQueue when a step lets go
of it (`steps_of_queue`).
"""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from steps_of_queue import write_plugin
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ext.demo.calculator import PROMPT, row, sums
from verl_ext.demo.tiny_pair import build_model
from verl_ext.demo.train_calculator import context, make_tokenizer
from verl_ext.run.metrics import read_metrics
from verl_ext.trainer.tools import function_schemas

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TOOL = "examples/calculator.py"
AGREE_NATS = 1e-4  # fp32
PROMPTS, SAMPLES = 4, 2
LOOP = """
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser

from verl_ext.trainer.loops import ToolLoop


class EveryAnswer(ToolParser):
    stop_token_ids = list(range(0, 500, 8))

    async def extract_tool_calls(self, responses_ids, tools=None):
        return "", [FunctionCall(name="calculator", arguments='{"expression": "17+25"}')]


class ForcedCalls(ToolLoop):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tool_parser = EveryAnswer(self.tokenizer)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools") / "base"
    tokenizer = make_tokenizer(function_schemas(ROOT / TOOL))
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.1}
    build_model(tokenizer, shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, teacher_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run, and with what each of its two steps trained on."""
    folder = tmp_path_factory.mktemp("run")
    environment = write_plugin(folder)
    (folder / "plugin" / "forced_calls.py").write_text(LOOP)
    (folder / "loops.yaml").write_text("- name: forced_calls\n  _target_: forced_calls.ForcedCalls\n")
    rows = [row(index, text, "train", agent="forced_calls") for index, text in enumerate(sums()[: 2 * PROMPTS])]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    words = [
        *("platform=cpu", "task=demo", f"student.path={base}", f"run_dir={folder}/run"),
        *(f"teacher.python={teacher_python}", f"data.train_files={folder}/rows.parquet"),
        *(f"data.val_files={folder}/rows.parquet", f"data.train_batch_size={PROMPTS}"),
        *(f"actor_rollout_ref.rollout.n={SAMPLES}", "data.max_response_length=128"),
        *("actor_rollout_ref.rollout.max_model_len=288", "actor_rollout_ref.actor.optim.lr=5e-3"),
        "actor_rollout_ref.rollout.agent.default_agent_loop=forced_calls",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/loops.yaml",
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={TOOL}",
        "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=2",
        *("trainer.total_training_steps=2", "trainer.save_freq=-1"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "recipe.on_policy_distillation", *words],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=800,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"it exited with {done.returncode}:\n{done.stdout[-4000:]}")
    return folder


def steps_of(trained: Path) -> list[list[dict[str, torch.Tensor]]]:
    return [list(torch.load(file).values()) for file in sorted((trained / "steps").iterdir())]


def test_the_teachers_log_probs_are_those_of_transformers_under_the_prompt_with_tools(trained: Path, base: Path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tools = function_schemas(ROOT / TOOL)
    steps = steps_of(trained)
    assert [len(step) for step in steps] == [PROMPTS * SAMPLES] * 2
    worst, turns = 0.0, []
    for sample in [sample for step in steps for sample in step]:
        prompt = sample["prompts"].tolist()
        text = next(text for text in sums()[: 2 * PROMPTS] if context(tokenizer, tools, text) == prompt)
        teachers = context(tokenizer, tools, PROMPT.replace("{text}", text))
        ids = torch.tensor([[*teachers, *sample["responses"].tolist()]])
        with torch.no_grad():
            table = model(ids).logits[0, len(teachers) - 1 : -1].log_softmax(-1)
        wanted = table.gather(1, sample["responses"][:, None])[:, 0]
        keep = sample["response_mask"].bool()
        worst = max(worst, (wanted - sample["teacher_logprobs"])[keep].abs().max().item())
        assert wanted[~keep].abs().max() > 1  # of others' tokens the model has an opinion, and nobody asked for it
        turns.append("17+25" not in text and tokenizer.decode(sample["responses"][~keep]).count("\n42\n"))
    assert worst < AGREE_NATS
    assert max(turns) == 1


def test_what_the_tool_wrote_is_trained_on_nowhere(trained: Path):
    for sample in [sample for step in steps_of(trained) for sample in step]:
        mask = sample["response_mask"]
        assert 0 < mask.sum() < len(mask)
        assert torch.equal(mask, sample["loss_mask"])
        for name in ("teacher_logprobs", "rollout_log_probs", "advantages"):
            assert not sample[name][~mask.bool()].any(), name
        gap = sample["teacher_logprobs"] - sample["rollout_log_probs"]
        torch.testing.assert_close(sample["advantages"], gap)


def test_its_metrics_count_sampled_tokens(trained: Path):
    for step, metrics in zip(steps_of(trained), read_metrics(trained / "run" / "metrics.jsonl"), strict=True):
        lengths = [int(sample["response_mask"].sum()) for sample in step]
        assert metrics["response_length/mean"] == pytest.approx(sum(lengths) / len(lengths))
        kept = [sample["response_mask"].bool() for sample in step]
        kl = torch.cat([(s["rollout_log_probs"] - s["teacher_logprobs"])[k] for s, k in zip(step, kept, strict=True)])
        assert metrics["teacher_kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
        assert metrics["tools/calls_mean"] == 1
        assert metrics["tools/unfinished_share"] == 1  # its parser takes the last answer for a call too
        assert metrics["turns/mean"] == 2
        assert metrics["teacher/early_turns"] == 2 * PROMPTS * SAMPLES
        assert metrics["actor/rollout_gap_max"] < 1e-3
