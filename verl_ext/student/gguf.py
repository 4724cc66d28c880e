"""The exported student as a GGUF file, by llama.cpp's own converter; it runs in a process of its own.

The converter is a script, `convert_hf_to_gguf.py`: of a checkout of llama.cpp, or of `requirements/gguf.txt`. It brings
a module `gguf` of its own version, which must not meet another one's.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from verl_ext.run.files import replacing

TYPES = ("f32", "f16", "bf16", "q8_0")
"""What the converter writes. Smaller ones are made of these by llama.cpp's `llama-quantize`."""
LINES = 3
"""Of what the converter said last, in an error."""


def check_converter(script: Path | None) -> Path:
    """Raises ValueError, with the fix, where there is no such script."""
    if script is None or not script.is_file():
        where = "a checkout of llama.cpp has it, and requirements/gguf.txt"
        raise ValueError(
            f"--gguf needs llama.cpp's converter, --converter={script}: give convert_hf_to_gguf.py; {where}"
        )
    return script


def write_gguf(script: Path, student: Path, kinds: Sequence[str], out: Path) -> None:
    """Write a model folder as `out/student-KIND.gguf`, one file for each of `kinds`, of TYPES; earlier ones go.

    Raises:
        ValueError: with the converter's last words, where it writes none: an architecture or a tokenizer that
            llama.cpp does not know.
    """
    with replacing(out) as folder:
        folder.mkdir()
        for kind in kinds:
            file = folder / f"student-{kind}.gguf"
            command = [sys.executable, str(script), str(student), "--outfile", str(file), "--outtype", kind]
            ended = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if ended.returncode or not file.is_file():
                said = " / ".join(ended.stdout.strip().splitlines()[-LINES:])
                why = f"{script} ended with {ended.returncode}: {said}"
                raise ValueError(f"--gguf {kind}: {why}; convert {student} with a llama.cpp that knows such a model")
