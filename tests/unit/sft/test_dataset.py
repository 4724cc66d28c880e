import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from verl_ext.data.conversations import to_jsonl, to_parquet
from verl_ext.data.rows import LABELS
from verl_ext.demo.tiny_pair import train_tokenizer
from verl_ext.sft.dataset import ConversationDataset
from verl_ext.sft.renderer import Qwen3InstructRenderer, check_template, get_renderer

CONFIG = {"renderer": "qwen3_instruct", "max_length": 64, "truncation": "right"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Straße, naïve café", "Good morning, where is the station?"], LABELS, 300)


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def test_the_answer_and_its_end_are_trained_and_nothing_else(tokenizer):
    rendered = Qwen3InstructRenderer(tokenizer).render(chat("Good morning", "en"))
    assert (
        tokenizer.decode(rendered.tokens)
        == "<|im_start|>user\nGood morning<|im_end|>\n<|im_start|>assistant\nen<|im_end|>"
    )
    trained = [token for token, flag in zip(rendered.tokens, rendered.trained, strict=True) if flag]
    assert tokenizer.decode(trained) == "en<|im_end|>"


def test_a_special_token_written_in_a_sentence_stays_text(tokenizer):
    renderer = Qwen3InstructRenderer(tokenizer)
    assert renderer.render(chat("a<|im_end|>b", "en")).tokens.count(renderer.end) == 2


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ({"role": "tool", "content": "x"}, "role is 'tool'"),
        ({"role": "assistant", "content": " \n"}, "assistant turn is empty"),
        ({"role": "user", "content": [{"type": "image"}]}, "content of the user turn is list"),
        ({"role": "assistant", "content": "x", "tool_calls": []}, "tool_calls"),
    ],
)
def test_what_has_no_exact_form_is_refused(tokenizer, message, wanted):
    with pytest.raises(ValueError, match=wanted):
        Qwen3InstructRenderer(tokenizer).render([message])


def test_an_unknown_renderer_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"sft\.renderer=qwen3: "):
        get_renderer("qwen3", tokenizer)


def test_a_template_that_adds_a_system_prompt_is_refused(tokenizer):
    template = tokenizer.chat_template
    check_template(Qwen3InstructRenderer(tokenizer), chat("x", "y"))
    try:
        tokenizer.chat_template = "{{- '<|im_start|>system\nBe good<|im_end|>\n' }}" + template
        with pytest.raises(ValueError, match="chat template asks"):
            check_template(Qwen3InstructRenderer(tokenizer), chat("x", "y"))
    finally:
        tokenizer.chat_template = template


def test_each_row_weighs_one_however_long_its_answer(tokenizer, tmp_path):
    file = write(tmp_path / "rows.jsonl", chat("a", "en"), chat("b", "Good morning, where is the station?"))
    rows = ConversationDataset(str(file), tokenizer, CONFIG)
    for row in (rows[0], rows[1]):
        mask = row["loss_mask"]
        assert mask.dtype == torch.float32
        assert mask.sum().item() == pytest.approx(1.0, abs=1e-6)
        assert len(set(mask[mask > 0].tolist())) == 1
    assert rows[0]["loss_mask"].count_nonzero() == 2
    assert rows[1]["loss_mask"].count_nonzero() > 4


def test_jsonl_and_parquet_hold_the_same_rows(tokenizer, tmp_path):
    rows = [{"messages": chat("a", "en")}, {"messages": chat("b\u2028c", "de")}]
    (tmp_path / "rows.jsonl").write_bytes(to_jsonl(rows))
    (tmp_path / "rows.parquet").write_bytes(to_parquet(rows))
    first, second = (
        ConversationDataset(str(tmp_path / f"rows.{kind}"), tokenizer, CONFIG) for kind in ("jsonl", "parquet")
    )
    assert first.examples == second.examples
    assert first.report == second.report


def test_what_is_not_read_and_special_tokens_are_said(tokenizer, tmp_path):
    rows = [{"messages": chat("a<|im_end|>b", "en"), "id": 1, "label": "en"}, {"messages": chat("b", "en"), "id": 2}]
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    line = ConversationDataset(str(path), tokenizer, CONFIG).report.as_line()
    assert line.endswith("; 1 hold special tokens, as plain text; columns not used: id")


def test_right_truncation_is_counted_and_the_rest_of_the_answer_shares_the_weight(tokenizer, tmp_path):
    file = write(tmp_path / "rows.jsonl", chat("a", "en"), chat("a", "en " * 60))
    rows = ConversationDataset(str(file), tokenizer, CONFIG)
    assert rows.report.truncated == 1
    assert rows.report.longest == len(rows[1]["input_ids"]) == 64
    assert rows[1]["loss_mask"].sum().item() == pytest.approx(1.0, abs=1e-6)
    assert "1 cut to data.max_length, 1 of them without the end of their answer" in rows.report.as_line()


def test_a_row_that_is_cut_behind_its_answer_keeps_its_end(tokenizer, tmp_path):
    after = {"role": "user", "content": "and this? " * 20}
    file = write(tmp_path / "rows.jsonl", [*chat("a", "en"), after])
    rows = ConversationDataset(str(file), tokenizer, CONFIG)
    assert (rows.report.truncated, rows.report.endless) == (1, 0)
    assert rows.report.as_line().endswith("1 cut to data.max_length")


@pytest.mark.parametrize(
    ("rows", "changes", "wanted"),
    [
        ([chat("a", "en"), "{'messages': 1}\n"], {}, r"rows\.jsonl:2: not JSON"),
        ([chat("a", "en"), '{"prompt": "x"}\n'], {}, r"rows\.jsonl:2: "),
        ([chat("a", "en"), chat("b", "")], {}, "line 2: the assistant turn is empty"),
        ([[{"role": "user", "content": "x"}]], {}, "line 1: no token is left to train on"),
        ([chat("a" * 200, "en")], {}, r"line 1: no token is left to train on; .*\(data\.max_length=64"),
        ([chat("a", "en " * 60)] * 2, {}, r"data\.max_length=64 cuts the end of the answer off all 2 rows"),
        ([chat("a" * 200, "en")], {"truncation": "error"}, r"line 1: \d+ tokens; raise data\.max_length=64"),
        ([chat("a", "en")], {"truncation": "left"}, r"data\.truncation=left"),
        ([[{"role": "robot", "content": "x"}]], {}, "role is 'robot'"),
    ],
)
def test_a_bad_row_is_named(tokenizer, tmp_path, rows, changes, wanted):
    with pytest.raises(ValueError, match=wanted):
        ConversationDataset(str(write(tmp_path / "rows.jsonl", *rows)), tokenizer, CONFIG | changes)


@pytest.mark.parametrize(("name", "wanted"), [("none.jsonl", "no such file"), ("rows.txt", "expected a .jsonl")])
def test_a_bad_file_is_named(tokenizer, tmp_path, name, wanted):
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(ValueError, match=rf"data\.train_files=.*{name}: {wanted}"):
        ConversationDataset(str(tmp_path / name), tokenizer, CONFIG)


def test_broken_parquet_is_named(tokenizer, tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no parquet file"):
        ConversationDataset(str(tmp_path / "rows.parquet"), tokenizer, CONFIG)
