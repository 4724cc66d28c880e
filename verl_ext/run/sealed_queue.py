"""TransferQueue's sockets talk to those alone who have the run's key: they unpickle what they are sent.

The key comes from Ray's token, which every process of a run has and nobody else; what travels is encrypted with it
(CurveZMQ). Ray calls `install` at the start of every worker (`runtime_env.worker_process_setup_hook`).
"""

import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from verl_ext.run.ray_token import token

SOCKETS = "transfer_queue.utils.zmq_utils"
"""Where TransferQueue makes every socket of its own."""


def install() -> None:
    """Seal TransferQueue's sockets of this process, now or when it is imported, which takes seconds."""
    if (found := sys.modules.get(SOCKETS)) is not None:
        seal(found)
    elif not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def seal(module: ModuleType) -> None:
    """Put a `create_zmq_socket` with the key in the place of its own. Without a token of Ray's nothing is sealed."""
    import zmq
    from zmq.utils import z85

    theirs, secret = module.create_zmq_socket, token()
    if secret is None or hasattr(theirs, "sealed"):
        return
    key = z85.encode(hashlib.sha256(b"TransferQueue " + secret.encode()).digest())
    public = zmq.curve_public(key)

    def create_zmq_socket(ctx: Any, socket_type: int, ip: str, identity: bytes | None = None) -> Any:
        socket = theirs(ctx, socket_type, ip, identity)
        if socket_type == zmq.ROUTER:
            socket.curve_secretkey, socket.curve_server = key, True
        else:
            socket.curve_serverkey = public
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        return socket

    create_zmq_socket.sealed = True  # pyright: ignore[reportFunctionMemberAccess]
    each: Any
    for each in [module, *(sys.modules[name] for name in list(sys.modules) if name.startswith("transfer_queue."))]:
        if getattr(each, "create_zmq_socket", None) is theirs:  # taken by name before
            each.create_zmq_socket = create_zmq_socket


class _Finder(MetaPathFinder):
    """Finds TransferQueue's module of sockets as Python does, and seals it as soon as it is there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        del path, target
        if name != SOCKETS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Sealing(spec.loader)
        return spec


class _Sealing(Loader):
    def __init__(self, theirs: Loader) -> None:
        self._theirs = theirs

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._theirs.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._theirs.exec_module(module)
        seal(module)
