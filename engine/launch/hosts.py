"""The hosts of a launch and their devices, as DeepSpeed's launcher chooses them, with its silences made errors."""

from __future__ import annotations

import argparse
import socket
from dataclasses import dataclass
from pathlib import Path

from engine.config.cli import UsageError
from engine.launch.environment import HOST

NO_HOSTFILE = "/job/hostfile"  # DeepSpeed's default, which need not exist
LOCAL = "localhost"


@dataclass(frozen=True)
class Hosts:
    """Where ranks run.

    Attributes:
        slots: numbers of the devices of each host, in the order of the ranks.
        remote: whether they are started through ssh or a scheduler; else this host starts its own.
    """

    slots: dict[str, list[int]]
    remote: bool

    @property
    def world_size(self) -> int:
        """Ranks of all hosts."""
        return sum(len(devices) for devices in self.slots.values())

    def ranks(self, host: str) -> range:
        """The ranks of a host."""
        before = 0
        for name, devices in self.slots.items():
            if name == host:
                return range(before, before + len(devices))
            before += len(devices)
        raise KeyError(host)


def choose_hosts(options: argparse.Namespace) -> Hosts:
    """The hosts that a launch uses.

    One remote host left by a filter is reached as several are: DeepSpeed would start its ranks here.

    Args:
        options: of DeepSpeed's launcher; ``force_multi`` is set where DeepSpeed needs it.

    Raises:
        UsageError: everything wrong with the hostfile and what chooses from it.
    """
    from deepspeed.launcher import runner

    named = options.hostfile != NO_HOSTFILE
    if named and not Path(options.hostfile).is_file():
        raise UsageError(f"--hostfile {options.hostfile}: no such file (DeepSpeed would go on with this host alone)")
    if (options.include or options.exclude) and (options.num_nodes >= 0 or options.num_gpus >= 0):
        raise UsageError(
            "--include and --exclude do not go with --num_nodes and --num_gpus; give the ones or the others"
        )
    try:
        pool = runner.fetch_hostfile(options.hostfile) if Path(options.hostfile).is_file() else None
        if pool is None:
            return _this_host(options)
        _check(options, pool)
        slots = runner.parse_inclusion_exclusion(pool, options.include, options.exclude)
        slots = runner.apply_num_nodes_and_gpus(slots, options.num_nodes, options.num_gpus)
    except ValueError as error:
        raise UsageError(f"{error}") from None
    if not slots:
        raise UsageError(f"--exclude {options.exclude} leaves no device of {options.hostfile}")
    if len(slots) == 1 and not options.no_ssh and not is_this_host(next(iter(slots))):
        options.force_multi = True
    return Hosts(dict(slots), (options.force_multi or len(slots) > 1) and not options.no_ssh)


def _this_host(options: argparse.Namespace) -> Hosts:
    """This host's own devices; DeepSpeed's launcher counts those of a CPU as its sockets."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.launcher import runner

    if options.num_nodes > 1:
        raise UsageError(f"--num_nodes is {options.num_nodes}, but there is no hostfile; give --hostfile")
    pool = {LOCAL: int(get_accelerator().device_count())}
    slots = runner.parse_inclusion_exclusion(pool, options.include, options.exclude)
    return Hosts(dict(runner.apply_num_nodes_and_gpus(slots, options.num_nodes, options.num_gpus)), remote=False)


def _check(options: argparse.Namespace, pool: dict[str, int]) -> None:
    """What DeepSpeed would take as it is: names that are none, fewer hosts than asked for, devices that are not."""
    problems = [
        f"{options.hostfile}: {host!r} is no name or address of a host" for host in pool if not HOST.fullmatch(host)
    ]
    problems += [f"{options.hostfile}: {host} has slots=0; remove it" for host, slots in pool.items() if slots < 1]
    if options.num_nodes > len(pool):
        problems.append(f"--num_nodes is {options.num_nodes}, but {options.hostfile} has {len(pool)} host(s)")
    short = [f"{host} has {slots}" for host, slots in list(pool.items())[: max(0, options.num_nodes) or None]
             if options.num_gpus > slots]  # fmt: skip
    if short:
        problems.append(f"--num_gpus is {options.num_gpus}, but in {options.hostfile} {', '.join(short)} slots")
    for name, number in (("num_nodes", options.num_nodes), ("num_gpus", options.num_gpus)):
        if number == 0:
            problems.append(f"--{name} is 0; it must be at least 1")
    if problems:
        raise ValueError("\n".join(problems))


def is_this_host(name: str) -> bool:
    """Whether a name or address is this host's own."""
    import psutil  # comes with deepspeed

    own = {socket.gethostname(), socket.getfqdn(), LOCAL, "127.0.0.1"}
    own |= {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    if name in own:
        return True
    try:
        return bool({str(found[4][0]) for found in socket.getaddrinfo(name, None)} & own)
    except OSError:
        return False
