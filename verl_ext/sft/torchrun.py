"""Several processes of one machine, started by the command that trains in one."""

import os
import sys

from verl_ext.run.loopback import LOOPBACK


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
    from verl_ext.platform import torch_store

    # -P: a script's folder comes first in sys.path otherwise.
    launcher = ["-P", torch_store.__file__, "torch.distributed.run", "--standalone", "--local-addr", LOOPBACK]
    launcher += ["--nproc-per-node", str(number)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *launcher, "-m", module, *words])
