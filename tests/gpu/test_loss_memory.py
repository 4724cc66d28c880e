"""Peak memory of the direct losses at a real shape: what CUDA's allocator says, where a CPU counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def test_chunked_losses_stay_within_their_bounds(machine, out: Path, run_module: Callable[..., str]) -> None:
    file = out / "loss_memory.json"
    text = run_module("loss_memory", "benchmarks.loss_memory", "--json", str(file), check=False)
    assert file.is_file(), text[-4000:]
    assert [bar for bar in json.loads(file.read_text())["bars"] if bar[3] != "ok"] == [], text
    assert ("(allocated)" in text) == (machine.platform == "cuda")
