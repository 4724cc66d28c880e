"""`benchmarks.timed_pipeline` on one case: the real pipeline around engines that only take time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


def test_a_stream_overlaps_its_stages(tmp_path: Path):
    demo = tmp_path / "demo"
    for words in (
        ("recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={demo}/data"),
        ("recipe.tiny_pair", f"data_dir={demo}/data", f"out_dir={demo}/models/base", "vocab_size=400", "steps=5"),
    ):
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)
    command = ["-m", "benchmarks.timed_pipeline", "--only", "1:1:1, stream", "--steps", "4", "--demo", str(demo)]
    command += ["--out", str(tmp_path / "runs"), "--json", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, text=True, capture_output=True, check=False)
    assert (tmp_path / "found.json").exists(), (done.stdout + done.stderr)[-4000:]
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert sum(row["busy"].values()) > 1.2  # of three stages, one after the other 1.0
    assert row["staleness"] > 0
