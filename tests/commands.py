"""Run the project's command lines as a user does, and read what they leave behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PRETRAIN = REPOSITORY / "engine" / "pretrain.py"
DS_CONFIGS = REPOSITORY / "ds_configs"


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every command: a fixed number of threads, the venv's programs, no launcher's leftovers."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **(more or {})}


def launch_command(script: Path, options: Sequence[str | Path], ranks: int | None) -> list[str]:
    """Plain python where ranks is None, else the deepspeed launcher."""
    arguments = [str(script), *map(str, options)]
    if ranks is None:
        return [sys.executable, *arguments]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_gpus", str(ranks), "--master_port", str(free_port()), *arguments]


def run(
    script: Path,
    options: Sequence[str | Path],
    ranks: int | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; stdout and stderr are one text."""
    return subprocess.run(
        launch_command(script, options, ranks),
        cwd=cwd,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def preprocess(*options: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m preprocess OPTIONS``."""
    command = [sys.executable, "-m", "preprocess", *map(str, options)]
    env = environment({"PYTHONPATH": str(REPOSITORY)})
    return subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def write_ds_config(path: Path, **content: Any) -> Path:
    """A DeepSpeed JSON file."""
    path.write_text(json.dumps(content))
    return path


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The training loss of every line that has one."""
    return [line["loss"] for line in metrics(folder) if "loss" in line]
