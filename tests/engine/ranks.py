"""Run a function of a test module on several ranks of a gloo group, and give back what each rank returns."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests import commands


def run_ranks(module: str, function: str, folder: Path, ranks: int = 2, timeout: float = 120) -> list[Any]:
    """Call ``function(folder)`` of a module on every rank; the results are JSON values, by rank."""
    env = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(commands.free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.ranks", module, function, str(folder)],
            cwd=commands.REPOSITORY,
            env=commands.environment({**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(text.splitlines()[-1]) for text, _ in outputs]


def _main(module: str, function: str, folder: str) -> None:
    import torch

    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    result = getattr(importlib.import_module(module), function)(Path(folder))
    torch.distributed.barrier()
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
