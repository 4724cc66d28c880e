"""A student of a few thousand weights with its tokenizer, and a row of data."""

from pathlib import Path
from typing import Any

from verl_ext.data.rows import LABELS
from verl_ext.demo.tiny_pair import build_model, train_tokenizer

SENTENCE = "Good morning"
ROW = {
    "prompt": [{"role": "user", "content": SENTENCE}],
    "teacher_messages": [{"role": "user", "content": f"Which language? {SENTENCE}"}],
    "data_source": "language_id",
    "reward_model": {"style": "rule", "ground_truth": "en"},
}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def make_student() -> tuple[Any, Any]:
    """Tokenizer and model."""
    tokenizer = train_tokenizer([SENTENCE], LABELS, 300)
    return tokenizer, build_model(tokenizer, SHAPE)


def write_student(folder: Path) -> Path:
    for part in make_student():
        part.save_pretrained(folder)
    return folder
