"""The exported student as GGUF: our side with a converter of a few lines, the file itself with llama.cpp's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lora_checkpoint import write_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from verl_ext.student import export
from verl_ext.student.gguf import write_gguf

ROOT = Path(__file__).parents[3]
REAL = ROOT / ".venv-gguf" / "convert_hf_to_gguf.py"
WRITES = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for word in ("model", "--outfile", "--outtype"):
    parser.add_argument(word)
asked = parser.parse_args()
pathlib.Path(asked.outfile).write_text(f"{asked.outtype} of {asked.model}")
"""
# How llama.cpp's converter ends where it does not know a tokenizer: by this very exception.
REFUSES = """
print("INFO: reading")
raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""
# A tokenizer that was trained a minute ago is in no converter's list; its split is Qwen's.
KNOWS_THE_TOKENIZER = """
import sys
sys.path.insert(0, {folder!r})
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""
READ = """
import sys, json
sys.path.insert(0, {folder!r})
import numpy
from gguf import GGUFReader
read = GGUFReader({file!r})
numpy.savez({out!r}, **{{tensor.name: tensor.data for tensor in read.tensors}})
print(json.dumps({{key: read.get_field(key).contents() for key in read.fields if key.startswith("qwen3.")}}))
"""
NAMES = {"self_attn": "attn", "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "output"}


@pytest.fixture
def typed(tmp_path, base, monkeypatch):
    """The export of a checkpoint of `base` with further words."""
    write_checkpoint(tmp_path / "actor", AutoModelForCausalLM.from_pretrained(base).state_dict())

    def run(*words: str) -> Path:
        out = tmp_path / "out"
        monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "actor"), str(out), "--base", str(base), *words])
        export.main()
        return out

    return run


def script(folder: Path, text: str) -> str:
    (folder / "converter.py").write_text(text)
    return str(folder / "converter.py")


def test_each_type_is_a_file_and_earlier_ones_go(tmp_path, typed):
    out = typed("--gguf", "f32", "q8_0", "--converter", script(tmp_path, WRITES))
    assert {path.name: path.read_text() for path in (out / "gguf").iterdir()} == {
        "student-f32.gguf": f"f32 of {out}/student",
        "student-q8_0.gguf": f"q8_0 of {out}/student",
    }
    typed("--gguf", "bf16", "--converter", script(tmp_path, WRITES))
    assert [path.name for path in (out / "gguf").iterdir()] == ["student-bf16.gguf"]


def test_a_converter_that_refuses_is_quoted_and_leaves_nothing(tmp_path, typed, capsys):
    with pytest.raises(SystemExit, match="1"):
        typed("--gguf", "f32", "--converter", script(tmp_path, REFUSES))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: --gguf f32: {tmp_path}/converter.py ended with 1: ")
    assert "NotImplementedError: BPE pre-tokenizer was not recognized; convert" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["student"]


@pytest.mark.parametrize("words", [(), ("--converter", "nowhere.py")])
def test_a_converter_that_is_missing_is_said_before_anything_is_exported(tmp_path, typed, capsys, words):
    with pytest.raises(SystemExit, match="1"):
        typed("--gguf", "f32", *words)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --gguf needs llama.cpp's converter, --converter=")
    assert said.endswith("give convert_hf_to_gguf.py; a checkout of llama.cpp has it, and requirements/gguf.txt")
    assert not (tmp_path / "out").exists()


def name_in_gguf(name: str) -> str:
    """As llama.cpp calls a weight of Qwen3."""
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    _, _, layer, *parts, last, _ = name.split(".")
    inner = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}.get(last)
    if parts == ["mlp"]:
        inner = f"ffn_{last.removesuffix('_proj')}"
    return f"blk.{layer}.{inner or 'attn_' + NAMES.get(last, last)}.weight"


@pytest.mark.skipif(
    not REAL.is_file(), reason="no converter in .venv-gguf: docs/export.md has the line that installs it"
)
def test_what_llama_cpp_reads_is_what_was_exported(tmp_path, base):
    import numpy

    converter = Path(script(tmp_path, KNOWS_THE_TOKENIZER.format(folder=str(REAL.parent))))
    write_gguf(converter, base, ["f32"], tmp_path / "gguf")
    file, out = str(tmp_path / "gguf" / "student-f32.gguf"), str(tmp_path / "tensors.npz")
    code = READ.format(folder=str(REAL.parent), file=file, out=out)
    said = subprocess.run([sys.executable, "-c", code], env=os.environ, check=True, capture_output=True, text=True)
    found, weights = numpy.load(out), load_file(base / "model.safetensors")
    assert sorted(found) == sorted(map(name_in_gguf, weights))
    for name, weight in weights.items():
        assert numpy.array_equal(found[name_in_gguf(name)], weight.float().numpy()), name
    config, read = json.loads((base / "config.json").read_text()), json.loads(said.stdout)
    assert read["qwen3.block_count"] == config["num_hidden_layers"]
    assert read["qwen3.attention.head_count"] == config["num_attention_heads"]
    assert read["qwen3.attention.head_count_kv"] == config["num_key_value_heads"]
    assert read["qwen3.attention.key_length"] == config["head_dim"]
    assert read["qwen3.rope.freq_base"] == config["rope_parameters"]["rope_theta"]
