"""A rank on another host is lost: its process is out of sight here, so only its silence tells."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import commands
from tests.launch import two_nodes

RANK_SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(commands.REPOSITORY)!r})
from engine.config.cli import exit_process, run_command

def main():
    import torch
    from engine.train.distributed import global_rank, init_distributed
    from engine.train.watchdog import Watchdog
    init_distributed()
    with Watchdog(3.0) as watchdog:
        for step in range(10**9):
            watchdog.progress(step)
            torch.distributed.all_reduce(torch.ones(1))
            if step == 20:
                open(f"rank-{{global_rank()}}", "w").write(str(os.getpid()))
            time.sleep(0.02)

exit_process(run_command(main))
"""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSTOP, "has given no sign of life for 3 s"),
        pytest.param(signal.SIGKILL, "gives no sign of life", marks=pytest.mark.slow),
    ],
)
def test_a_rank_on_another_host_is_named_with_its_host(number, words, nodes: two_nodes.TwoNodes, tmp_path: Path):
    (tmp_path / "ranks.py").write_text(RANK_SCRIPT)
    log, pids = nodes.folder / "launch.log", [tmp_path / f"rank-{rank}" for rank in range(2)]
    with ThreadPoolExecutor(1) as pool:
        launch = pool.submit(nodes.run, ["--num_nodes", "2", "--no_local_rank", "ranks.py"], cwd=tmp_path, timeout=200)
        while not launch.done() and not all(file.exists() and file.read_text() for file in pids):
            time.sleep(0.05)
        first, second = (int(file.read_text()) for file in pids)
        os.kill(second, number)
        while not launch.done() and first in two_nodes.processes_in(nodes.namespaces[0]):
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.kill(second, signal.SIGKILL)  # its launcher waits for it: no other rank of its host could end with 76
        assert launch.result().returncode != 0
    assert re.search(rf"error: rank 1 \(host node-1, pid {second}\) {words}", log.read_text()), log.read_text()
