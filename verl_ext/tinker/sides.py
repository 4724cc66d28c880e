"""Both sides of the comparison, each asked in a process of its own about the same rows."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.data.conversations import conversation, to_jsonl
from verl_ext.data.rows import PLACEHOLDER, make_row
from verl_ext.data.sentences import tinker_sentences

Notes = dict[str, Any]
HERE = Path(__file__).parent
LORA_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
LORA_MODEL_CONFIG = HERE / "qwen3-4b-instruct-2507.json"
TRICKY_ANSWERS = (
    "Final Answer: en",
    "Final Answer: xx\nFinal Answer: de",
    "So it is Greek.\n\nFinal Answer: Greek, surely",
    "final answer: en",
    "I cannot tell.",
    "Final Answer: {fr}",
)
"""What the notes' teacher answers: one label, two, a word that is none, and misses."""


@dataclass(frozen=True)
class ParityConfig:
    """Settings of `python -m recipe.compare parity`; any other key=value goes to recipe.sft."""

    out: str = "outputs/parity/parity.json"
    """File for the result; the Markdown table has the same name and ends in .md."""
    student: str = "outputs/demo/models/base"
    """Any small model with Qwen3's chat tokens: its tokenizer is used by both sides, its weights by ours."""
    conversations: str = ""
    """JSONL to train on; empty takes Tinker's 2,100 sentences with the labels of their layout."""
    tinker_python: str = ""
    """Interpreter of an environment with other versions of tinker and tinker-cookbook (0.6.1 or later); empty: ours."""


def default_conversations() -> bytes:
    """Tinker's sentences, each with its label, edge cases with `ot`: real rows, where labels do not matter."""
    rows = [make_row(sentence, PLACEHOLDER, "train", "") for sentence in tinker_sentences()]
    return to_jsonl([conversation(row, row["label"] or "ot") for row in rows], columns=("messages",))


def run_side(command: list[str], **kwargs: Any) -> str:
    """Standard output of one side. RuntimeError with the end of its log if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **kwargs)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed; its last words: {done.stderr[-3000:]}")
    return done.stdout


def check_tinker(python: str) -> None:
    """ValueError unless the interpreter exists and finds Tinker's packages."""
    if shutil.which(python) is None:
        raise ValueError(f"tinker_python={python}: no such interpreter; correct the path")
    names = ("chz", "termcolor", "tinker", "tinker_cookbook")
    look = f"import importlib.util as u; print(*[n for n in {names!r} if u.find_spec(n) is None])"
    if missing := run_side([python, "-c", look]).split():
        raise ValueError(
            f"{python} has no {', '.join(missing)}: run `make setup`, or name another environment with tinker_python="
        )


def gather(config: ParityConfig, overrides: list[str], configs: Path, folder: Path) -> tuple[Notes, Notes]:
    """What Tinker and we do with the same rows and the same tokenizer; `configs` are ours, `folder` is for notes."""
    conversations = Path(config.conversations)
    if not config.conversations:
        conversations = folder / "conversations.jsonl"
        conversations.write_bytes(default_conversations())
    request = {
        "conversations": str(conversations.absolute()),
        "tokenizer": str(Path(config.student).absolute()),
        "renderer": "qwen3_instruct",
        "lora_model": LORA_MODEL,
        "answers": TRICKY_ANSWERS,
    }
    oracle = HERE / "oracle.py"
    tinker = json.loads(run_side([config.tinker_python or sys.executable, str(oracle)], input=json.dumps(request)))
    places = {"student.path": request["tokenizer"], "data.train_files": request["conversations"], "run_dir": folder}
    platform = [] if any(o.startswith("platform=") for o in overrides) else ["platform=cpu"]
    request |= {
        "overrides": [*platform, *overrides, *(f"{key}={value}" for key, value in places.items())],
        "config_dir": str(configs / "sft"),
        "lora_model_config": str(LORA_MODEL_CONFIG),
    }
    asked, noted = folder / "request.json", folder / "ours.json"
    asked.write_text(json.dumps(request))
    run_side([sys.executable, "-m", "verl_ext.tinker.ours", str(asked), str(noted)])
    return tinker, json.loads(noted.read_text())
