"""Sockets of TransferQueue: whoever has Ray's token is heard, and nobody else."""

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import zmq

from verl_ext.run.sealed_queue import seal

HEARD_MS, UNHEARD_MS = 5000, 300


def sockets(monkeypatch: pytest.MonkeyPatch, token: str | None) -> Any:
    """A module like TransferQueue's, of a process that has this token; None: Ray asks nobody for one."""
    module: Any = ModuleType("sockets")
    module.create_zmq_socket = lambda *words: words[0].socket(words[1])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled" if token is None else "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token or "")
    seal(module)
    return module


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    made = zmq.Context()
    made.linger = 0  # of a socket that goes with a message which nobody took
    yield made
    made.destroy()


def heard(context: zmq.Context, server: Any, client: Any, wait_ms: int) -> bool:
    """Whether a message of the client reaches the server, and the answer the client."""
    router, dealer = (
        module.create_zmq_socket(context, kind, "127.0.0.1")
        for module, kind in ((server, zmq.ROUTER), (client, zmq.DEALER))
    )
    port = router.bind_to_random_port("tcp://127.0.0.1")
    dealer.connect(f"tcp://127.0.0.1:{port}")
    dealer.send_multipart([b"a", b"b"])
    if not router.poll(wait_ms):
        return False
    router.send_multipart(router.recv_multipart())
    return bool(dealer.poll(wait_ms)) and dealer.recv_multipart() == [b"a", b"b"]


def test_two_processes_of_a_run_talk(context, monkeypatch):
    assert heard(context, sockets(monkeypatch, "one"), sockets(monkeypatch, "one\n"), HEARD_MS)


@pytest.mark.parametrize("other", ["two", None], ids=["with another token", "with none"])
def test_another_is_not_heard(context, monkeypatch, other):
    assert not heard(context, sockets(monkeypatch, "one"), sockets(monkeypatch, other), UNHEARD_MS)


def test_without_a_token_nothing_is_sealed(context, monkeypatch):
    assert heard(context, sockets(monkeypatch, None), sockets(monkeypatch, None), HEARD_MS)


def test_threads_of_one_process_still_talk(context, monkeypatch):
    """TransferQueue's storage hands its requests to its workers so."""
    module = sockets(monkeypatch, "one")
    front, worker = (module.create_zmq_socket(context, zmq.DEALER, "127.0.0.1") for _ in range(2))
    front.bind("inproc://workers")
    worker.connect("inproc://workers")
    front.send(b"a")
    assert worker.poll(HEARD_MS)


def test_a_name_that_was_taken_before_is_replaced_too(monkeypatch):
    user: Any = ModuleType("transfer_queue.user")
    monkeypatch.setitem(sys.modules, "transfer_queue.user", user)
    module: Any = ModuleType("sockets")
    module.create_zmq_socket = user.create_zmq_socket = lambda *_: None
    monkeypatch.setenv("RAY_AUTH_TOKEN", "one")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    seal(module)
    assert user.create_zmq_socket is module.create_zmq_socket
    assert hasattr(module.create_zmq_socket, "sealed")
    sealed = module.create_zmq_socket
    seal(module)
    assert module.create_zmq_socket is sealed


def test_what_every_worker_of_ray_imports_for_it_is_light():
    """Every one does, the teacher's too, which has no use for torch or TransferQueue."""
    code = "import sys, verl_ext.run.sealed_queue as it; it.install(); print({'torch', 'ray', 'zmq'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
