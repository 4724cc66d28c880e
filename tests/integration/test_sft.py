"""SFT as a user runs it: verl's trainer on real FSDP2 ranks (gloo), against a hand-written reference of Tinker's."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_scores import load, sglang_scores, vllm_scores
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from verl_ext.data.conversations import to_jsonl
from verl_ext.data.rows import LABELS
from verl_ext.data.sentences import file_sentences
from verl_ext.demo.tiny_pair import build_model, train_tokenizer
from verl_ext.ledger import ledger
from verl_ext.run.metric_names import is_known
from verl_ext.run.metrics import read_metrics
from verl_ext.sft.dataset import ConversationDataset
from verl_ext.sft.order import TinkerBatches
from verl_ext.student.export import export_checkpoint, untie_head

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BATCH, STEPS, LR, BETAS, EPS = 8, 3, 1e-4, (0.9, 0.95), 1e-8
RANK, ALPHA = 4, 4
EQUAL = 1e-6
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # the smallest that vLLM's CPU attention has
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Inputs:
    base: Path
    rows: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A random tied model, and 16 rows whose answers have different lengths: two batches an epoch."""
    folder = tmp_path_factory.mktemp("sft-inputs")
    sentences = [s for s in file_sentences(ROOT / "data" / "sample.jsonl") if s.label][:18]
    tokenizer = train_tokenizer([s.text for s in sentences], LABELS, 400)
    torch.manual_seed(1)
    build_model(tokenizer, SHAPE).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    answers = [s.label if i % 2 else f"{s.label}, I am quite sure" for i, s in enumerate(sentences)]
    rows = [
        {"messages": [{"role": "user", "content": s.text}, {"role": "assistant", "content": answer}]}
        for s, answer in zip(sentences, answers, strict=True)
    ]
    (folder / "rows.jsonl").write_bytes(to_jsonl(rows))
    return Inputs(folder / "base", folder / "rows.jsonl")


