"""Worker processes that are given block numbers, one at a time, until none is left."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, cast

STOP_SECONDS = 5.0


class Job(Protocol):
    """What workers do; it is pickled to each of them."""

    def start(self) -> Any:
        """Load what every block needs, once in each process."""

    def run(self, state: Any, block: int, progress: Callable[[int], None]) -> Any:
        """Do one block and return its (small) result."""


def run_blocks(job: Job, blocks: Sequence[int], num_workers: int, progress: Callable[[int], None]) -> list[Any]:
    """Run a job over blocks (or any numbered pieces of work) and return the results in their order.

    Workers take the next block when they are free, so each sees its blocks in the order given.

    One worker, or one block, runs in this process. A worker's ValueError or OSError is raised here with its message,
    any other failure as RuntimeError with its traceback; the other workers are stopped first.
    """
    num_workers = min(num_workers, len(blocks))
    if num_workers <= 1:
        state = job.start() if blocks else None
        return [job.run(state, block, progress) for block in blocks]
    results: dict[int, Any] = {}
    for kind, value in _messages(job, blocks, num_workers):
        if kind == "progress":
            progress(value)
        else:
            results[value[0]] = value[1]
    return [results[block] for block in blocks]


def _messages(job: Job, blocks: Sequence[int], num_workers: int) -> Iterator[tuple[str, Any]]:
    """Start workers and yield what they send; whatever happens, none is left running."""
    context = multiprocessing.get_context("spawn")
    waiting = iter(blocks)
    workers: dict[Connection, BaseProcess] = {}
    try:
        with _single_threaded_tokenizers(), _interrupt_later():
            for _ in range(num_workers):
                pipe, end = context.Pipe()
                process = context.Process(target=_work, args=(job, end), daemon=True)
                process.start()
                end.close()
                workers[pipe] = process
        while workers:
            for pipe in cast("list[Connection]", wait(list(workers))):
                kind, value = _receive(pipe, workers[pipe])
                if kind == "failed":
                    raise value
                if kind != "ready":
                    yield kind, value
                if kind != "progress":
                    block = next(waiting, None)
                    _send(pipe, block, workers[pipe])
                    if block is None:
                        workers.pop(pipe).join()
    finally:
        _stop(list(workers.values()))


def _receive(pipe: Connection, process: BaseProcess) -> tuple[str, Any]:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        raise _died(process) from None


def _send(pipe: Connection, block: int | None, process: BaseProcess) -> None:
    try:
        pipe.send(block)
    except OSError:
        raise _died(process) from None


def _died(process: BaseProcess) -> RuntimeError:
    """Return the error for a worker that has closed its end of the pipe."""
    process.join(STOP_SECONDS)
    code = process.exitcode
    reason = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
    hint = "; out of memory? use fewer --workers or a smaller --shard_bytes" if code == -signal.SIGKILL else ""
    return RuntimeError(f"a worker process ended {reason}{hint}")


def _stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


@contextlib.contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Keep ``tokenizers`` in the workers started meanwhile from making threads of its own."""
    settings = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupt_later() -> Iterator[None]:
    """Hold Ctrl-C back: processes started meanwhile never see it, and this one sees it at the end.

    Blocking it is for the new processes, which inherit that; here another thread may still get it, so the handler
    waits, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's own process: starting it would let Ctrl-C through again
    seen: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
        if seen:
            signal.raise_signal(signal.SIGINT)


def _work(job: Job, pipe: Connection) -> None:
    """Body of a worker process: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also where it could not be held back from the start
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        state = job.start()
        pipe.send(("ready", None))
        while (block := _next(pipe)) is not None:
            result = job.run(state, block, lambda num_bytes: pipe.send(("progress", num_bytes)))
            pipe.send(("done", (block, result)))
    except (BrokenPipeError, ConnectionResetError):  # the parent is gone
        pass
    except OSError as error:
        pipe.send(("failed", error))
    except ValueError as error:
        pipe.send(("failed", ValueError(str(error))))
    except Exception:  # a fault of ours: the parent raises it with this traceback
        pipe.send(("failed", RuntimeError(f"a worker process failed:\n{traceback.format_exc()}")))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _next(pipe: Connection) -> int | None:
    """Return the number of the next block; None when there is none, or no parent."""
    try:
        return pipe.recv()
    except EOFError:
        return None
