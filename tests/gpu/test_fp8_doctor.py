"""On a GPU: an FP8 teacher against the same weights in bfloat16, on real vLLM rollouts of the student.

MODEL (a folder or a Hugging Face name, e.g. Qwen/Qwen3-0.6B) and TEACHER_PYTHON are read from the environment.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif("MODEL" not in os.environ, reason="set MODEL to the student"),
]

ROOT = Path(__file__).parents[2]


def test_fp8_changes_few_signs(tmp_path: Path) -> None:
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
    command = [sys.executable, "-m", "recipe.doctor", "platform=cuda", f"student.path={os.environ['MODEL']}"]
    command += [f"data.train_files={tmp_path}/rows.parquet", f"data.val_files={tmp_path}/rows.parquet"]
    command += ["teacher.dtype=bfloat16", "teacher.quantization=fp8", "teacher.mem_fraction_static=0.4"]
    command += [f"teacher.python={os.environ.get('TEACHER_PYTHON', '.venv-teacher/bin/python')}"]
    command += ["doctor.rows=32", "doctor.transformers_max_bytes=40000000000", f"doctor.out={tmp_path}/doctor.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {f["name"]: f for f in json.loads((tmp_path / "doctor.json").read_text())["findings"]}
    gap = findings["precision"]["numbers"]
    assert findings["precision"]["seen"].startswith("fp8 against bfloat16")
    assert gap["tokens"] > 1000
    assert 0 < gap["mean"] < 0.2  # 0 would mean that both servers ran the same precision
    assert gap["sign_mass"] < 0.05
