"""A bad run is refused before an engine starts, in one line that names the key and the fix."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from verl_ext.checks.inputs import (
    check_batch,
    check_external_teacher,
    check_interpreter,
    check_prompt_lengths,
    check_same_tokenizer,
    check_sampling,
)
from verl_ext.checks.memory import check_memory
from verl_ext.data.rows import check_rows
from verl_ext.run.models import check_model
from verl_ext.teacher.config import TeacherConfig

ROW = {
    "prompt": [{"role": "user", "content": "Guten Tag"}],
    "teacher_messages": [{"role": "user", "content": "Which language? Guten Tag"}],
    "data_source": "language_id",
    "reward_model": {"style": "rule", "ground_truth": "de"},
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def write_rows(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def tokenizer(vocabulary: list[str], **special) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="?"))
    built = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    built.chat_template = TEMPLATE
    return built


def test_good_rows_are_returned(tmp_path):
    assert check_rows("data.train_files", write_rows(tmp_path / "a.parquet", [ROW])) == [ROW]


def test_missing_teacher_messages(tmp_path):
    row = {key: value for key, value in ROW.items() if key != "teacher_messages"}
    with pytest.raises(ValueError, match=r"data\.train_files=.*has no column teacher_messages; see data/README\.md"):
        check_rows("data.train_files", write_rows(tmp_path / "a.parquet", [row]))


@pytest.mark.parametrize("content", ["", "  \n"])
def test_empty_prompt_names_the_row(tmp_path, content):
    bad = ROW | {"teacher_messages": [{"role": "user", "content": content}]}
    with pytest.raises(ValueError, match="row 1: teacher_messages is empty"):
        check_rows("data.train_files", write_rows(tmp_path / "a.parquet", [ROW, bad]))


def test_no_file_and_no_parquet(tmp_path):
    with pytest.raises(ValueError, match=r"no such file; make it with"):
        check_rows("data.val_files", str(tmp_path / "none.parquet"))
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="is no parquet file"):
        check_rows("data.val_files", str(tmp_path / "text.parquet"))


def test_prompt_longer_than_the_limit_names_row_and_key():
    words = tokenizer(["?", "a"])
    rows = [
        ROW | {"prompt": [{"role": "user", "content": "a"}], "teacher_messages": [{"role": "user", "content": "a"}]}
    ]
    limits = {"max_response_length": 3, "template_kwargs": {}}
    check_prompt_lengths(rows, words, max_prompt_length=1, teacher_context_length=11, **limits)
    with pytest.raises(ValueError, match=r"row 0: prompt has 1 tokens.*raise data\.max_prompt_length=0"):
        check_prompt_lengths(rows, words, max_prompt_length=0, teacher_context_length=11, **limits)
    with pytest.raises(ValueError, match=r"row 0: teacher_messages.*raise teacher\.context_length=10"):
        check_prompt_lengths(rows, words, max_prompt_length=1, teacher_context_length=10, **limits)


def test_swapped_ids_and_special_tokens_are_found():
    student = tokenizer(["?", "a", "b"], eos_token="a")
    check_same_tokenizer(student, tokenizer(["?", "a", "b"], eos_token="a"))
    with pytest.raises(ValueError, match=r"2 tokens differ, first 'a' \(student id 1, teacher id 2\)"):
        check_same_tokenizer(student, tokenizer(["?", "b", "a"], eos_token="a"))
    with pytest.raises(ValueError, match="different special tokens"):
        check_same_tokenizer(student, tokenizer(["?", "a", "b"], eos_token="b"))


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.7), ("top_p", 0.9), ("top_k", 20)])
def test_sampling_must_be_the_models_own(key, value):
    rollout = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
    check_sampling(OmegaConf.create(rollout))
    with pytest.raises(ValueError, match=rf"actor_rollout_ref\.rollout\.{key}={value}"):
        check_sampling(OmegaConf.create(rollout | {key: value}))


def test_model_paths(tmp_path):
    check_model("student.path", "Qwen/Qwen3-4B-Instruct-2507")
    for path, message in ((str(tmp_path / "none"), "no such folder"), (str(tmp_path), r"no config\.json")):
        with pytest.raises(ValueError, match=message):
            check_model("student.path", path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no weights"):
        check_model("student.path", str(tmp_path))


def test_an_external_teacher_that_does_not_answer():
    nobody = TeacherConfig(mode="external", urls=["http://127.0.0.1:9"], request_timeout_s=5)
    with pytest.raises(
        ValueError, match=r"teacher\.urls: a server does not score: http://127\.0\.0\.1:9: ClientConnectorError"
    ):
        check_external_teacher(nobody, vocab_size=2)


def test_interpreter_batch_and_memory(tmp_path):
    with pytest.raises(ValueError, match=r"teacher\.python=.*make setup"):
        check_interpreter("teacher.python", str(tmp_path / "python"))
    with pytest.raises(ValueError, match=r"data\.train_batch_size=8 is larger than data\.train_files: 7 rows"):
        check_batch(8, 7)
    with pytest.raises(ValueError, match="not enough memory: this run needs about 1000000"):
        check_memory(str(tmp_path), needed_gib=1e6)
