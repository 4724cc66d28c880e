"""Weights on their way from the trainer to vLLM's devices through main memory, for machines without an accelerator.

verl has no such way: its checkpoint engines move bytes between accelerators (NCCL, NIXL and the like), and `naive` only
within a device. This one is registered by `rollout.checkpoint_engine.custom_backend_module`, in every process that
verl makes one in.
"""

from collections.abc import Generator, Iterator
from typing import Any

import ray
import torch
import zmq
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry

from verl_ext.trainer import rollout_registry as rollout_registry  # importing it is the effect

NAME = "host"
AHEAD = 4
"""Tensors that are sent before the first of them is taken."""


@CheckpointEngineRegistry.register(NAME)  # pyright: ignore[reportAttributeAccessIssue]  verl forgot `staticmethod`
class HostWeights(CheckpointEngine):
    """The actor's first rank sends every tensor to each of vLLM's ranks; the others only help to gather it."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        del bucket_size
        self.is_master = is_master
        self._context = zmq.Context()
        self._receiver: zmq.Socket[bytes] | None = None
        self._senders: list[zmq.Socket[bytes]] = []

    def prepare(self) -> dict[str, Any]:
        """Where this rank listens, at a port of its own."""
        address = f"tcp://{ray.util.get_node_ip_address().strip('[]')}"
        self._receiver = self._context.socket(zmq.PULL)
        self._receiver.set_hwm(AHEAD)
        return {"address": f"{address}:{self._receiver.bind_to_random_port(address)}"}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        addresses = [each["address"] for each in metadata[actor_wg_world_size:]]
        return {"addresses": [addresses] * actor_wg_world_size}, {"addresses": [[]] * rollout_world_size}

    def init_process_group(self, addresses: list[str]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for address in addresses if self.is_master else ():
            sender = self._context.socket(zmq.PUSH)
            sender.set_hwm(AHEAD)
            sender.connect(address)
            self._senders.append(sender)

    async def send_weights(
        self, weights: Generator[tuple[str, torch.Tensor], None, None], global_steps: int | None = None
    ) -> None:
        del global_steps
        for name, weight in weights:
            self._send((name, weight.detach().cpu()) if self.is_master else None)
        self._send(None)

    def _send(self, what: tuple[str, torch.Tensor] | None) -> None:
        for sender in self._senders:
            sender.send_pyobj(what)

    def receive_weights(self, global_steps: int | None = None) -> Iterator[tuple[str, torch.Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        del global_steps
        assert self._receiver is not None
        while (received := self._receiver.recv_pyobj()) is not None:
            yield received

    def finalize(self) -> None:
        for socket in (*self._senders, self._receiver):
            if socket is not None:
                socket.close()
        self._receiver, self._senders = None, []
