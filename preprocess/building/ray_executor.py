"""Runs the blocks of a job on a Ray cluster; see ``workers.run_blocks``, which does it in processes of one machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import preprocess
from preprocess.building.versions import library_versions, versions_here
from preprocess.workers import Job

STORE_BYTES = 80 << 20  # results are small, so the smallest store that Ray takes will do
PATIENCE_SECONDS = 60.0
CONNECT_SECONDS = 10.0


def run_blocks_on_ray(
    job: Job,
    blocks: Sequence[int],
    num_workers: int,
    progress: Callable[[int], None],
    versions: Mapping[str, str] | None = None,
) -> list[Any]:
    """Run a job over blocks on up to ``num_workers`` actors and return the results in the order of the blocks.

    The cluster whose address is in RAY_ADDRESS is used ("auto": the one that runs on this machine); without it one is
    started here for the time of the call. The corpus and the output folder must be at the same paths on all its nodes.

    Args:
        versions: library -> version that all nodes must have; None: as here, those that decide a shard's bytes.

    Raises:
        ValueError: if ray is not installed, there is no cluster at that address, or its nodes have other versions of
            the libraries; also what the job raises, as in ``workers.run_blocks``.
        RuntimeError: if an actor dies, or fails in another way.
    """
    if not blocks:
        return []
    ray = _ray()
    versions = library_versions() if versions is None else versions
    num_workers = min(num_workers, len(blocks))
    with _cluster(ray, num_workers):
        actor = ray.remote(num_cpus=1)(BlockWorker)
        handles = [actor.remote(job, os.getcwd(), list(versions)) for _ in range(num_workers)]
        try:
            return _hand_out(ray, handles, blocks, progress, versions)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, (ValueError, OSError)):
                raise cause from None
            raise RuntimeError(f"a block failed on the Ray cluster:\n{error}") from None
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"a worker of the Ray cluster died; the same command goes on ({error})") from None
        finally:
            for handle in handles:
                ray.kill(handle)


def _ray() -> Any:
    if "ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"):
        # Else the cluster started here writes a token to the home folder, which later clusters then ask for, too.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise ValueError("--executor ray needs Ray: pip install 'pretraining-engine[cluster]' (or ray)") from None
    return ray


@contextlib.contextmanager
def _cluster(ray: Any, num_workers: int) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start one here; what was started or joined is left again."""
    if ray.is_initialized():
        yield
        return
    environment = {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}}
    address = os.environ.get("RAY_ADDRESS")
    with contextlib.ExitStack() as stack:
        if address:
            modules = {"py_modules": [str(Path(preprocess.__file__).parent)]}  # this package travels to the nodes
            try:
                _knock(address)
                _init(ray, address=address, runtime_env=environment | modules)
            except (ConnectionError, TimeoutError) as error:
                raise ValueError(f"RAY_ADDRESS is {address!r}, and no Ray cluster answers there: {error}") from None
        else:
            logs = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
            own: dict[str, Any] = {"num_cpus": num_workers, "include_dashboard": False, "_temp_dir": logs}
            _init(ray, address="local", object_store_memory=STORE_BYTES, runtime_env=environment, **own)
        stack.callback(ray.shutdown)
        yield


def _knock(address: str) -> None:
    """Raise ConnectionError or TimeoutError at once if nothing listens at HOST:PORT; Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except socket.gaierror as error:
            raise ConnectionError(error.strerror) from None


def _init(ray: Any, **settings: Any) -> None:
    """Connect quietly, and keep what SIGTERM does: Ray sets it to end without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **settings)
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray does not start: {error}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


class BlockWorker:
    """An actor: loads a job's state once and does blocks.

    Args:
        folder: that the command was started in; paths may be relative to it.
        libraries: names of those whose versions are asked for.
    """

    def __init__(self, job: Job, folder: str, libraries: Sequence[str]) -> None:
        with contextlib.suppress(OSError):  # where it is missing, only absolute paths are found
            os.chdir(folder)
        self._job = job
        self._libraries = libraries
        self._state: Any = None

    def start(self) -> tuple[str, dict[str, str]]:
        """Load the state; return the node's name and the versions of the libraries there."""
        self._state = self._job.start()
        return os.uname().nodename, versions_here(self._libraries)

    def run(self, block: int) -> tuple[Any, int]:
        """Do a block; return its result and the bytes done."""
        done: list[int] = []
        result = self._job.run(self._state, block, done.append)
        return result, sum(done)


def _hand_out(
    ray: Any,
    handles: Sequence[Any],
    blocks: Sequence[int],
    progress: Callable[[int], None],
    versions: Mapping[str, str],
) -> list[Any]:
    """Give each actor that runs the next block; those that the cluster has no room for get none."""
    results: dict[int, Any] = {}
    waiting = iter(enumerate(blocks))
    asked: dict[Any, tuple[Any, int | None]] = {handle.start.remote(): (handle, None) for handle in handles}
    is_started = False
    while len(results) < len(blocks):
        ready, _ = ray.wait(list(asked), num_returns=1, timeout=None if is_started else PATIENCE_SECONDS)
        if not ready:
            print("note: waiting for a free CPU of the Ray cluster", file=sys.stderr, flush=True)
            continue
        handle, index = asked.pop(ready[0])
        answer = ray.get(ready[0])
        if index is None:
            node, there = answer
            _check_versions(node, there, versions)
            is_started = True
        else:
            results[index] = answer[0]
            progress(answer[1])
        index, block = next(waiting, (None, None))
        if index is not None:
            asked[handle.run.remote(block)] = (handle, index)
    return [results[index] for index in range(len(blocks))]


def _check_versions(node: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse a node whose libraries would write other bytes than the manifest says."""
    different = [
        f"{name} is {there.get(name)} there and {version} here"
        for name, version in here.items()
        if there.get(name) != version
    ]
    if different:
        raise ValueError(
            f"the Ray node {node} has other versions of libraries: {', '.join(different)}; make them equal"
        )
