"""What decides on which address Ray, torch, verl and TransferQueue listen, as far as we stand on it."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from ray._private import node, ray_constants, services, worker
from seams import parameters
from transfer_queue.utils import zmq_utils
from verl.single_controller.ray import base
from verl.workers.rollout import utils as rollout_utils
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

from verl_ext.platform import torch_store


def test_torchs_store_has_the_parameters_that_ours_passes_on():
    assert dist.TCPStore.__init__.__wrapped__ is not None
    names = re.findall(r"(\w+): ", str(dist.TCPStore.__init__.__doc__).splitlines()[0])
    assert tuple(names[1:]) == torch_store.PARAMETERS


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])
def test_a_store_listens_where_it_is_named_and_serves(host):
    store = dist.TCPStore(host, 0, None, True, wait_for_workers=False)
    entries = [entry for entry in psutil.Process().net_connections("tcp") if entry.laddr[1] == store.port]
    assert {entry.laddr[0] for entry in entries} == {"::1" if ":" in host else "127.0.0.1"}
    store.set("key", "value")
    again = dist.TCPStore(host_name="127.0.0.1" if host == "0.0.0.0" else host, port=store.port, is_master=False)
    assert again.get("key") == b"value"


def test_stores_of_one_process_still_share_a_server():
    first = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    second = dist.TCPStore("127.0.0.1", first.port, is_master=True, wait_for_workers=False, multi_tenant=True)
    second.set("key", "value")
    assert first.get("key") == b"value"


def test_an_address_that_is_not_this_machines_is_an_error():
    with pytest.raises(dist.DistNetworkError, match=r"cannot listen on 192\.0\.2\.77:0"):
        dist.TCPStore("192.0.2.77", 0, is_master=True)


def test_rays_switch_is_what_makes_its_own_address_loopback():
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR in inspect.getsource(ray_constants)
    assert "not ray_constants.ENABLE_RAY_CLUSTER" in inspect.getsource(services.get_node_ip_address)
    assert "ray.util.get_node_ip_address()" in inspect.getsource(node.Node.__init__)
    assert "resolve_ip_for_localhost" in inspect.getsource(worker.init)  # why `_node_ip_address` is not enough


def test_what_listens_takes_rays_address():
    assert "ray.util.get_node_ip_address()" in inspect.getsource(zmq_utils.get_node_ip_address)
    assert "ray.util.get_node_ip_address()" in inspect.getsource(base)
    assert "ray.util.get_node_ip_address()" in inspect.getsource(vLLMHttpServer.__init__)
    assert "host=server_address" in inspect.getsource(rollout_utils.run_uvicorn)


SEALED = """
import os
os.environ["RAY_AUTH_TOKEN"] = "one"
from verl_ext.run.sealed_queue import install
install()
from transfer_queue import controller
from transfer_queue.storage import simple_storage
from transfer_queue.storage.managers import base
from transfer_queue.utils import zmq_utils
assert all(each.create_zmq_socket.sealed for each in (controller, simple_storage, base, zmq_utils))
"""


def test_every_socket_of_transfer_queue_is_made_by_the_function_that_is_sealed():
    subprocess.run([sys.executable, "-c", SEALED], check=True)
    folder = Path(inspect.getfile(zmq_utils)).parents[1]
    made = {
        str(file.relative_to(folder))
        for file in folder.rglob("*.py")
        if re.search(r"(ctx|context)\.socket\(", file.read_text())
    }
    assert made == {"utils/zmq_utils.py"}
    source = inspect.getsource(zmq_utils)
    assert len(re.findall(r"\.socket\(socket_type\)", source)) == 1
    assert parameters(zmq_utils.create_zmq_socket) == ["ctx", "socket_type", "ip", "identity"]
