"""New weights go through a socket in the run's own folder: verl's name for it is the same in every run of a machine."""

import inspect
import os
import tempfile
from types import SimpleNamespace

import pytest
from verl.utils.import_utils import load_class_from_fqn
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

from verl_ext.trainer import losses as losses  # what a rank of the actor imports
from verl_ext.trainer.sampler import FinishReasonServer
from verl_ext.trainer.weight_adapter import SendingAdapter
from verl_ext.trainer.weight_socket import ReceivingWorker

VERLS = "ipc:///tmp/rl-colocate-zmq-{job_id}-replica-{replica_rank}-rank-{local_rank}.sock"


@pytest.fixture
def meeting(monkeypatch, tmp_path):
    """`meeting(run)`: the handles of both sides in a run's folder of temporary files."""

    def sides(run: str) -> tuple[str, str]:
        (tmp_path / run).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / run))
        monkeypatch.setattr(tempfile, "tempdir", None)  # asked anew, as in a new process
        monkeypatch.setenv("VERL_RAY_JOB_ID", "01000000")
        handle = VERLS.format(job_id="01000000", replica_rank=0, local_rank=1)
        monkeypatch.setattr(ServerAdapter, "__init__", lambda self: setattr(self, "zmq_handle", handle))
        receiver = object.__new__(ReceivingWorker)  # vLLM makes it a part of its own worker
        receiver.local_rank, receiver.model_runner = 1, SimpleNamespace()
        return SendingAdapter().zmq_handle, receiver._get_zmq_handle()

    return sides


def test_both_sides_meet_and_two_runs_of_a_machine_do_not(meeting):
    first, second = meeting("first"), meeting("second")
    assert first[0] == first[1]
    assert second[0] == second[1]
    assert first[0] != second[0]
    assert os.path.dirname(first[0].removeprefix("ipc://")).endswith("/first")


def test_verl_makes_both_sides_ours():
    assert get_rollout_class("vllm", "async") is SendingAdapter
    name = object.__new__(FinishReasonServer)._get_worker_extension_cls()
    assert load_class_from_fqn(name) is ReceivingWorker
    assert "self._get_worker_extension_cls()" in inspect.getsource(vLLMHttpServer.launch_server)


def test_where_verl_has_the_name():
    source = inspect.getsource(ServerAdapter.__init__)
    assert 'f"ipc:///tmp/rl-colocate-zmq-{job_id}-replica-{self.replica_rank}-rank-{local_rank}.sock"' in source
    assert "zmq_handle=self.zmq_handle" in inspect.getsource(ServerAdapter.update_weights)
    assert "zmq_handle=self._get_zmq_handle()" in inspect.getsource(vLLMColocateWorkerExtension.update_weights_from_ipc)
