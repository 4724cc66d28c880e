"""A real Ray of a run's own with a real TransferQueue, as verl starts it: nobody else gets in."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
from doors import attack, listeners, neighbour, outside, outside_address, refuses
from local_run import queue_in_this_process

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys, ray, transfer_queue as tq
from omegaconf import OmegaConf
from pathlib import Path
from verl_ext.run import sealed_queue
from verl_ext.platform.ray_address import keep_to_loopback
from verl_ext.run.ray_session import ray_session
config = OmegaConf.create(json.loads(sys.argv[1]))
ray_init = OmegaConf.to_container(config.ray_kwargs.ray_init)
with ray_session(keep_to_loopback(ray_init), Path(sys.argv[2])):
    sealed_queue.install()  # as Ray's workers do, of which this process is none
    tq.init(config.transfer_queue)
    controller = ray.get_actor("TransferQueueController", namespace="transfer_queue")
    print("ready", flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Running:
    pid: int
    ports: list[int]
    """Of TransferQueue's controller."""
    home: Path
    """Of the run's user."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, composed_config) -> Iterator[Running]:
    from omegaconf import OmegaConf

    config = OmegaConf.masked_copy(composed_config, ["ray_kwargs", "transfer_queue"])
    words = [json.dumps(OmegaConf.to_container(config)), str(tmp_path_factory.mktemp("ray") / "logs")]
    home = tmp_path_factory.mktemp("home")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        | {"RAY_agent_register_timeout_ms": "300000", "HOME": str(home)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert any(line.strip() == "ready" for line in process.stdout)
        found = listeners(process.pid)
        ports = [port for (_, port), name in found.items() if "TransferQueueController" in name]
        yield Running(process.pid, ports, home)
    finally:
        process.stdin.close()
        process.wait(60)


def test_nothing_listens_outside_loopback(running: Running):
    found = listeners(running.pid)
    assert {name for name in found.values() if "TransferQueue" in name or "StorageUnit" in name or "raylet" in name}
    assert len(running.ports) >= 2  # its handshake and its requests, and Ray's own
    assert not outside(found)
    assert not (running.home / ".ray" / "auth_token").exists()


def test_a_machine_beside_this_one_reaches_nothing(running: Running):
    with neighbour() as knock, socket.create_server(("0.0.0.0", 0)) as control:
        if knock is None:
            # What stands for a machine beside this one; what of it needs no such right is in the tests above.
            pytest.skip("nobody may make a network namespace here")
        reachable = control.getsockname()[1]
        assert knock([*(port for _, port in listeners(running.pid)), reachable]) == [reachable]


JOIN = """
import sys, ray
ray.init(sys.argv[1], logging_level="CRITICAL")
print("joined")
"""


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_another_user_of_this_machine_does_not_join_its_ray(running: Running, tmp_path: Path, token: str):
    """Ray's own token would stand in a file that all may read; the run has one of its own, in memory."""
    address = next(f"127.0.0.1:{port}" for (_, port), name in listeners(running.pid).items() if "gcs_server" in name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or "x"}
    words = [sys.executable, "-c", JOIN, address]
    with (
        (tmp_path / "out").open("w") as out,
        subprocess.Popen(words, env=environment, stdout=out, stderr=out) as client,
    ):
        with contextlib.suppress(subprocess.TimeoutExpired):  # it tries again and again
            client.wait(30)
        client.kill()
    assert "joined" not in (tmp_path / "out").read_text()
    assert not (tmp_path / ".ray" / "auth_token").exists()


def test_code_of_another_user_does_not_get_in(running: Running, tmp_path: Path):
    """With no key and with one of its own; of a TransferQueue that has no key, it does."""
    address, key = outside_address(), zmq.curve_keypair()[0]
    for port in running.ports:
        assert not attack("127.0.0.1", port, tmp_path / "loopback", 1)
        assert not attack("127.0.0.1", port, tmp_path / "loopback", 1, key)
        if address is not None:
            assert refuses(address, port)
    with queue_in_this_process() as open_doors:
        assert any(attack(*door, tmp_path / "control", 3) for door in open_doors)
