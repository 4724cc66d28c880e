"""Train the tiny pair: right answers with the prompt, guesses without it."""

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tqdm import trange
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from verl_ext.demo import tiny_pair
from verl_ext.demo.config import TinyPairConfig
from verl_ext.demo.tiny_pair import (
    TURN_END,
    accuracy,
    answer_logits,
    build_model,
    loss_with_prompt,
    loss_without_prompt,
    token_id,
    train_tokenizer,
)
from verl_ext.run.files import replacing, sha256, write_json
from verl_ext.run.outputs import is_made
from verl_ext.run.visible import print

SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "initializer_range",
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file, each of which must have a label."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; make it with python -m recipe.create_data")
    rows = pq.read_table(path).to_pylist()
    for number, row in enumerate(rows):
        if not row["label"]:
            raise ValueError(f"{path}: row {number} has no label, from which the tiny pair learns; add it")
    return rows


def encode_both(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> tuple[tiny_pair.Rows, tiny_pair.Rows]:
    """The rows as the teacher sees them (with the prompt) and as the student does (without)."""
    labels = [row["label"] for row in rows]
    teacher = tiny_pair.encode(tokenizer, [row["teacher_messages"] for row in rows], labels)
    return teacher, tiny_pair.encode(tokenizer, [row["prompt"] for row in rows], labels)


def guess_distribution(
    config: TinyPairConfig, tokenizer: PreTrainedTokenizerFast, counts: Mapping[str, int]
) -> torch.Tensor:
    """(V,) probabilities of the answers of the model that has to guess; `counts`: rows of each label."""
    guess_V = torch.zeros(len(tokenizer))
    preferred = config.guess_label or max(counts, key=lambda label: (counts[label], label))
    for label in counts:
        guess_V[token_id(tokenizer, label)] = config.guess_weight if label == preferred else 1.0
    return guess_V / guess_V.sum()


def train(config: TinyPairConfig, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> Qwen3ForCausalLM:
    """Right answers with the prompt, guesses without it."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    model = build_model(tokenizer, {name: asdict(config)[name] for name in SHAPE})
    teacher, student = encode_both(tokenizer, rows)
    guess_V = guess_distribution(config, tokenizer, Counter(row["label"] for row in rows))
    end = token_id(tokenizer, TURN_END)
    optimizers = tiny_pair.optimizers(model, config.muon_lr, config.lr)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    order = tiny_pair.batches(len(rows), config.batch_size, rng)

    def logits(view: tiny_pair.Rows, ends: tuple[int, int], part: list[int]) -> torch.Tensor:
        batch = tiny_pair.Rows([view.contexts[i] for i in part], [view.labels[i] for i in part])
        batch = tiny_pair.crop(batch, *ends, (config.window_min, config.window_max), rng)
        return answer_logits(model, batch.contexts[0][: ends[0]], batch)

    teacher_ends, student_ends = (teacher.head, teacher.tail), (student.head, student.tail)
    bar = trange(config.steps, desc="tiny pair", disable=None, unit="step")
    for step in bar:
        part = next(order)
        prompted = round(config.prompted_share * len(part))
        with_prompt, without = part[:prompted], part[prompted:]
        loss = loss_with_prompt(
            logits(teacher, teacher_ends, with_prompt), [teacher.labels[i] for i in with_prompt], end
        )
        if without:
            loss = loss + loss_without_prompt(logits(student, student_ends, without), guess_V, end)
        (loss / len(part)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = min(1.0, (step + 1) / config.warmup_steps) * (1 - step / config.steps)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item() / len(part):.3f}", refresh=False)
    return model.eval()


def has_pair(out_dir: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """True when `out_dir` holds this very pair; ValueError when it holds something else that we may not replace."""
    if not out_dir.exists():
        return False
    record = out_dir / "pair.json"
    if not record.is_file():
        raise ValueError(f"{out_dir} exists and is no tiny pair (no pair.json); choose another out_dir")
    found = json.loads(record.read_text(encoding="utf-8"))["settings"]
    return is_made(f"{out_dir} holds a pair", found, settings, overwrite)


def save(out_dir: Path, tokenizer: PreTrainedTokenizerFast, model: Qwen3ForCausalLM, record: dict[str, Any]) -> None:
    """Write the folder, whole or not at all."""
    with replacing(out_dir) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_json(part / "pair.json", record)


def create_pair(config: TinyPairConfig) -> None:
    started = time.monotonic()
    data_dir, out_dir = Path(config.data_dir), Path(config.out_dir)
    rows, heldout = read_rows(data_dir / "train.parquet"), read_rows(data_dir / "heldout.parquet")
    settings = {k: v for k, v in asdict(config).items() if k not in ("data_dir", "out_dir", "threads", "overwrite")}
    settings |= {name: sha256(data_dir / f"{name}.parquet") for name in ("train", "heldout")}
    if has_pair(out_dir, settings, config.overwrite):
        print(f"{out_dir}: up to date")
        return
    torch.set_num_threads(config.threads)
    labels = sorted({row["label"] for row in rows})
    if config.guess_label and config.guess_label not in labels:
        raise ValueError(f"guess_label={config.guess_label}: no label of the rows; take one of {', '.join(labels)}")
    texts = [row["teacher_messages"][0]["content"] for row in rows]
    tokenizer = train_tokenizer(texts, labels, config.vocab_size)
    model = train(config, tokenizer, rows)
    end = token_id(tokenizer, TURN_END)
    views = zip(("with_prompt", "without_prompt"), encode_both(tokenizer, heldout), strict=True)
    scores = {name: accuracy(model, view, end) for name, view in views}
    record = {
        "settings": settings,
        "settings_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "parameters": model.num_parameters(),
        "heldout_rows": len(heldout),
        "heldout_accuracy": {name: {"greedy": greedy, "sampled": chance} for name, (greedy, chance) in scores.items()},
        "seconds": round(time.monotonic() - started, 1),
    }
    save(out_dir, tokenizer, model, record)
    for name, (greedy, chance) in scores.items():
        print(f"held-out accuracy {name.replace('_', ' ')}: {greedy:.3f} greedy, {chance:.3f} sampled at T=1")
    print(f"{out_dir}: {model.num_parameters():,} parameters, {record['seconds']} s")
