"""What the tests with real engines share: a tiny random model and the teacher's python."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def write_tiny_qwen3(folder: Path, seed: int = 0) -> Path:
    """A random fp32 Qwen3 of ~80k parameters with a byte tokenizer, saved as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokens = ["<|pad|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eos|>", pad_token="<|pad|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's CPU attention has
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,  # with 0.02 the distribution is so flat that a shift by one would hardly show
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen3(tmp_path_factory.mktemp("tiny-qwen3"))


@pytest.fixture(scope="session")
def teacher_python() -> str:
    """The teacher environment's interpreter: TEACHER_PYTHON, else .venv-teacher in the repository."""
    python = Path(os.environ.get("TEACHER_PYTHON", ROOT / ".venv-teacher/bin/python"))
    if not python.is_file():
        pytest.fail(f"no {python}: run `make setup`, or set TEACHER_PYTHON")
    return str(python)
