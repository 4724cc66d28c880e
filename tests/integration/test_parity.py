"""Tinker's installed packages against our trainer as it is really built, through the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from verl_ext.data.rows import LABELS
    from verl_ext.data.sentences import tinker_sentences
    from verl_ext.demo.tiny_pair import build_model, train_tokenizer

    folder = tmp_path_factory.mktemp("parity-student")
    tokenizer = train_tokenizer([s.text for s in tinker_sentences()[:300]], LABELS, 1024)
    build_model(tokenizer, SHAPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def compare(student: Path, out: Path, *arguments: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "recipe.compare", "parity", f"student={student}", f"out={out}", *arguments]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    assert out.exists(), done.stdout[-3000:]
    return done.returncode, {c["name"]: c for c in json.loads(out.read_text())["comparisons"]}


def test_the_preset_tinker_is_tinkers(student: Path, tmp_path: Path):
    status, found = compare(student, tmp_path / "parity.json")
    assert status == 0, [c for c in found.values() if not c["ok"]]
    assert found["batches with these rows in this order"]["tinker"] == "64"
    assert found["parameters on Qwen/Qwen3-4B-Instruct-2507"]["ours"] == "71004160"
    assert {found[name]["status"] for name in ("alpha", "first weights", "dtypes")} == {"unknowable"}
    assert (tmp_path / "parity.md").read_text().startswith("Against tinker-cookbook ")


def test_the_preset_seed_is_not(student: Path, tmp_path: Path):
    status, found = compare(student, tmp_path / "parity.json", "preset=seed")
    assert status == 1
    assert {name for name, c in found.items() if not c["ok"]} == {
        "learning rate, 64 steps (0, 1, last)",
        "eps",
        "weight decay",
        "gradient clipping",
    }
