"""New weights go through a socket in the run's own folder: verl's name for it is the same in every run of a machine."""

import asyncio
import inspect
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayError
from verl.utils.import_utils import load_class_from_fqn
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer, vllm_rollout
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

from verl_ext.trainer import losses as losses  # what a rank of the actor imports
from verl_ext.trainer import weight_adapter
from verl_ext.trainer.sampler import FinishReasonServer
from verl_ext.trainer.weight_adapter import RECEIVE, SendingAdapter, WatchingSender
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


WEIGHTS = [
    (f"w{number}", torch.full((200_000,), float(number))) for number in range(3)
]  # 0.8 MB each, a bucket of 1 MB


@pytest.fixture
def sender(tmp_path, monkeypatch) -> WatchingSender:
    monkeypatch.setattr(weight_adapter, "LOOK_MS", 20)
    names = ("synchronize", "empty_cache", "ipc_collect")
    device = SimpleNamespace(**dict.fromkeys(names, lambda: None))  # verl's platform of the test process may be another
    monkeypatch.setattr(bucketed_weight_transfer, "get_torch_device", lambda: device)
    return WatchingSender(zmq_handle=f"ipc://{tmp_path}/socket", bucket_size_mb=1, use_shm=True)


def ended(monkeypatch, error: Exception | None) -> None:
    """The call that receives has ended so."""

    def get(_: object) -> None:
        if error:
            raise error

    def wait(calls: list, timeout: float) -> tuple[list, list]:
        assert timeout == 0  # the sender looks, and waits for nobody but its receiver
        return calls, []

    monkeypatch.setattr(WatchingSender, "receiving", "the call")
    monkeypatch.setattr(weight_adapter.ray, "wait", wait)
    monkeypatch.setattr(weight_adapter.ray, "get", get)


def test_weights_arrive_through_the_watched_socket(sender, tmp_path):
    found = {}

    def take(weights, is_last) -> None:
        del is_last
        found.update((name, tensor.clone()) for name, tensor in weights)

    receiver = bucketed_weight_transfer.BucketedWeightReceiver(
        zmq_handle=f"ipc://{tmp_path}/socket", device=torch.device("cpu"), use_shm=True
    )
    with ThreadPoolExecutor(1) as beside:
        receiving = beside.submit(receiver.receive_weights, on_bucket_received=take)
        asyncio.run(sender.async_send_weights(iter(WEIGHTS)))
        receiving.result(timeout=20)
    assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RayError("Traceback ...\nRuntimeError: Worker failed with error 'x'"),
            "RuntimeError: Worker failed with error 'x'",
        ),
        (None, "it ended before it had them all"),
    ],
)
def test_a_receiver_that_failed_ends_the_wait(sender, monkeypatch, error, said):
    """verl's sender would wait for ever, and so would the run."""
    ended(monkeypatch, error)
    with pytest.raises(RuntimeError, match=rf"vLLM did not take the student's weights: {said}; .*logs/"):
        asyncio.run(sender.async_send_weights(iter(WEIGHTS)))


async def test_the_sender_knows_the_call_that_receives(monkeypatch):
    async def execute(self, method, **kwargs) -> str:
        del self, kwargs
        return f"call of {method}"

    monkeypatch.setattr(ServerAdapter, "__init__", lambda self: setattr(self, "zmq_handle", "ipc:///tmp/x"))
    monkeypatch.setattr(ServerAdapter, "_execute_method", execute)
    monkeypatch.setattr(WatchingSender, "receiving", None)
    monkeypatch.setattr(vllm_rollout, "BucketedWeightSender", vllm_rollout.BucketedWeightSender)
    adapter = SendingAdapter()
    assert vllm_rollout.BucketedWeightSender is WatchingSender
    assert await adapter._execute_method("sleep") == "call of sleep"
    assert WatchingSender.receiving is None
    await adapter._execute_method(RECEIVE, non_block=True)
    assert WatchingSender.receiving == f"call of {RECEIVE}"
    source = inspect.getsource(ServerAdapter.update_weights)
    assert "sender = BucketedWeightSender(" in source
    assert f'"{RECEIVE}",\n            non_block=True' in source
