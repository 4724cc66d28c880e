"""A Qwen3 of a published shape with random weights, a tokenizer in which a word is a token, and rows of given lengths.

    python -m benchmarks.arms.random_model FOLDER NAME {cpu,cuda} DTYPE      # the model alone

Speed, memory and numerical agreement mean something with it; learning does not. A process of its own makes the model,
so that nothing of it stays on a GPU.
"""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from verl_ext.plan.shape import published
from verl_ext.run.model_shape import QWEN3

TIMEOUT_S = 300
EOS, PAD, NEWLINE, TURN_END, ANSWER = range(5)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}t" + str(ANSWER) + "{% endif %}"
)
"""The content, and one word that opens the answer."""


def shape_of(name: str) -> dict[str, Any]:
    """Configuration of a published Qwen3 by hub name, or of a config.json.

    Raises:
        ValueError: if it is neither, or has experts.
    """
    file = Path(name)
    config = json.loads(file.read_text()) if file.suffix == ".json" else published().get(name)
    if config is None or config["model_type"] != QWEN3:
        dense = [key for key, value in published().items() if value["model_type"] == QWEN3]
        raise ValueError(f"{name}: no config.json of a {QWEN3} model, and none of {', '.join(dense)}")
    return config


def make_model(folder: Path, name: str, device: str, dtype: str) -> None:
    """`write_model` in a process of its own. `name`: see `shape_of`; `dtype`: torch's name of it."""
    command = [sys.executable, "-m", "benchmarks.arms.random_model", str(folder), name, device, dtype]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)


def write_model(folder: Path, name: str, device: str, dtype: str) -> None:
    """Weights that give a peaked distribution, and the tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "head_dim", "tie_word_embeddings")
    shape = {key: value for key, value in shape_of(name).items() if key in keys}
    config = Qwen3Config(
        **shape, max_position_embeddings=40_960, dtype=dtype, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2:  # norms stay 1
                parameter.normal_(0, 0.05 if "embed" in key else parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    write_tokenizer(folder, config.vocab_size)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """`t7` is token 7. The special tokens have names that no other holds, else they would be found inside it.

    verl wants a newline and an end of turn of every Qwen.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<eos>": EOS, "<pad>": PAD, "\n": NEWLINE, "<|im_end|>": TURN_END}
    words = Tokenizer(models.WordLevel(special | {f"t{i}": i for i in range(ANSWER, vocab_size)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")  # pyright: ignore[reportAttributeAccessIssue]  the stub has no setter
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path, rows: int, vocab_size: int, prompt: int, teacher_prompt: int) -> None:
    """train.parquet and heldout.parquet, whose rendered prompts have `prompt` and `teacher_prompt` tokens.

    Raises:
        ValueError: if the teacher's prompt is shorter than the student's, which it holds.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not 2 <= prompt <= teacher_prompt:
        raise ValueError(f"expected 2 <= prompt={prompt} <= teacher_prompt={teacher_prompt} tokens")
    draw = random.Random(0)
    shared = draw.choices(range(ANSWER + 1, vocab_size), k=teacher_prompt - prompt)

    def message(ids: list[int]) -> list[dict[str, str]]:
        return [{"role": "user", "content": " ".join(f"t{i}" for i in ids)}]

    made = []
    for number in range(rows):
        own = draw.choices(range(ANSWER + 1, vocab_size), k=prompt - 1)
        made.append(
            {
                "prompt": message(own),
                "teacher_messages": message(shared + own),
                "data_source": "random",
                "reward_model": {"style": "rule", "ground_truth": ""},
                "extra_info": {"index": number},
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(made), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(made[:1]), folder / "heldout.parquet")


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), *sys.argv[2:])
