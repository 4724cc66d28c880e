"""`generate`, `score` and `evaluate` refuse by the same list as training, before an engine or a server starts."""

import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_student import ROW, make_student

from recipe import evaluate, generate, score
from verl_ext.sampling.answers import Answers, table_of
from verl_ext.sampling.types import Sample

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "stop": [], "enable_thinking": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, one without a template, one with another, one cut off, rows and answers."""
    folder = tmp_path_factory.mktemp("commands")
    tokenizer, model = make_student()
    for name, template in (("model", tokenizer.chat_template), ("plain", None), ("other", "{{ messages }}!")):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder / name)
        model.save_pretrained(folder / name)
    shutil.copytree(folder / "model", folder / "half")
    os.truncate(folder / "half/model.safetensors", 1000)
    rows = pa.Table.from_pylist([ROW])
    pq.write_table(rows, folder / "rows.parquet")
    answers = table_of(rows, [Sample("en", 1, "stop", [1], [-0.5])], 1)
    settings = {"view": "student", "n": 1, "sampling": SAMPLING}
    Answers(answers, str(folder / "model"), settings).write(folder / "answers.parquet")
    return folder


NOBODY = ("teacher.mode=external", "teacher.urls=[http://127.0.0.1:9]", "teacher.request_timeout_s=5")


def refusal(monkeypatch, verb, *overrides: str) -> str:
    """What a command ends with that is refused."""
    monkeypatch.setattr(sys, "argv", [verb.__name__, *overrides])
    with pytest.raises(SystemExit) as ended:
        verb.main()
    assert "\n" not in str(ended.value)
    return str(ended.value)


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        (generate, "model=/nowhere/m data=ROWS", "error: model=/nowhere/m: no such folder"),
        (generate, "model=MODEL data=none.parquet", "error: data=none.parquet: no such file"),
        (generate, "model=MODEL data=ANSWERS", "has answers already (column row); give the rows"),
        (generate, "model=PLAIN data=ROWS", "has no chat template; add chat_template.jinja"),
        (generate, "model=HALF data=ROWS", "half/model.safetensors is no safetensors file, or cut off in its header"),
        (score, "data=ANSWERS teacher.model_path=HALF", "error: teacher.model_path: HALF/model.safetensors is no safe"),
        (evaluate, "data=ROWS student=HALF", "error: student: HALF/model.safetensors is no safetensors file, or cut"),
        (evaluate, "data=ROWS student=PLAIN", "has no chat template; add chat_template.jinja"),
        (score, "data=ROWS teacher.model_path=MODEL", "holds no answers of `python -m recipe.generate`"),
        (score, "data=ANSWERS teacher.model_path=/nowhere/m", "error: teacher.model_path=/nowhere/m: no such folder"),
        (score, "data=ANSWERS teacher.model_path=MODEL teacher.python=/nowhere/p", "error: teacher.python=/nowhere/p"),
        (score, "data=ANSWERS teacher.model_path=MODEL teacher.host=0.0.0.0", "error: teacher.host=0.0.0.0 lets other"),
        (score, "data=ANSWERS teacher.model_path=OTHER teacher.python=PYTHON", "error: chat template: row 0 prompt"),
        (score, f"data=ANSWERS {' '.join(NOBODY)}", "error: teacher.urls: a server does not score: http://127.0.0.1:9"),
        (evaluate, "data=ROWS student=/nowhere/m", "error: student=/nowhere/m: no such folder"),
        (evaluate, "data=none.parquet base=MODEL", "error: data=none.parquet: no such file"),
        (evaluate, "data=ROWS", "error: nothing to evaluate; set at least one of base"),
    ],
)
def test_a_command_refuses_by_the_list(monkeypatch, folder, tmp_path, verb, words, message):
    for name, path in (("MODEL", "model"), ("PLAIN", "plain"), ("OTHER", "other"), ("HALF", "half")):
        words, message = (each.replace(name, str(folder / path)) for each in (words, message))
    words = words.replace("ROWS", f"{folder}/rows.parquet").replace("ANSWERS", f"{folder}/answers.parquet")
    words = words.replace("PYTHON", sys.executable)
    assert message in refusal(monkeypatch, verb, *words.split(), f"out={tmp_path}/out.parquet")
    assert not list(tmp_path.iterdir())
