"""Where new weights are handed to vLLM's worker: a socket in the run's own folder of temporary files.

verl's lies in /tmp under the number of the Ray job, and every run that starts a Ray of its own is number 1: two runs of
a machine would take each other's weights, or wait for ever. vLLM's worker unpickles what comes, so nobody but the run
may be able to bind it.
"""

import tempfile
from pathlib import Path

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from verl_ext.trainer.earlier import TeachingWorker


def in_own_folder(handle: str) -> str:
    """`ipc:///tmp/NAME` as `ipc://FOLDER/NAME`, where FOLDER is `TMPDIR`: mode 700 where a verb started the run."""
    return f"ipc://{tempfile.gettempdir()}/{Path(handle).name}"


class ReceivingWorker(TeachingWorker, vLLMColocateWorkerExtension):
    """verl's part of vLLM's worker, which takes new weights, and keeps an earlier student that teaches."""

    def _get_zmq_handle(self) -> str:
        return in_own_folder(super()._get_zmq_handle())
