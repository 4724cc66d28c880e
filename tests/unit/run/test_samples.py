"""`samples.jsonl`: nothing twice, nothing half, and the texts of tokens give the answer."""

import json
from dataclasses import replace

import pytest

from verl_ext.demo.tiny_pair import train_tokenizer
from verl_ext.run.samples import Sample, SamplesFile, numbers, read_samples, token_text, token_texts

SAMPLE = Sample(
    step=0,
    row=3,
    prompt="a\u2028b <script>",
    answer="x\ny\u202e",
    truth=None,
    score=0.5,
    finish="stop",
    tokens=["x\ny\u202e", "<|im_end|>"],
    student_logprobs=[-0.5, -0.25],
    teacher_logprobs=None,
    alternatives=[[("x", -0.125)], []],
)


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level: nearly every character beyond ASCII takes several tokens."""
    return train_tokenizer(["some text"], ["de", "en"], 300)


def test_a_line_has_the_fields_that_its_readers_know_and_is_one_line(tmp_path):
    file = SamplesFile(tmp_path / "run" / "samples.jsonl")
    file.append([SAMPLE])
    assert len(file.path.read_text().splitlines()) == 1  # which also breaks at U+2028
    (line,), cut = read_samples(file.path)
    assert cut == 0
    assert line == {
        "schema": 1,
        **{"step": 0, "row": 3, "prompt": "a\u2028b <script>", "answer": "x\ny\u202e", "truth": None, "score": 0.5},
        **{"finish": "stop", "tokens": ["x\ny\u202e", "<|im_end|>"], "student_logprobs": [-0.5, -0.25]},
        **{"teacher_logprobs": None, "alternatives": [[["x", -0.125]], []], "cut_characters": 0, "cut_tokens": 0},
    }


def test_a_resumed_run_writes_no_line_twice_and_goes_on_behind_half_a_line(tmp_path):
    SamplesFile(tmp_path / "samples.jsonl").append([SAMPLE, replace(SAMPLE, step=2)])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"schema": 1, "step": 2, "row": 4')
    assert read_samples(tmp_path / "samples.jsonl")[1] == 1
    again = SamplesFile(tmp_path / "samples.jsonl")
    again.append([replace(SAMPLE, step=2, answer="other"), replace(SAMPLE, step=2, row=4)])
    again.append([replace(SAMPLE, step=2, row=4), replace(SAMPLE, step=4)])
    lines, cut = read_samples(again.path)
    assert [(line["step"], line["row"], line["answer"]) for line in lines] == [
        (step, row, SAMPLE.answer) for step, row in ((0, 3), (2, 3), (2, 4), (4, 3))
    ]
    assert cut == 0


def test_a_file_of_another_version_is_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text(json.dumps({"schema": 2}) + "\n")
    with pytest.raises(ValueError, match="line 1: schema 2, this version reads 1"):
        read_samples(tmp_path / "samples.jsonl")


def test_a_value_for_every_token():
    with pytest.raises(ValueError, match="1 student_logprobs for 2 tokens"):
        replace(SAMPLE, student_logprobs=[-1.0])


def test_a_log_prob_that_is_no_number_leaves_none():
    assert numbers([-0.12345678, -1]) == [-0.123457, -1.0]
    assert numbers([-1.0, float("nan")]) is None
    assert numbers(None) is None


@pytest.mark.parametrize("text", ["text de", "Ελληνικά και 日本語 🙂!", "a\n\tb  c", "مرحبا"])
def test_the_texts_of_tokens_joined_are_the_answer(tokenizer, text):
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    texts = token_texts(tokenizer, ids, 1000)
    assert len(texts) == len(ids)
    assert "".join(texts) == f"{text}<|im_end|>"


def test_bytes_that_are_no_character_are_shown_and_end(tokenizer):
    lead = tokenizer.encode("日", add_special_tokens=False)[0]  # the first of its three bytes
    ids = [lead] * 9 + tokenizer.encode("de", add_special_tokens=False)
    texts = token_texts(tokenizer, ids, 1000)
    assert len(texts) == len(ids)
    assert texts[-1].endswith("de")
    assert 0 < "".join(texts).count("\ufffd") <= 9
    assert "\ufffd" not in token_text(tokenizer, lead)
    assert token_text(tokenizer, ids[-1]) == "de"


def test_a_long_answer_ends_with_a_whole_character(tokenizer):
    ids = tokenizer.encode("ab日c", add_special_tokens=False)
    assert "".join(token_texts(tokenizer, ids, 2)) == "ab"
    assert len(token_texts(tokenizer, ids, 2)) == 2  # no token of a character that is left out
    assert "".join(token_texts(tokenizer, ids, 3)) == "ab日"
