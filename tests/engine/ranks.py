"""Run a function of a test module on several ranks of a gloo group, and give back what each rank returns."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests import commands


def run_ranks(module: str, function: str, folder: Path, ranks: int = 2, timeout: float = 120) -> list[Any]:
    """Call ``function(folder)`` of a module on every rank; the results are JSON values, by rank."""
    env = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(commands.free_port())}
    with contextlib.ExitStack() as stack:
        # Files, not pipes: a rank whose pipe is full stands still, and the others wait for it.
        outputs = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in "oe"] for _ in range(ranks)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.engine.ranks", module, function, str(folder)],
                cwd=commands.REPOSITORY,
                env=commands.environment({**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
                stdout=outputs[rank][0],
                stderr=outputs[rank][1],
            )
            for rank in range(ranks)
        ]
        try:
            for process in processes:
                process.wait(timeout=timeout)
        finally:
            for process in processes:
                process.kill()
        for file in itertools.chain(*outputs):
            file.seek(0)
        for process, (_, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, errors.read()
        return [json.loads(text.read().splitlines()[-1]) for text, _ in outputs]


def _main(module: str, function: str, folder: str) -> None:
    import torch

    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    result = getattr(importlib.import_module(module), function)(Path(folder))
    torch.distributed.barrier()
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
