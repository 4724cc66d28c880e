"""An FP8 teacher against the same weights in bfloat16, on real vLLM rollouts of a real student: MODEL."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif("MODEL" not in os.environ, reason="set MODEL to a folder or a Hugging Face name"),
]


def test_fp8_changes_few_signs(cuda, out: Path, run_module: Callable[..., str], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    questions = ["What is a prime number?", "Why is the sky blue?", "Name three rivers.", "How does a lock work?"] * 8
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "teacher_messages": [{"role": "user", "content": f"Answer in one short sentence. {question}"}],
            "data_source": "questions",
            "reward_model": {"style": "rule", "ground_truth": ""},
        }
        for question in questions
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    words = [*cuda.words, "teacher=fp8", f"student.path={os.environ['MODEL']}"]
    words += [f"data.train_files={tmp_path}/rows.parquet", f"data.val_files={tmp_path}/rows.parquet"]
    words += ["doctor.rows=32", "doctor.transformers_max_bytes=40000000000", f"doctor.out={out}/fp8_doctor.json"]
    run_module("fp8_doctor", "recipe.doctor", *words)
    findings = {f["name"]: f for f in json.loads((out / "fp8_doctor.json").read_text())["findings"]}
    gap = findings["precision"]["numbers"]
    assert findings["precision"]["seen"].startswith("fp8 against bfloat16")
    assert gap["tokens"] > 1000
    assert 0 < gap["mean"] < 0.2  # 0 would mean that both servers ran the same precision
    assert gap["sign_mass"] < 0.05
