"""Runs the blocks of a job on a Ray cluster; see ``workers.run_blocks``, which does it in processes of one machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import preprocess
from preprocess.workers import Job


def run_blocks_on_ray(job: Job, blocks: Sequence[int], num_workers: int, progress: Callable[[int], None]) -> list[Any]:
    """Run a job over blocks on ``num_workers`` actors and return the results in the order of the blocks.

    A cluster whose address is in RAY_ADDRESS, or that runs on this machine, is used; otherwise one is started here for
    the time of the call. The corpus and the output folder must be at the same paths on all its nodes.

    Raises:
        ValueError: if ray is not installed; also what the job raises, as in ``workers.run_blocks``.
        RuntimeError: if an actor dies, or fails in another way.
    """
    if not blocks:
        return []
    ray = _ray()
    started_here = not ray.is_initialized()
    if started_here:
        _connect(ray)
    try:
        return _run(ray, job, blocks, min(num_workers, len(blocks)), progress)
    finally:
        if started_here:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError("--executor ray needs Ray: pip install 'pretraining-engine[cluster]' (or ray)") from None
    return ray


def _connect(ray: Any) -> None:
    """Join the cluster there is, or start one; this package travels to its nodes."""
    settings = {
        "runtime_env": {
            "py_modules": [str(Path(preprocess.__file__).parent)],
            "env_vars": {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
        },
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    try:
        ray.init(address="auto", **settings)
    except ConnectionError:
        ray.init(include_dashboard=False, **settings)


class BlockWorker:
    """An actor: loads a job's state once and does blocks."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._state: Any = None
        self._started = False

    def run(self, index: int, block: int) -> tuple[int, Any, int]:
        """Do a block; return its index, its result and the bytes done."""
        if not self._started:
            self._state, self._started = self._job.start(), True
        done: list[int] = []
        result = self._job.run(self._state, block, done.append)
        return index, result, sum(done)


def _run(ray: Any, job: Job, blocks: Sequence[int], num_workers: int, progress: Callable[[int], None]) -> list[Any]:
    from ray.util import ActorPool

    actor = ray.remote(num_cpus=1)(BlockWorker)
    handles = [actor.remote(job) for _ in range(num_workers)]
    pool = ActorPool(handles)
    results: dict[int, Any] = {}
    try:
        for index, result, num_bytes in pool.map_unordered(
            lambda handle, item: handle.run.remote(*item), list(enumerate(blocks))
        ):
            results[index] = result
            progress(num_bytes)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        raise RuntimeError(f"a block failed on the Ray cluster:\n{error}") from None
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(f"a worker of the Ray cluster died: {error}; the same command goes on") from None
    finally:
        for handle in handles:
            ray.kill(handle)
    return [results[index] for index in range(len(blocks))]
