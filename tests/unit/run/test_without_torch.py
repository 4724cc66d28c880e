"""What a refused run reads of a model without torch, and that files in GGUF are read as ever."""

import importlib
import subprocess
import sys

import pytest
from tiny_student import write_student
from transformers import AutoConfig

from verl_ext.run.without_torch import FUNCTION, GGUF, stand_in

READS = """
import sys
from verl_ext.run import models
folder = sys.argv[1]
tokenizer = models.load_tokenizer(folder)
tokens = models.render_chat(tokenizer, [{"role": "user", "content": "Good morning"}], {})
print(len(tokens) > 0, models.end_tokens("k", folder), models.context_length("k", folder), "torch" in sys.modules)
"""


def test_a_tokenizer_a_prompt_and_two_limits_need_no_torch(tmp_path, pytestconfig):
    folder = write_student(tmp_path / "student")
    done = subprocess.run(
        [sys.executable, "-c", READS, str(folder)],
        **{"cwd": pytestconfig.rootpath, "capture_output": True, "text": True, "check": True},
    )
    config = AutoConfig.from_pretrained(folder)
    expected = f"True {{{config.eos_token_id}}} {config.max_position_embeddings} False"
    assert done.stdout.strip() == expected


def test_transformers_reads_gguf_where_it_is_asked_to(monkeypatch):
    assert callable(getattr(importlib.import_module(GGUF), FUNCTION))
    monkeypatch.setitem(sys.modules, GGUF, stand_in())
    with pytest.raises(ImportError, match="gguf"):  # the package for such files is not installed
        getattr(sys.modules[GGUF], FUNCTION)("nothing.gguf")
    assert sys.modules[GGUF].__file__
