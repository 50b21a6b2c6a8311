"""The process group: ranks under deepspeed, torchrun or plain python, and the few collectives the engine needs."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import platform
import resource
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch

from engine.config.backend import backend_on
from engine.config.cli import RankLostError, SharedError
from engine.config.deepspeed_json import Device
from engine.launch.network import choose_interface

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
JOIN_SECONDS = 600.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 1.0  # seconds between two looks for rank 0
RANK_ZERO_CAME = "rank-zero-came"
_meetings = itertools.count(1)


def world_size() -> int:
    """Ranks of this run, as the launcher set them; 1 under plain python."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def global_rank() -> int:
    """This process's rank; 0 under plain python."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's rank on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device_index() -> int:
    """Number of this rank's GPU among those it sees: its rank on the node, or 0 where its launcher shows it one alone.

    Raises:
        ValueError: if the ranks of this node are more than its GPUs.
    """
    count = torch.cuda.device_count()
    if count > 1 and local_rank() >= count:
        raise ValueError(
            f"LOCAL_RANK is {local_rank()}, but {platform.node()} has {count} GPUs for this process: start at most "
            f"{count} ranks there, or show each rank one GPU alone (srun --gpus-per-task 1)"
        )
    return local_rank() if count > 1 else 0


@contextlib.contextmanager
def local_rank_for_deepspeed() -> Iterator[None]:
    """DeepSpeed takes LOCAL_RANK for the number of the GPU; where each rank sees one GPU alone that is 0."""
    names = [name for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK") if name in os.environ]
    before = {name: os.environ[name] for name in names}
    if torch.cuda.is_available():
        os.environ.update(dict.fromkeys(names, str(device_index())))
    try:
        yield
    finally:
        os.environ.update(before)


def describe_device() -> Device:
    """What this process computes on."""
    if torch.cuda.is_available():
        return Device("cuda", has_bf16=torch.cuda.get_device_capability(device_index()) >= (8, 0))
    capabilities = torch.cpu.get_capabilities()
    has_bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return Device("cpu", has_bf16=has_bf16, has_fp16=False)


def init_distributed(backend: str | None = None, join_seconds: float = JOIN_SECONDS) -> torch.device:
    """Join the process group, once; returns the device of this rank.

    On a CPU, DeepSpeed's shared-memory all-reduce is left out: each rank of each run would leave 66 MB in /dev/shm for
    good, and its first start compiles for most of a minute. gloo does all the communication.

    Args:
        backend: what moves the tensors: nccl or gloo; None: nccl on GPUs, else gloo.
        join_seconds: how long to wait for ranks that start later.

    Raises:
        RankLostError: if not all ranks came in that time.
    """
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["LOCAL_SIZE"] = "0"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    _set_defaults()
    _quieten()
    import deepspeed

    device = torch.device("cuda", device_index()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:  # deepspeed.comm.torch as an attribute is torch itself
        importlib.import_module("deepspeed.comm.torch").__dict__["build_shm_op"] = lambda: None
    backend = backend_on(device.type, backend)
    if backend == "gloo" and local_size < world_size():
        choose_interface(os.environ["MASTER_ADDR"])
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            backend,
            store=_meet(join_seconds),
            rank=global_rank(),
            world_size=world_size(),
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if backend == "nccl" and world_size() > 1 else None,
        )
    deepspeed.init_distributed(
        dist_backend=backend, verbose=False, auto_mpi_discovery=False, timeout=COLLECTIVE_TIMEOUT
    )
    return device


def _meet(seconds: float) -> torch.distributed.Store:
    """The store of all ranks, once all have come: a group made without one of them would wait for it much longer.

    torchrun restarts ranks beside a store that holds what the first ones wrote, so each start has its own part of it.
    """
    if global_rank() == 0:
        _allow_connections()
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    limit = timedelta(seconds=seconds)
    try:
        found, rank, size = next(torch.distributed.rendezvous("env://", timeout=limit))
        store = torch.distributed.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
        store.set(f"joined/{rank}", "")
        store.wait([f"joined/{other}" for other in range(size)], limit)
    except torch.distributed.DistError as error:
        first_line = str(error).partition("\n")[0]
        raise RankLostError(
            f"rank {global_rank()}: not all {world_size()} ranks came to {address} within {seconds:.0f} s "
            f"({first_line.rstrip('.')}); one that failed before has told why, and a wrong MASTER_ADDR, MASTER_PORT "
            "or WORLD_SIZE looks the same",
            tell=local_rank() == 0,
        ) from None
    return store


def _allow_connections() -> None:
    """Two connections a rank, for its group and its watchdog, may be more than a process may open by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * world_size() + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _set_defaults() -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])


