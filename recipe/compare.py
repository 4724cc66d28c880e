"""Is this Tinker's recipe? Its installed code and ours, value by value.

    python -m recipe.compare parity                         # the preset `tinker`
    python -m recipe.compare parity preset=seed         # any override of recipe.sft

Tinker's values come from its installed packages, which run their own training loop against a service that only takes
notes: no network, no key. Ours come from the trainer as it is really built. Writes parity.json and parity.md; the exit
status is 1 if a difference has no explanation.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from verl_ext.data.conversations import conversation, from_jsonl, to_jsonl
from verl_ext.data.rows import PLACEHOLDER, make_row
from verl_ext.data.sentences import tinker_sentences
from verl_ext.run.files import write_json
from verl_ext.run.models import check_model
from verl_ext.tinker import parity

ROOT = Path(__file__).parent.parent
LORA_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
LORA_MODEL_CONFIG = ROOT / "verl_ext" / "tinker" / "qwen3-4b-instruct-2507.json"
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


def parse(arguments: list[str]) -> tuple[ParityConfig, list[str]]:
    """Our settings, and the overrides that are not ours. ValueError on what is no key=value."""
    ours: dict[str, str] = {}
    overrides: list[str] = []
    names = {field.name for field in fields(ParityConfig)}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument}: expected key=value; keys of parity: {', '.join(sorted(names))}")
        if key in names:
            ours[key] = value
        else:
            overrides.append(argument)
    return ParityConfig(**ours), overrides


def default_conversations() -> bytes:
    """Tinker's sentences, each with its label, edge cases with `ot`: real rows, where labels do not matter."""
    rows = [make_row(sentence, PLACEHOLDER, "train", "") for sentence in tinker_sentences()]
    return to_jsonl([conversation(row, row["label"] or "ot") for row in rows], columns=("messages",))


def run_side(command: list[str], **kwargs: Any) -> str:
    """Standard output of one side. RuntimeError with the end of its log if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **kwargs)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def check_tinker(python: str) -> None:
    """ValueError unless the interpreter exists and finds Tinker's packages."""
    if shutil.which(python) is None:
        raise ValueError(f"tinker_python={python}: no such interpreter")
    names = ("chz", "termcolor", "tinker", "tinker_cookbook")
    look = f"import importlib.util as u; print(*[n for n in {names!r} if u.find_spec(n) is None])"
    if missing := run_side([python, "-c", look]).split():
        raise ValueError(
            f"{python} has no {', '.join(missing)}: run `make setup`, or name another environment with tinker_python="
        )


def gather(config: ParityConfig, overrides: list[str], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Tinker and we do with the same rows and the same tokenizer."""
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
    oracle = ROOT / "verl_ext" / "tinker" / "oracle.py"
    tinker = json.loads(run_side([config.tinker_python or sys.executable, str(oracle)], input=json.dumps(request)))
    places = {"student.path": request["tokenizer"], "data.train_files": request["conversations"], "run_dir": folder}
    platform = [] if any(o.startswith("platform=") for o in overrides) else ["platform=cpu"]
    request |= {
        "overrides": [*platform, *overrides, *(f"{key}={value}" for key, value in places.items())],
        "config_dir": str(ROOT / "configs" / "sft"),
        "lora_model_config": str(LORA_MODEL_CONFIG),
    }
    asked, noted = folder / "request.json", folder / "ours.json"
    asked.write_text(json.dumps(request))
    run_side([sys.executable, "-m", "verl_ext.tinker.ours", str(asked), str(noted)], cwd=ROOT)
    return tinker, json.loads(noted.read_text())


def print_table(comparisons: list[parity.Comparison]) -> None:
    """The values in 80 columns, and below them why some differ or cannot be known."""
    colours = {parity.MATCH: "green", parity.DIFFERS: "yellow", parity.UNKNOWABLE: "dim"}
    console = Console()
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for column in ("", "value", "Tinker", "ours", ""):
        table.add_column(column, overflow="fold")
    for c in comparisons:
        status = f"[{colours[c.status] if c.ok else 'red'}]{c.status}[/]"
        table.add_row(c.area, c.name, c.tinker, c.ours, status)
    console.print(table)
    for c in comparisons:
        if c.status != parity.MATCH:
            console.print(f"{c.status}: {c.area}, {c.name}: {c.reason or 'UNEXPLAINED'}", highlight=False, markup=False)


def compare_parity(config: ParityConfig, overrides: list[str]) -> bool:
    """Compare, report; returns whether every difference has an explanation."""
    check_model("student", config.student)
    check_tinker(config.tinker_python or sys.executable)
    if config.conversations:
        from_jsonl(Path(config.conversations))
    with tempfile.TemporaryDirectory() as folder:
        tinker, ours = gather(config, overrides, Path(folder))
    comparisons, versions = parity.compare(tinker, ours), tinker["versions"]
    print_table(comparisons)
    out = Path(config.out)
    result = parity.report(comparisons, versions) | {"config": asdict(config), "overrides": overrides}
    write_json(out, result)
    out.with_suffix(".md").write_text(parity.markdown(comparisons, versions))
    print(parity.markdown(comparisons, versions).splitlines()[0])
    print(f"{out} and {out.with_suffix('.md')} written")
    return result["ok"]


def main() -> None:
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("--help", "-h"):
        print(__doc__)
        return
    if verb != "parity":
        sys.exit(f"error: {verb}: expected parity, as in python -m recipe.compare parity")
    try:
        ok = compare_parity(*parse(arguments))
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
