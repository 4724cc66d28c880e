"""What a server listens on, asked of the system: settings say what was meant."""

import contextlib
import ipaddress
import socket
from collections.abc import Collection, Iterable

import psutil

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def unsaid_doors(processes: Iterable[int], host: str, port: int) -> list[str]:
    """`ADDRESS:PORT` of the TCP sockets that processes listen on and other machines reach, without the one meant.

    Args:
        processes: their ids; one that ended meanwhile has none.
        host: where the server is meant to listen: an address, or a name that has some.
        port: its port.
    """
    meant = {_plain(str(info[4][0])) for info in socket.getaddrinfo(host, None)}
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for entry in psutil.Process(process).net_connections("tcp"):
                if entry.status == psutil.CONN_LISTEN and not _is_meant(*entry.laddr[:2], meant, port):
                    found.add(f"{entry.laddr[0]}:{entry.laddr[1]}")
    return sorted(found)


def _is_meant(address: str, at: int, meant: Collection[Address], port: int) -> bool:
    listens = _plain(address)
    return listens.is_loopback or (at == port and any(each.is_unspecified or each == listens for each in meant))


def _plain(address: str) -> Address:
    """IPv4's address where it is written as IPv6's."""
    found = ipaddress.ip_address(address)
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
