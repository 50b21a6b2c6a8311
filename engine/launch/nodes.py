"""What a launch over hosts starts on each of them, as text."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Mapping

from engine.launch.arguments import OPTION, decode_arguments
from engine.launch.environment import NAMES
from engine.launch.forwarded import is_secret, shown
from engine.launch.hosts import Hosts

TOLD = "ENGINE_LAUNCH_TOLD"  # in a dry run: commands and environment were printed for all hosts already

SHOWN = (  # what a rank shows of its environment beside NAMES
    "CUDA_", "NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_EXTENSIONS_DIR", "PYTORCH_ALLOC", "PYTORCH_CUDA_ALLOC", "OMP_",
    "MKL_", "KMP_", "UCX_", "DS_ACCELERATOR",
)  # fmt: skip


def environment_of(options: argparse.Namespace, hosts: Hosts, host: str, local_rank: int) -> dict[str, str]:
    """What ``deepspeed.launcher.launch`` sets for a rank."""
    devices = hosts.slots[host]
    rank = hosts.ranks(host)[local_rank]
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % len(devices)),
        "WORLD_SIZE": str(hosts.world_size),
        "LOCAL_WORLD_SIZE": str(len(devices)),
        "MASTER_ADDR": master_address(options, hosts),
        "MASTER_PORT": str(options.master_port),
    }


def master_address(options: argparse.Namespace, hosts: Hosts) -> str:
    """Where rank 0 is met; DeepSpeed asks the first host for its own first address where it is not given."""
    return options.master_addr or (next(iter(hosts.slots)) if hosts.remote else "127.0.0.1")


def rank_command(options: argparse.Namespace, local_rank: int | str) -> list[str]:
    """The command line of a rank, as its host's launcher starts it."""
    python = [] if options.no_python else [sys.executable, "-u", *(["-m"] if options.module else [])]
    number = [] if options.no_local_rank else [f"--local_rank={local_rank}"]
    return [*python, options.user_script, *number, *options.user_args]


def nodes_text(options: argparse.Namespace, hosts: Hosts, variables: Mapping[str, str]) -> str:
    """Each host with its ranks, their command line and their environment."""
    through = f" through {options.launcher.lower()}" if hosts.remote else ""
    lines = [f"launch: {hosts.world_size} rank(s) on {len(hosts.slots)} host(s){through}, in {os.getcwd()}"]
    for host, devices in hosts.slots.items():
        first, last = hosts.ranks(host)[0], hosts.ranks(host)[-1]
        lines.append(f"  {host}: {spread('rank', first, last)} on devices {','.join(map(str, devices))}")
        of_first = environment_of(options, hosts, host, 0)
        lines.append(f"    command of rank {first}: {shlex.join(rank_command(options, of_first['LOCAL_RANK']))}")
        of_first["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        lines.append(f"    environment of rank {first}: {environment_line(of_first)}")
    if any(argument.startswith(OPTION) for argument in options.user_args):
        lines.append("  base64: stands for arguments that shells would change; the ranks read them as they were given:")
        lines.append(f"    {shlex.join(decode_arguments(options.user_args))}")
    if hosts.remote and not options.master_addr:
        lines.append("  MASTER_ADDR will be the first address that `hostname -I` prints on the first host")
    if variables:
        lines.append("  environment on every host, from the file that is written for DeepSpeed (DS_ENV_FILE):")
        lines += [f"    {environment_line({name: value})}" for name, value in variables.items()]
    return "\n".join(lines) + "\n"


def environment_line(variables: Mapping[str, str]) -> str:
    """NAME=VALUE as a shell reads it; of a secret NAME=... alone."""
    return " ".join(f"{name}={shlex.quote(shown(name, value))}" for name, value in variables.items())


def spread(noun: str, first: int, last: int) -> str:
    """``rank 3`` or ``ranks 0-7``."""
    return f"{noun} {first}" if first == last else f"{noun}s {first}-{last}"


def here_text() -> str:
    """This rank's host, command line and environment, as its launcher made them."""
    rank, size, here = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1"), socket.gethostname()
    names = [
        name
        for name in sorted(os.environ)
        if (name in NAMES or name.startswith(SHOWN)) and not is_secret(name) and name != TOLD
    ]
    lines = [
        f"{here}: rank {rank} of {size}, {os.environ.get('LOCAL_WORLD_SIZE', '1')} rank(s) here, in {os.getcwd()}",
        f"  command: {shlex.join([sys.executable, *sys.orig_argv[1:]])}",
        f"  environment: {environment_line({name: os.environ[name] for name in names})}",
    ]
    return "\n".join(lines) + "\n"
