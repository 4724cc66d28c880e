"""What keeps a program's sockets on this machine, and what to say where they are not kept."""

import ipaddress

LOOPBACK = "127.0.0.1"

ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": LOOPBACK}
"""For processes whose peers are all on this machine. Left alone, gloo, NCCL and vLLM take any of its addresses."""


def open_doors(addresses: list[str]) -> str:
    """The warning about a cluster whose nodes are at `addresses`; empty where no other machine reaches one."""
    outside = [address for address in addresses if not ipaddress.ip_address(address.strip("[]")).is_loopback]
    if not outside:
        return ""
    return (
        f"warning: the run listens on {', '.join(sorted(set(outside)))}: Ray and TransferQueue ask for Ray's token "
        "there, torch's sockets for nothing. Let only the nodes of this run in (docs/security.md); `ray start "
        "--node-ip-address` names the address"
    )
