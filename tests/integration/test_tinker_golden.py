"""The golden values are what the installed tinker-cookbook says today."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.skipif(importlib.util.find_spec("tinker_cookbook") is None, reason="tinker-cookbook is not installed")
def test_the_cookbook_says_it_again():
    script = [sys.executable, str(GOLDEN / "make_tinker_kl.py")]
    made = subprocess.run(script, text=True, capture_output=True, timeout=300, check=True).stdout
    assert json.loads(made) == json.loads((GOLDEN / "tinker_kl.json").read_text())
