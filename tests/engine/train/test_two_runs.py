"""Two runs into one folder: the second is refused, names the first, and leaves it alone."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

from engine.checkpoint.run_folder import RunFolder
from tests import commands


def options(shards: Path, output: Path, ds_config: Path) -> list[str | Path]:
    return [
        "--ds_config", ds_config, "--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3",
        "--arch.intermediate_size", "100", "--data.shards", shards, "--data.seq_length", "32",
        "--train.output", output, "--train.steps", "100000", "--train.batch_size", "4", "--train.micro_batch_size", "2",
        "--train.log_every", "1", "--train.save_every", "100000", "--train.tensorboard", "false",
    ]  # fmt: skip


def test_second_run_is_refused_until_the_first_is_gone(shards, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    arguments = options(shards, run.path, commands.write_ds_config(tmp_path / "zero0.json", zero_optimization={}))
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(
            commands.launch_command(commands.PRETRAIN, arguments, None),
            env=commands.environment(),
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_steps(run, first, tmp_path / "first.log")
        second = commands.run(commands.PRETRAIN, arguments)
        assert second.returncode == 2, second.stdout
        holder = f"process {first.pid} on {socket.gethostname()}"
        message = f"error: another run is at work in train.output {run.path} ({holder}); wait for its end, or choose"
        assert message in second.stdout
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    again = subprocess.Popen(  # a run that was killed holds nothing
        commands.launch_command(commands.PRETRAIN, arguments, None),
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        (run.path / "metrics.jsonl").unlink()
        wait_for_steps(run, again, tmp_path / "first.log")
    finally:
        again.send_signal(signal.SIGKILL)
        again.communicate()


def wait_for_steps(run: RunFolder, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not (run.metrics.is_file() and "loss" in run.metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
