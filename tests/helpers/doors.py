"""What of a process tree can be reached, and an attempt to get in from another machine's side."""

import contextlib
import http.client
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import zmq
from transfer_queue.utils.serial_utils import _PICKLE_FALLBACK_SENTINEL as TO_BE_UNPICKLED


def listeners(root: int) -> dict[tuple[str, int], str]:
    """Address and port of every TCP socket that the process `root` and its descendants listen on, and whose it is."""
    tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    names = {process.pid: " ".join(process.cmdline())[:200] for process in tree if process.is_running()}
    return {
        (entry.laddr.ip, entry.laddr.port): names[entry.pid]
        for entry in psutil.net_connections("tcp")
        if entry.status == psutil.CONN_LISTEN and entry.pid in names
    }


def outside(found: dict[tuple[str, int], str]) -> dict[tuple[str, int], str]:
    """Those that are not on loopback alone."""
    return {
        at: name
        for at, name in found.items()
        if not at[0].removeprefix("::ffff:").startswith("127.") and at[0] != "::1"
    }


def outside_address() -> str | None:
    """This machine's address as others see it; None where it has only a loopback."""
    addresses = [each for entries in psutil.net_if_addrs().values() for each in entries]
    return next(
        (each.address for each in addresses if each.family == socket.AF_INET and not each.address.startswith("127.")),
        None,
    )


class Payload:
    """Unpickled, it writes a file: what it shows is that code of the sender ran."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return Path.touch, (self.proof,)


def attack(address: str, port: int, proof: Path, seconds: float, key: bytes | None = None) -> bool:
    """Send a TransferQueue controller two frames; whether it ran our code within `seconds`. `key`: sealed with it."""
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    if key is not None:
        client.curve_serverkey = key
        client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
    try:
        client.connect(f"tcp://{address}:{port}")
        with contextlib.suppress(zmq.Again):  # a port that speaks no ZeroMQ has hung up before the first frame
            client.send_multipart([TO_BE_UNPICKLED, pickle.dumps(Payload(proof))], flags=zmq.NOBLOCK)
        deadline = time.monotonic() + seconds
        while not proof.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return proof.exists()
    finally:
        client.close()


def refuses(address: str, port: int) -> bool:
    """Nobody answers there."""
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex((address, port)) != 0


def statuses(address: str, ports: Iterable[int], method: str, path: str, **headers: str) -> list[int]:
    """What the ports that speak HTTP answer to one request; the others do not count. All are asked at once."""

    def ask(port: int) -> int | None:
        client = http.client.HTTPConnection(address, port, timeout=5)
        try:
            client.request(method, path, headers=headers)
            return client.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            client.close()

    with ThreadPoolExecutor(32) as pool:
        return [status for status in pool.map(ask, ports) if status is not None]


KNOCK = """
import json, socket, sys
address, ports = sys.argv[1], json.loads(sys.argv[2])
answered = []
for port in ports:
    with socket.socket() as client:
        client.settimeout(2)
        if client.connect_ex((address, port)) == 0:
            answered.append(port)
print(json.dumps(answered))
"""
NETWORKS = ("198.51.100", "203.0.113", "192.0.2")
"""Reserved for documentation: few machines have one, and none all three."""


@contextlib.contextmanager
def neighbour() -> Iterator[Callable[[Iterable[int]], list[int]] | None]:
    """`knock(ports)`: the ports of this machine that one beside it on its network reaches; None where it may not be.

    The neighbour is a network namespace, joined to ours by a cable of its own.
    """
    used = {each.address.rpartition(".")[0] for entries in psutil.net_if_addrs().values() for each in entries}
    network = next(each for each in NETWORKS if each not in used)
    ours, theirs = f"opd{os.getpid() % 10**8}a", f"opd{os.getpid() % 10**8}b"
    with contextlib.ExitStack() as stack:
        try:
            holder = subprocess.Popen(["unshare", "--net", "sleep", "900"], stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            yield None
            return
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        if not _is_apart(holder):
            yield None
            return
        inside = ["nsenter", "--target", str(holder.pid), "--net"]
        for command in (
            ["ip", "link", "add", ours, "type", "veth", "peer", "name", theirs],
            ["ip", "link", "set", theirs, "netns", str(holder.pid)],
            ["ip", "address", "add", f"{network}.1/30", "dev", ours],
            ["ip", "link", "set", ours, "up"],
            [*inside, "ip", "address", "add", f"{network}.2/30", "dev", theirs],
            [*inside, "ip", "link", "set", theirs, "up"],
        ):
            if shutil.which(command[0]) is None or not _tried(command):
                yield None
                return
            if command[2] == "add" and command[1] == "link":
                stack.callback(_tried, ["ip", "link", "delete", ours])

        def knock(ports: Iterable[int]) -> list[int]:
            words = [*inside, sys.executable, "-c", KNOCK, f"{network}.1", json.dumps(list(ports))]
            return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

        yield knock


def _tried(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _is_apart(process: subprocess.Popen[bytes]) -> bool:
    """It got a network namespace of its own, which takes a moment; False where it may not."""
    own = Path("/proc/self/ns/net").readlink()
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{process.pid}/ns/net").readlink() != own:
                return True
        time.sleep(0.05)
    return False
