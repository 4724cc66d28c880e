"""Weights on their way from the trainer to vLLM's devices through main memory, for machines without an accelerator.

verl has no such way: its checkpoint engines move bytes between accelerators (NCCL, NIXL and the like), and `naive` only
within a device. This one is registered by `rollout.checkpoint_engine.custom_backend_module`, in every process that
verl makes one in.

What listens takes only what is sealed with its key (CurveZMQ), which travels through Ray alone, and reads it as
safetensors: an address that others reach is no door.
"""

from collections.abc import Generator, Iterator
from typing import Any

import ray
import torch
import zmq
from safetensors.torch import load, save
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry

from verl_ext.trainer import rollout_registry as rollout_registry  # importing it is the effect

NAME = "host"
AHEAD = 4
"""Tensors that are sent before the first of them is taken."""
END = b""


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
        """Where this rank listens, at a port of its own, and the key that it is spoken to with."""
        address = f"tcp://{ray.util.get_node_ip_address().strip('[]')}"
        self._receiver = self._context.socket(zmq.PULL)
        self._receiver.set_hwm(AHEAD)
        key, self._receiver.curve_secretkey = zmq.curve_keypair()
        self._receiver.curve_server = True
        return {"address": f"{address}:{self._receiver.bind_to_random_port(address)}", "key": key.decode()}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        receivers = metadata[actor_wg_world_size:]
        return {"receivers": [receivers] * actor_wg_world_size}, {"receivers": [[]] * rollout_world_size}

    def init_process_group(self, receivers: list[dict[str, str]]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for receiver in receivers if self.is_master else ():
            sender = self._context.socket(zmq.PUSH)
            sender.set_hwm(AHEAD)
            sender.curve_serverkey = receiver["key"].encode()
            sender.curve_publickey, sender.curve_secretkey = zmq.curve_keypair()
            sender.connect(receiver["address"])
            self._senders.append(sender)

    async def send_weights(
        self, weights: Generator[tuple[str, torch.Tensor], None, None], global_steps: int | None = None
    ) -> None:
        del global_steps
        for name, weight in weights:  # every rank takes part in gathering each
            if self.is_master:
                self._send(save({name: weight.detach().cpu().contiguous()}))
        self._send(END)

    def _send(self, message: bytes) -> None:
        for sender in self._senders:
            sender.send(message)

    def receive_weights(self, global_steps: int | None = None) -> Iterator[tuple[str, torch.Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        del global_steps
        assert self._receiver is not None
        while (message := self._receiver.recv()) != END:
            yield from load(message).items()

    def finalize(self) -> None:
        for socket in (*self._senders, self._receiver):
            if socket is not None:
                socket.close()
        self._receiver, self._senders = None, []
