"""Which network interface leads to the other hosts."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator

VARIABLE = "GLOO_SOCKET_IFNAME"
ANYWHERE = "192.0.2.1"  # an address that no host has (RFC 5737): packets to it would take the default route


def choose_interface(address: str) -> None:
    """Set GLOO_SOCKET_IFNAME for ranks on several hosts, where nobody has and one can be told.

    gloo itself takes the address that the host's own name resolves to: on many systems 127.0.0.1, which no other host
    can reach. Each rank looks for itself, so the interfaces of hosts may have different names.

    Args:
        address: the host of rank 0.
    """
    if VARIABLE not in os.environ and (name := interface_towards(address)):
        os.environ[VARIABLE] = name


def interface_towards(address: str) -> str | None:
    """The interface of this host that packets to another host leave by, or that has the address if it is this host's.

    Returns:
        None where all ranks are on this host, or where it cannot be told.
    """
    if _is_loopback(address):
        return None
    import psutil  # comes with deepspeed

    addresses = {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
    # A host may resolve its own name to 127.0.1.1: then the default route tells, or the only interface there is.
    for own in (*_sources(address), *_sources(ANYWHERE)):
        if own in addresses and not _is_loopback(own):
            return addresses[own]
    outward = {
        name
        for found, name in addresses.items()
        if not (_is_loopback(found) or ipaddress.ip_address(found).is_link_local)
    }
    return outward.pop() if len(outward) == 1 else None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _sources(address: str) -> Iterator[str]:
    """This host's addresses for packets to another; no packet is sent."""
    try:
        targets = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return
    for family, kind, protocol, _, target in targets:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                yield str(probe.getsockname()[0]).partition("%")[0]
        except OSError:
            continue
