"""What of a process tree can be reached, and an attempt to get in from another machine's side."""

import pickle
import socket
import time
from pathlib import Path

import psutil
import zmq
from transfer_queue.utils.serial_utils import _PICKLE_FALLBACK_SENTINEL as TO_BE_UNPICKLED


def listeners(root: int) -> dict[tuple[str, int], str]:
    """Address and port of every TCP socket that the process `root` and its descendants listen on, and whose it is."""
    tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    names = {process.pid: " ".join(process.cmdline())[:80] for process in tree if process.is_running()}
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


def attack(address: str, port: int, proof: Path, seconds: float) -> bool:
    """Send a TransferQueue controller two frames; whether it ran our code within `seconds`."""
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.setsockopt(zmq.LINGER, 0)
    try:
        client.connect(f"tcp://{address}:{port}")
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
