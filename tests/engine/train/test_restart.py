"""Runs that lose a rank: torchrun starts them again from the newest checkpoint, and no start waits for long."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config.cli import EXIT_RANK_LOST
from tests import commands
from tests.engine.train.test_signals import STEPS, options, start, torchrun

SAVE = ("--train.save_every", "4")


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory) -> Path:
    """A run on 2 ranks under torchrun that nothing stopped."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    done = subprocess.run(
        torchrun(2, options(shards, run, *SAVE)),
        env=commands.environment(), cwd=run.parent, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and (run / "FINISHED").is_file(), done.stderr
    return run


@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
    ],
)
def test_torchrun_goes_on_from_the_newest_checkpoint(number, lost, shards, unbroken, tmp_path):
    run = tmp_path / "run"
    arguments = options(shards, run, *SAVE, "--train.rank_timeout", "5")
    started = start(torchrun(2, arguments, "--max_restarts", "1"), run, step=6)
    os.kill(started.ranks[lost], number)
    code, text = started.end()
    assert code == 0 and (run / "FINISHED").is_file(), text
    assert f"error: rank {lost} (host {platform.node()}, pid {started.ranks[lost]}) " in text
    assert re.search(rf"going on from step (0|4|8|12|16|20|24|28|32|36) of {STEPS}", text), text
    weights = [folder / f"checkpoints/step-{STEPS}/model/model.safetensors" for folder in (run, unbroken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert commands.losses(run) == commands.losses(unbroken)


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_of_a_real_run_is_named(lost, shards, tmp_path):
    run = tmp_path / "run"
    started = start(commands.launch_command(commands.PRETRAIN, options(shards, run), 2), run)
    os.kill(started.ranks[lost], signal.SIGKILL)
    code, text = started.end()
    assert code == 256 - signal.SIGKILL, text  # the launcher's, of the rank that ended first
    assert f"error: rank {lost} (host {platform.node()}, pid {started.ranks[lost]}) was killed or crashed" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("present", [0, 1])
def test_ranks_that_never_come_are_not_waited_for_long(present, tmp_path):
    script = tmp_path / "join.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(commands.REPOSITORY)!r})\n"
        "from engine.config.cli import exit_process, run_command\n"
        "def main():\n"
        "    from engine.train.distributed import init_distributed\n"
        "    init_distributed(join_seconds=2)\n"
        "exit_process(run_command(main))\n"
    )
    port = str(commands.free_port())
    env = {"RANK": str(present), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=commands.environment(env), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_RANK_LOST, done.stderr
    assert f"error: rank {present}: not all 2 ranks came to 127.0.0.1:{port} within 2 s (" in done.stderr
    assert "a wrong MASTER_ADDR, MASTER_PORT or WORLD_SIZE looks the same" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_that_fails_on_one_rank_ends_the_others(shards, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(  # rank 1 alone fails, before the ranks have met
        "import os, sys\n"
        "class Fail:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'engine.train.trainer' and os.environ.get('RANK') == '1':\n"
        "            raise MemoryError('no memory on this host')\n"
        "sys.meta_path.insert(0, Fail())\n"
    )
    arguments = options(shards, tmp_path / "run")
    done = commands.run(commands.PRETRAIN, arguments, 2, env={"PYTHONPATH": str(tmp_path)}, timeout=100)
    assert done.returncode == 1, done.stdout
    assert "no memory on this host" in done.stdout
