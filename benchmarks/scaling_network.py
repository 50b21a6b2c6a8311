"""Hosts out of network namespaces: ranks inside them talk over interfaces that carry nothing else and can be slowed.

One host is a namespace with its own ``lo``; two hosts are joined by a veth pair. Needs root on Linux and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "scaling"
INTERFACE = "pair0"  # one name on both hosts: GLOO_SOCKET_IFNAME is one value for all ranks
ADDRESSES = ("10.78.0.1", "10.78.0.2")
BURST, LATENCY = (
    "256kb",
    "50ms",
)  # of the slowed link: more than the largest segment (64 KiB), less than 5 ms of 500 Mbit/s
TOOLS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str | None:
    """Why hosts cannot be made here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    absent = [tool for tool in ("ip", "tc") if shutil.which(tool, path=TOOLS) is None]
    if absent:
        return f"{' and '.join(absent)} not found: apt-get install iproute2"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    made = _run("ip", "netns", "add", probe)
    if made.returncode:
        return f"this machine refuses network namespaces: {made.stderr.strip()}"
    _call("ip", "netns", "del", probe)
    return None


@dataclass(frozen=True)
class Hosts:
    """Where ranks run.

    Args:
        namespaces: one network namespace for each host; none stands for this machine as it is.
        interface: what ranks talk over.
        address: of rank 0.
    """

    namespaces: tuple[str, ...] = ()
    interface: str = "lo"
    address: str = "127.0.0.1"

    def command(self, rank: int, ranks: int, command: Sequence[str]) -> list[str]:
        """The command on the host of a rank; each host has as many ranks, the first ones on the first."""
        if not self.namespaces:
            return list(command)
        host = rank * len(self.namespaces) // ranks
        return ["ip", "netns", "exec", self.namespaces[host], *command]

    def limit(self, megabits: float | None) -> None:
        """Slow every host's sending to a rate in Mbit/s, by a token bucket; None takes the limit away."""
        for name in self.namespaces:
            _run("tc", "-n", name, "qdisc", "del", "dev", self.interface, "root")
            if megabits is not None:
                rate = ["rate", f"{megabits}mbit", "burst", BURST, "latency", LATENCY]
                _call("tc", "-n", name, "qdisc", "add", "dev", self.interface, "root", "tbf", *rate)


@contextlib.contextmanager
def make_hosts(number: int) -> Iterator[Hosts]:
    """One or two hosts; they are taken down again, and what still runs in them is killed, whatever happens."""
    remove_leftovers()
    names = tuple(f"{PREFIX}-{os.getpid()}-{letter}" for letter in "ab"[:number])
    try:
        for name in names:
            _call("ip", "netns", "add", name)
            _call("ip", "-n", name, "link", "set", "lo", "up")
        if number == 1:
            yield Hosts(names)
            return
        peer = ["peer", "name", INTERFACE, "netns", names[1]]
        _call("ip", "link", "add", INTERFACE, "netns", names[0], "type", "veth", *peer)
        for name, address in zip(names, ADDRESSES, strict=True):
            _call("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            _call("ip", "-n", name, "link", "set", INTERFACE, "up")
        yield Hosts(names, INTERFACE, ADDRESSES[0])
    finally:
        for name in names:
            remove(name)


def remove_leftovers() -> None:
    """Remove the namespaces of earlier runs whose process is gone."""
    for line in _call("ip", "netns", "list").splitlines():
        match = re.match(rf"({PREFIX}-(\d+)-\w+)", line)
        if match and not Path(f"/proc/{match[2]}").exists():
            remove(match[1])


def remove(name: str) -> None:
    """Kill what runs in a namespace and delete it; its links, and what slows them, go with it."""
    for pid in _run("ip", "netns", "pids", name).stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "del", name)


def _call(*command: str) -> str:
    done = _run(*command)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path=TOOLS) or command[0]
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
