"""Several processes of one machine, started by the command that trains in one."""

import os
import sys
from pathlib import Path

from verl_ext.run.loopback import LOOPBACK

LAUNCHER = Path(__file__).parents[1] / "platform" / "torch_store.py"
"""Runs a module whose torch stores listen on loopback; its path, for importing it takes torch."""


def processes(words: list[str]) -> tuple[int, list[str]]:
    """The number behind --nproc, 1 without it, and the other words. Exits on what is no number."""
    if "--nproc" not in words:
        return 1, words
    place = words.index("--nproc")
    number = "".join(words[place + 1 : place + 2])
    if not number.isdigit() or int(number) < 1:
        sys.exit(f"error: --nproc {number}: expected the number of processes, >= 1")
    return int(number), words[:place] + words[place + 2 :]


def start_torchrun(number: int, module: str, words: list[str]) -> None:
    """Become torchrun, which starts `module` with the same words in `number` processes."""
    # -P: a script's folder comes first in sys.path otherwise.
    launcher = ["-P", str(LAUNCHER), "torch.distributed.run", "--standalone", "--local-addr", LOOPBACK]
    launcher += ["--nproc-per-node", str(number)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *launcher, "-m", module, *words])
