"""The two files of a teacher's answers, read as the student reads them; what is in neither, and what does not fit."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_run import write_rows

from verl_ext.data.conversations import to_parquet
from verl_ext.run.models import load_tokenizer, render_chat
from verl_ext.sampling.answers import Answers, table_of
from verl_ext.sampling.types import Sample
from verl_ext.trainer.taught import read_answers

DATA = SimpleNamespace(max_prompt_length=64, max_response_length=12)
ASKED = [{"role": "user", "content": "text 0"}]


@pytest.fixture(scope="module")
def tokenizer(student):
    return load_tokenizer(str(student))


def conversations(folder: Path, *answers: str, role: str = "assistant") -> str:
    rows = [{"messages": [*ASKED, {"role": role, "content": answer}]} for answer in answers]
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def of_stage(folder: Path, *ids: list[int], texts: list[str], truncated: bool = False) -> str:
    rows = pq.read_table(write_rows(folder / "rows.parquet", len(ids)))
    finish = "length" if truncated else "stop"
    samples = [
        Sample(text, len(row), finish, ids=row, logprobs=[-1.0] * len(row))
        for row, text in zip(ids, texts, strict=True)
    ]
    Answers(table_of(rows, samples, 1), "TEACHER", {"view": "teacher"}).write(folder / "stage.parquet")
    return str(folder / "stage.parquet")


def test_a_conversations_last_message_is_the_answer_and_ends_as_the_student_would(tokenizer, tmp_path):
    path = conversations(tmp_path, "de", "<|im_end|>")
    found = read_answers(path, tokenizer, {"mark": "!"}, DATA)
    prompt = render_chat(tokenizer, ASKED, {"mark": "!"})
    assert found.prompts == [prompt, prompt]
    assert found.responses[0] == [*tokenizer.encode("de", add_special_tokens=False), tokenizer.eos_token_id]
    assert found.responses[1].count(tokenizer.eos_token_id) == 1  # the one of the text is text
    assert found.said == "2 conversations"
    same = tmp_path / "same.parquet"
    same.write_bytes(to_parquet([{"messages": [*ASKED, {"role": "assistant", "content": "de"}]}]))
    assert read_answers(str(same), tokenizer, {"mark": "!"}, DATA).responses == found.responses[:1]


def test_a_stage_file_is_read_token_by_token_under_the_students_prompt(tokenizer, tmp_path):
    eos = tokenizer.eos_token_id
    ids = [[*tokenizer.encode(text, add_special_tokens=False), eos] for text in ("de", "en")]
    found = read_answers(of_stage(tmp_path, *ids, texts=["de", "en"]), tokenizer, {}, DATA)
    assert found.responses == ids
    assert found.prompts == [render_chat(tokenizer, [{"role": "user", "content": f"text {i}"}], {}) for i in (0, 1)]
    assert found.said == "2 answers of TEACHER, which saw the teacher's prompt"
    cut = of_stage(tmp_path, ids[0][:-1], texts=["de"], truncated=True)
    assert read_answers(cut, tokenizer, {}, DATA).said.endswith("teacher's prompt, 1 of them cut off")


def test_answers_as_rows_of_a_batch(tokenizer, tmp_path):
    found = read_answers(conversations(tmp_path, "de", "en fr"), tokenizer, {}, DATA)
    rows = found.rows([1, 0], version=3, top_k=2)
    assert rows.token_ids_N.tolist() == [t for i in (1, 0) for t in found.prompts[i] + found.responses[i]]
    assert rows.mask_N.sum() == len(found.responses[0]) + len(found.responses[1])
    assert [rows.token_ids_N[rows.mask_N].tolist()] == [found.responses[1] + found.responses[0]]
    assert rows.top_ids_NK.shape == (len(rows.token_ids_N), 2)
    assert rows.first_versions_B.tolist() == [3, 3]


def refused(path: str, tokenizer, reason: str, data=DATA) -> None:
    with pytest.raises(ValueError, match=rf"^method\.off_policy_data={path}.*{reason}") as raised:
        read_answers(path, tokenizer, {}, data)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_trained_on_whole_is_refused_with_its_row(tokenizer, tmp_path):
    refused(str(tmp_path / "none.jsonl"), tokenizer, "no such file; make it with")
    refused(conversations(tmp_path, "de", "de en fr " * 9), tokenizer, "row 1: its response has .*max_response_length")
    short = SimpleNamespace(max_prompt_length=2, max_response_length=12)
    refused(conversations(tmp_path, "de"), tokenizer, "row 0: its prompt has .*max_prompt_length", short)
    refused(conversations(tmp_path, "de", role="user"), tokenizer, "row 0 ends with a message of role 'user'")
    refused(conversations(tmp_path), tokenizer, "not JSON")
    refused(of_stage(tmp_path, [5, 6], texts=["something else"]), tokenizer, "1 of 1 answers read otherwise")
    (tmp_path / "stage.parquet").unlink()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "stage.parquet")
    refused(str(tmp_path / "stage.parquet"), tokenizer, 'expected "messages"')
