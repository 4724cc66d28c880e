"""A rank of the actor, as verl's adapter to vLLM's server, which sends new weights through `weight_socket.py`.

verl's sender waits for its receiver for ever, and a receiver that fails says so to the server alone: the run would
stand still. Ours looks, while it waits, whether the call that receives has ended.
"""

from collections.abc import Callable
from typing import Any

import ray
import zmq
from ray.exceptions import RayError
from verl.workers.rollout.vllm_rollout import vllm_rollout
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

from verl_ext.trainer.weight_socket import in_own_folder

RECEIVE = "update_weights_from_ipc"
LOOK_MS = 500


class WatchedSocket:
    """The sender's socket; raises what `failed` does where nobody takes or answers a message."""

    def __init__(self, socket: zmq.Socket, failed: Callable[[], None]) -> None:
        self._socket, self._failed = socket, failed

    def send_pyobj(self, message: Any) -> None:
        self._wait(zmq.POLLOUT)
        self._socket.send_pyobj(message)

    def recv(self) -> bytes:
        self._wait(zmq.POLLIN)
        return self._socket.recv()

    def close(self, *arguments: Any, **keywords: Any) -> None:
        self._socket.close(*arguments, **keywords)

    def _wait(self, event: int) -> None:
        while not self._socket.poll(LOOK_MS, event):
            self._failed()


class WatchingSender(BucketedWeightSender):
    """verl's sender, one at a time in a process."""

    receiving: ray.ObjectRef | None = None
    """The call that receives; None on a rank that did not make it."""

    def _init_socket(self) -> None:
        super()._init_socket()
        self.socket: Any = WatchedSocket(self.socket, self._failed)

    def _failed(self) -> None:
        if self.receiving is None or not ray.wait([self.receiving], timeout=0)[0]:
            return
        said = "it ended before it had them all"
        try:
            ray.get(self.receiving)
        except RayError as error:
            said = str(error).strip().splitlines()[-1]
        raise RuntimeError(f"vLLM did not take the student's weights: {said}; the run's logs/ have its first error")


class SendingAdapter(ServerAdapter):
    """verl's, that meets vLLM's worker in the run's own folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.zmq_handle = in_own_folder(self.zmq_handle)
        vllm_rollout.BucketedWeightSender = WatchingSender  # pyright: ignore[reportPrivateImportUsage]

    async def _execute_method(self, method: str, *args: Any, **kwargs: Any) -> Any:
        called = await super()._execute_method(method, *args, **kwargs)
        if method == RECEIVE:
            WatchingSender.receiving = called
        return called
