"""A short `benchmarks.chaos`: faults that a real run survives, one after the other in the same run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
FAULTS = ("teacher's scheduler", "agent loop stopped", "network lost")


def test_a_run_goes_on_through_what_it_can_survive(tmp_path: Path):
    if subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        # A lost network is made of one; without the right to (a container's default) there is no way to lose it.
        pytest.skip("nobody may make a network namespace here")
    demo = tmp_path / "demo"
    for words in (
        ("recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={demo}/data"),
        ("recipe.tiny_pair", f"data_dir={demo}/data", f"out_dir={demo}/models/base", "vocab_size=400", "steps=5"),
    ):
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)
    command = ["-m", "benchmarks.chaos", "--modes", "one_step_off", "--faults", ",".join(FAULTS)]
    command += ["--demo", str(demo), "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert {row["fault"] for row in rows} == set(FAULTS)
    assert {(row["outcome"], row["lost"]) for row in rows} == {("goes on", 0)}
