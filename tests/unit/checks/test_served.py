"""What an external server says of itself, and when it is the teacher that the settings name."""

import re
from dataclasses import replace

import pytest
from breaking import served_by_vllm
from fake_sglang import FakeSGLang
from tiny_teacher import edit_byte

from verl_ext.checks.finding import OK, WARN
from verl_ext.checks.run import check
from verl_ext.checks.served import is_named
from verl_ext.checks.teacher_engine import cost
from verl_ext.run.models import load_tokenizer
from verl_ext.teacher.engines.engine import Served


def test_an_external_server_of_the_same_model_passes_and_one_that_cannot_say_is_a_warning(compose_pair, pair):
    tokenizer = load_tokenizer(str(pair.student))
    fake = pair.serve(FakeSGLang(vocabulary=2, tokenize=lambda text: tokenizer.encode(text, add_special_tokens=False)))
    fake.info["model_path"] = f"/on/another/machine/{pair.student.name}"
    config = compose_pair("teacher.mode=external", f"teacher.urls=[{fake.url}]")
    assert len(check(config)) == 1  # what is planned
    fake.info, fake.tokenize = {}, None
    _, *lines = check(config)
    assert [line.split(": ")[1] for line in lines] == ["served model", "served tokenizer"]


@pytest.mark.parametrize(
    ("said", "served", "same"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", True),
        ("Qwen/Qwen3-8B", "/models/Qwen3-8B/", True),
        ("Qwen/Qwen3-8B", "/hub/models--Qwen--Qwen3-8B/snapshots/a1b2", True),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", False),
        ("Qwen/Qwen3-8B", "/hub/models--Qwen--Qwen3-8B-Base/snapshots/a1b2", False),
    ],
)
def test_a_model_is_named_by_its_hub_name_or_its_folders(said, served, same):
    found = Served(served, served, "default", "auto", None, "auto", "0.5.21")
    assert is_named(said, found) is same
    assert is_named(said, replace(found, name=said))


def test_two_folders_of_this_machine_are_compared_by_their_files(pair):
    (pair.scratch / "a").mkdir()
    there = pair.copy("a/base")
    served = Served(str(there), str(there), "default", "auto", None, "auto", "0.5.21")
    assert is_named(str(pair.student), served)
    edit_byte(there / "model.safetensors")
    assert not is_named(str(pair.student), served)


def test_a_vllm_server_passes_and_is_said_to_read_whole_prompts(compose_pair, pair):
    config = compose_pair(*served_by_vllm("method.loss=forward_kl", "method.top_k=20")(pair))
    _, line = check(config)
    assert re.fullmatch(
        r"warning: teacher engine: vLLM scores from the first token on: \d\.\d x the tokens that .*; shorten what.*",
        line,
    )


def test_what_scoring_from_the_first_token_costs():
    # 8 samples of 16 tokens to a prompt of 1,000: 8 x 1,016 tokens instead of 1,000 + 8 x 16
    assert cost("vLLM", 1000, 16, 8).numbers["times"] == pytest.approx(8128 / 1128)
    assert "7.2 x the tokens" in cost("vLLM", 1000, 16, 8).seen
    assert (cost("vLLM", 1000, 16, 8).verdict, cost("vLLM", 64, 1024, 4).verdict) == (WARN, OK)
    assert cost("vLLM", 1000, 16, 1).numbers["times"] == 1
