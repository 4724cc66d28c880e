"""The real model's conversion; `examples/real_model_cpu.sh` runs it whole."""

import subprocess
import sys
from pathlib import Path

CONVERT = """
import sys
from pathlib import Path
from verl_ext.demo import smollm2
try:
    smollm2.convert(Path(sys.argv[1]), Path(sys.argv[1]) / "out")
except OSError as error:  # the model is not there
    print(error)
from transformers.utils import is_gguf_available
print("found:", is_gguf_available())
"""


def test_transformers_finds_the_gguf_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf/__init__.py").touch()
    (tmp_path / "gguf-0.19.0.dist-info").mkdir()
    (tmp_path / "gguf-0.19.0.dist-info/METADATA").write_text("Name: gguf\nVersion: 0.19.0\n")
    (tmp_path / "gguf-0.19.0.dist-info/top_level.txt").write_text("gguf\n")
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert "found: True" in done.stdout, done.stderr[-2000:]