def command(inputs: Inputs, run_dir: Path, ranks: int, *arguments: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"] if ranks > 1 else []
    settings = [
        *("platform=cpu", f"student.path={inputs.base}", f"data.train_files={inputs.rows}", f"run_dir={run_dir}"),
        *(f"data.train_batch_size={BATCH}", "data.micro_batch_size_per_gpu=2", "data.max_length=512"),
    ]
    return [sys.executable, *launcher, "-m", "recipe.sft", *settings, *arguments]


def train(inputs: Inputs, run_dir: Path, ranks: int, *arguments: str) -> list[dict[str, float]]:
    result = subprocess.run(
        command(inputs, run_dir, ranks, *arguments),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )
    if result.returncode:
        log = run_dir / "logs" / "rank-0.log"
        pytest.fail(f"{result.stdout[-3000:]}\n{log.read_text()[-3000:] if log.exists() else ''}")
    return read_metrics(run_dir / "metrics.jsonl")


# --- the reference: Tinker's loss and Adam, in plain torch ---


def batches(inputs: Inputs) -> list[list[dict[str, torch.Tensor]]]:
    """The rows of each of STEPS steps."""
    tokenizer = AutoTokenizer.from_pretrained(inputs.base)
    config = {"renderer": "qwen3_instruct", "max_length": 512, "truncation": "right"}
    rows = ConversationDataset(str(inputs.rows), tokenizer, config)
    order = TinkerBatches(len(rows), BATCH, seed=0, rank=0, ranks=1)
    found: list[list[dict[str, torch.Tensor]]] = []
    for epoch in range(2):
        order.set_epoch(epoch)
        found += [[rows[index] for index in batch] for batch in order]
    return found[:STEPS]


def sum_loss(model: Any, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Tinker's cross_entropy: the sum of -log p * weight, the weights of an example summing to 1."""
    total = torch.zeros(())
    for row in rows:
        log_probs_TV = model(input_ids=row["input_ids"][None]).logits[0, :-1].log_softmax(-1)
        targets_T = row["input_ids"][1:]
        weights_T = row["loss_mask"][1:]
        total = total - (log_probs_TV.gather(1, targets_T[:, None])[:, 0] * weights_T).sum()
    return total


def reference(model: Any, steps: list[list[dict[str, torch.Tensor]]], decay: int) -> list[float]:
    """Train in place with Adam on the sum, LR `LR * (1 - step / decay)`; the loss of each step over the batch size."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in trained]
    losses = []
    for step, rows in enumerate(steps):
        model.zero_grad()
        loss = sum_loss(model, rows)
        loss.backward()
        losses.append(loss.item() / BATCH)
        for parameter, (m, v) in zip(trained, moments, strict=True):
            assert parameter.grad is not None
            m.mul_(BETAS[0]).add_(parameter.grad, alpha=1 - BETAS[0])
            v.mul_(BETAS[1]).add_(parameter.grad**2, alpha=1 - BETAS[1])
            m_hat, v_hat = m / (1 - BETAS[0] ** (step + 1)), v / (1 - BETAS[1] ** (step + 1))
            with torch.no_grad():
                parameter -= LR * (1 - step / decay) * m_hat / (v_hat.sqrt() + EPS)
    return losses


def log_probs(model: Any, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(input_ids=row["input_ids"][None]).logits[0].log_softmax(-1) for row in rows])


LORA = (f"model.lora_rank={RANK}", f"model.lora_alpha={ALPHA}")
FULL = ("model.lora_rank=0",)


@pytest.mark.parametrize("ranks", [1, 2])
def test_full_training_is_tinkers_loss_and_adam(inputs, tmp_path, ranks):
    steps = batches(inputs)
    rows = train(inputs, tmp_path, ranks, *FULL, f"trainer.total_training_steps={STEPS}")
    model = load(inputs.base)
    losses = reference(model, steps, STEPS)
    assert [row["train/loss"] for row in rows] == pytest.approx(losses, abs=EQUAL)
    assert [row["train/lr"] for row in rows] == [LR * (1 - step / STEPS) for step in range(STEPS)]
    student = load(tmp_path / "student")
    for (name, mine), theirs in zip(student.named_parameters(), model.parameters(), strict=True):
        assert (mine - theirs).abs().max().item() < EQUAL, name


@pytest.mark.parametrize("ranks", [1, 2])
def test_lora_training_is_tinkers_loss_and_adam_and_exports(inputs, tmp_path, ranks):
    steps = batches(inputs)
    rows = train(inputs, tmp_path, ranks, *LORA, f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1")
    # A's gradient is zero in the first step, where B is zero: the first checkpoint still has A as it began.
    first = tmp_path / "first"
    export_checkpoint(tmp_path / "checkpoints" / "global_step_1", str(inputs.base), first)
    base = load(inputs.base)
    untie_head(base)
    model = PeftModel.from_pretrained(base, first / "adapter", is_trainable=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    losses = reference(model, steps, STEPS)
    assert [row["train/loss"] for row in rows] == pytest.approx(losses, abs=EQUAL)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    trained = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
    assert adapter.keys() == trained.keys()
    assert len(adapter) == 2 * (7 * SHAPE["num_hidden_layers"] + 1)
    for name, parameter in trained.items():
        assert (adapter[name] - parameter).abs().max().item() < EQUAL, name
    exported = PeftModel.from_pretrained(load(inputs.base), tmp_path / "adapter")
    student = load(tmp_path / "student")
    assert not student.config.tie_word_embeddings
    for loaded in (exported, student):
        assert (log_probs(loaded, steps[0]) - log_probs(model, steps[0])).abs().max().item() < 1e-5
    untrained = load(inputs.base)
    assert (log_probs(student, steps[0]) - log_probs(untrained, steps[0])).abs().max().item() > 1e-3


@pytest.mark.parametrize("kill_after", [1, 4, 5])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(inputs, tmp_path, uninterrupted, kill_after):
    """Killed before the first checkpoint, at the end of an epoch just saved, and between two checkpoints."""
    arguments = (*LORA, "trainer.save_freq=2")
    process = subprocess.Popen(
        command(inputs, tmp_path, 1, *arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and len(read_metrics(metrics)) >= kill_after):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(ledger.read(tmp_path / ledger.FILE).entries)  # a step's cost is written before its row
    assert kill_after <= done < 8, "the run was over before it was killed"
    assert done - len(read_metrics(metrics)) in (0, 1)
    rows = train(inputs, tmp_path, 1, *arguments)
    keys = ("step", "train/loss", "train/lr", "train/grad_norm")
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in uninterrupted]
    found = ledger.read(tmp_path / ledger.FILE)
    assert [entry.step for entry in found.entries] == list(range(1, 9))
    again = [entry.step for entry in found.abandoned]  # since the last whole checkpoint; without one all moved away
    assert again == list(range(done + 1 - len(again), done + 1))
    assert not again or (done - len(again)) % 2 == 0
    for row, entry in zip(rows, found.entries, strict=True):
        assert (entry.phase, entry.samples, entry.tokens.trained) == ("sft", BATCH, row["train/tokens"])
        assert entry.seconds == row["timing_s/step"]
        assert entry.flops is not None
        assert 1 < entry.flops.train_backward / entry.flops.train_forward < 2  # LoRA: no gradient of frozen weights


def test_a_student_is_trained_a_second_time(inputs, tmp_path):
    """Its head has weights of its own by then, and gets an adapter again: verl shards such a head alone."""
    first_rows = train(inputs, tmp_path / "first", 1, *LORA, "trainer.total_epochs=1")
    again = Inputs(tmp_path / "first/student", inputs.rows)
    rows = train(again, tmp_path / "second", 2, *LORA, "trainer.total_epochs=1")
    assert rows[0]["train/loss"] < first_rows[0]["train/loss"]
    first, second = (load(tmp_path / name / "student") for name in ("first", "second"))
    assert not first.config.tie_word_embeddings
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory):
    """Four epochs of two batches."""
    rows = train(inputs, tmp_path_factory.mktemp("uninterrupted"), 1, *LORA, "trainer.save_freq=2")
    assert len(rows) == 8
    return rows


def test_a_user_sees_one_line_for_a_mistake(inputs, tmp_path):
    wrong = subprocess.run(
        command(inputs, tmp_path / "wrong", 1, "optim.clip_grad=0.0"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1].startswith("error: optim.clip_grad=0.0 must be a number > 0")
    assert "Traceback" not in wrong.stderr
    unknown = subprocess.run(
        command(inputs, tmp_path / "wrong", 1, "optim.leraning_rate=1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert unknown.returncode == 1
    assert "leraning_rate" in unknown.stderr
    assert not (tmp_path / "wrong").exists()
    bare = [sys.executable, "-m", "recipe.sft", "platform=cpu"]
    nothing = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("error: student.path is not set: give student.path=...")


def test_the_exported_student_has_the_same_log_probs_in_every_engine(inputs, tmp_path, teacher_python):
    """Steps large enough to move it, and a head that is no longer the embedding's."""
    train(inputs, tmp_path, 1, *LORA, "optim.lr=1e-2")
    student = tmp_path / "student"
    rows = batches(inputs)[0]
    sequences = [row["input_ids"].tolist() for row in rows]
    model, untrained = load(student), load(inputs.base)
    wanted, before = (
        torch.cat([log_probs(m, [row])[:-1].gather(1, row["input_ids"][1:, None])[:, 0] for row in rows])
        for m in (model, untrained)
    )
    assert (wanted - before).abs().max().item() > 0.1
    for found in (
        vllm_scores(student, sequences, tmp_path),
        vllm_scores(inputs.base, sequences, tmp_path, adapter=tmp_path / "adapter"),
        sglang_scores(student, teacher_python, sequences, tmp_path),
    ):
        assert (found - wanted).abs().max().item() < 1e-4  # nats, fp32


def test_bf16_weights_with_fp32_adapters_train_and_validate(inputs, tmp_path):
    mixed = (*LORA, "engine.model_dtype=bf16", "engine.mixed_precision.param_dtype=bf16", "sft.adapter_dtype=fp32")
    validated = (f"data.val_files={inputs.rows}", "trainer.test_freq=1")
    rows = train(inputs, tmp_path, 2, *mixed, *validated, "trainer.total_training_steps=2", "optim.lr=1e-2")
    assert rows[1]["train/loss"] != rows[0]["train/loss"]
    assert {name for row in rows for name in row if not is_known(name)} == {"step"}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()  # the same curves: verl's lr is the next step's
    for name in ("train/lr", "train/loss", "perf/tokens_per_s"):
        logged = [scalar.value for scalar in events.Scalars(name)]
        assert logged == pytest.approx([row[name] for row in rows], rel=1e-5), name
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    described = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"]) == (RANK, ALPHA)
    assert "lm_head" in described["target_modules"]
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert "Final validation metrics: {'val/loss': " in log
    assert "nan" not in log.rsplit("Final validation metrics", 1)[1]
