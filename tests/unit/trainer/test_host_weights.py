"""Weights through main memory: what arrives is what was sent, and a stranger is not heard."""

import asyncio
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
import zmq

from verl_ext.trainer.host_weights import HostWeights

WEIGHTS = {
    "layers.0.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "scale": torch.tensor(0.5, dtype=torch.float16),
}


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HostWeights, HostWeights, dict[str, str]]]:
    """The trainer's first rank, a rank of vLLM's, and where that listens."""
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    sender, receiver = HostWeights(0, is_master=True), HostWeights(0)
    metadata = [each.prepare() for each in (sender, receiver)]
    trainers, samplers = HostWeights.build_topology(1, 1, metadata)
    sender.init_process_group(**{name: values[0] for name, values in trainers.items()})
    receiver.init_process_group(**{name: values[0] for name, values in samplers.items()})
    yield sender, receiver, metadata[1]
    sender.finalize()
    receiver.finalize()


def sent(sender: HostWeights, receiver: HostWeights) -> dict[str, torch.Tensor]:
    def send() -> None:
        asyncio.run(sender.send_weights(pair for pair in WEIGHTS.items()))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    found = dict(receiver.receive_weights())
    thread.join(10)
    return found


def assert_whole(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    for name, weight in WEIGHTS.items():
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], weight)


@pytest.mark.timeout(60)
def test_every_weight_arrives_as_it_was_time_after_time(pair):
    sender, receiver, _ = pair
    for _ in range(2):
        assert_whole(sent(sender, receiver))


class Touch:
    """What unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("with_a_key", [False, True])
def test_who_has_not_the_key_is_not_heard_and_nothing_is_unpickled(pair, tmp_path, with_a_key):
    sender, receiver, where = pair
    context = zmq.Context()
    stranger = context.socket(zmq.PUSH)
    if with_a_key:
        stranger.curve_serverkey, _ = zmq.curve_keypair()
        stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
    stranger.connect(where["address"])
    stranger.send(pickle.dumps(("layers.0.weight", Touch(tmp_path / "run"))))
    stranger.send(b"")
    try:
        assert_whole(sent(sender, receiver))
    finally:
        stranger.close(linger=0)
        context.term()
    assert not (tmp_path / "run").exists()