def _quieten() -> None:
    """DeepSpeed logs to stdout and torch warns about DeepSpeed's calls: neither concerns a user."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="deepspeed|torch")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def barrier() -> None:
    """Wait for all ranks."""
    torch.distributed.barrier()


def all_reduce_sum(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Sum host numbers over the ranks: [n] float64 on ``device`` (exact for integers up to 2^53)."""
    on_gpu = device.type == "cuda"  # only from pinned memory a copy does not wait for the GPU
    total = torch.tensor(list(values), dtype=torch.float64, pin_memory=on_gpu).to(device, non_blocking=True)
    torch.distributed.all_reduce(total)
    return total


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, on every rank; small host objects only."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def raise_together(problem: str | None) -> None:
    """Raise SharedError on every rank if any rank has a problem, so that no rank is left waiting for another."""
    ranks_of: dict[str, list[int]] = {}
    for rank, text in enumerate(gather_objects(problem)):
        if text:
            ranks_of.setdefault(text, []).append(rank)
    if ranks_of:
        raise SharedError("\n".join(_told_by(ranks) + text for text, ranks in ranks_of.items()))


def _told_by(ranks: list[int]) -> str:
    """Who has a problem, in front of its text; nothing where rank 0 has it too."""
    if ranks[0] == 0:
        return ""
    return f"rank {ranks[0]}: " if len(ranks) == 1 else f"rank {ranks[0]} and {len(ranks) - 1} more: "


def refuse_disagreement(facts: dict[str, str], doing: str, way_out: str, reasons: dict[str, str] | None = None) -> None:
    """Raise on every rank where one knows other facts than rank 0.

    Args:
        facts: what must be equal on all ranks, by name.
        doing: what a rank that differs would do, as in "train on other rows" than rank 0.
        way_out: what the user can do.
        reasons: why a fact is as it is on this rank, where there is a reason.

    Raises:
        SharedError: naming the first rank that differs, its host and what it sees.
    """
    known = gather_objects((platform.node(), facts, reasons or {}))
    first = known[0][1]
    for rank, (host, theirs, why) in enumerate(known):
        for what in sorted(first.keys() | theirs.keys()):
            if first.get(what) == theirs.get(what):
                continue
            because = f" ({why[what]})" if why.get(what) else ""
            raise SharedError(
                f"rank {rank} on {host} would {doing} than rank 0: {what}: {theirs.get(what, 'none')} there{because}, "
                f"{first.get(what, 'none')} on rank 0; {way_out}"
            )


def shared_store() -> torch.distributed.Store:
    """The store that the ranks met in."""
    return torch.distributed.distributed_c10d._get_default_store()


def wait_for_rank_zero(meanwhile: Callable[[], None] | None = None) -> None:
    """Return when rank 0 has called this too, however long that takes; all ranks call it as often, in the same order.

    To be called before a collective that rank 0 comes to after work of its own: a collective gives up after
    ``COLLECTIVE_TIMEOUT``. If rank 0 is lost meanwhile, its store does not answer, or the watchdog ends this rank.
    The others call ``meanwhile``, which must be quick, about every second.
    """
    if world_size() == 1:
        return
    store, meeting = shared_store(), next(_meetings)
    if global_rank() == 0:
        store.add(RANK_ZERO_CAME, 1)
        return
    pause = SHORTEST_PAUSE
    while store.add(RANK_ZERO_CAME, 0) < meeting:  # adding nothing reads
        if meanwhile is not None:
            meanwhile()
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)


def from_rank_zero(work: Callable[[], T], meanwhile: Callable[[], None] | None = None) -> T:
    """Do something on rank 0 alone, however long it takes; every rank gets its result.

    Args:
        work: what rank 0 does.
        meanwhile: what the others call about every second until then.

    Raises:
        SharedError: on every rank, where it was a ValueError or OSError on rank 0.
    """
    result, problem = None, None
    if global_rank() == 0:
        try:
            result = work()
        except (ValueError, OSError) as error:
            problem = str(error)
    wait_for_rank_zero(meanwhile)
    raise_together(problem)
    return cast(T, broadcast_object(result))
