"""``python -m engine.launch`` over two hosts: what a user gives arrives there as it was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import commands
from tests.launch import two_nodes
from tests.launch.two_nodes import ADDRESSES

# a name for the run's folder that both hosts' shells and pdsh would obey
NASTY = "run $(touch obeyed) `touch obeyed`; touch obeyed & \"so\" 'it' %n %h %% \\n ~ * {a,b} 语料"
PROBE = """
import json, os, socket
from pathlib import Path
found = {"host": socket.gethostname(), "env": dict(os.environ)}
Path(f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
"""


def launch(
    nodes: two_nodes.TwoNodes, *options: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run engine.launch on the first host; nothing is prepared for the ranks but what it prepares itself."""
    command = [sys.executable, "-m", "engine.launch", "--hostfile", str(nodes.hostfile), *map(str, options)]
    kept = {name: value for name, value in os.environ.items() if name not in ("DS_ENV_FILE", "GLOO_SOCKET_IFNAME")}
    path = f"{nodes.folder / 'bin'}{os.pathsep}{two_nodes.TOOLS}"  # without the venv's folder
    mine = {"PATH": path, "PYTHONPATH": str(commands.REPOSITORY), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return nodes.run_here(nodes.on_host(0, command), cwd, {**kept, **mine, **(env or {})})


def test_arguments_arrive_unchanged_and_no_shell_obeys_them(nodes, shards, tmp_path):
    settings = ["--ds_config", commands.DS_CONFIGS / "fp32.json", "--data.shards", shards, "--data.seq_length", "64"]
    steps = ["--model", "bert-tiny", "--train.steps", "1", "--train.batch_size", "2", "--train.micro_batch_size", "1"]
    more = ["--train.tensorboard", "false", "--train.eval_every", "0", "--stages", "[]"]
    output = ["--train.output", NASTY]
    done = launch(nodes, commands.PRETRAIN, *settings, *steps, *more, *output, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir() and entry.name.startswith("run")] == [NASTY]
    config = json.loads((tmp_path / NASTY / "config.json").read_text())
    assert config["train"]["output"] == NASTY and config["world_size"] == 2
    assert (tmp_path / NASTY / "FINISHED").exists() and not (tmp_path / "obeyed").exists()
    assert not (tmp_path.home() / "obeyed").exists()


def test_the_environment_arrives_unchanged_and_secrets_stay(nodes, tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "mine").write_text("# a comment\n\nNCCL_MINE=from $HOME\nNCCL_BOTH=file\n")
    values = {
        "NCCL_SPACES": "  a  'b' \"c\" ",
        "NCCL_SHELL": "$(touch obeyed) `touch obeyed` $HOME \\ ; & | %h %% !",
        "NCCL_BOTH": "environment",
        "WORDS_OF_MINE": "两 words",
    }
    hidden = {"WANDB_API_KEY": "k" * 40, "MLFLOW_TRACKING_TOKEN": "t" * 40, "NOT_SENT": "here"}
    env = {**values, **hidden, "DS_ENV_FILE": str(tmp_path / "mine")}
    done = launch(nodes, "--export", "WORDS_OF_MINE", "probe.py", "--a=b", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout
    for rank in range(2):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert found["host"] == f"node-{rank}"
        assert {name: found["env"].get(name) for name in values} == {**values, "NCCL_BOTH": "file"}
        assert found["env"]["NCCL_MINE"] == "from $HOME" and found["env"]["OMP_NUM_THREADS"] == "1"
        assert found["env"]["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
        assert not hidden.keys() & found["env"].keys()
    assert "note: MLFLOW_TRACKING_TOKEN, WANDB_API_KEY not forwarded: it would stand in the process" in done.stdout
    assert "k" * 40 not in done.stdout and "t" * 40 not in done.stdout
    assert "note: NCCL_MINE of your environment file goes to the hosts as it stands there" in done.stdout
    assert not (tmp_path / "obeyed").exists()


def test_one_host_left_by_a_filter_is_the_one_that_runs(nodes, tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    done = launch(nodes, "--include", ADDRESSES[1], "probe.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "rank-0.json").read_text())["host"] == "node-1"  # bare deepspeed: node-0
    (tmp_path / "rank-0.json").unlink()
    done = launch(nodes, "--exclude", ADDRESSES[1], "probe.py", cwd=tmp_path)
    assert json.loads((tmp_path / "rank-0.json").read_text())["host"] == "node-0", done.stdout
    assert not (tmp_path / "rank-1.json").exists()


def test_a_host_that_cannot_be_reached_is_an_error(nodes, tmp_path):
    (tmp_path / "hosts").write_text(f"{ADDRESSES[0]} slots=1\n10.77.0.9 slots=1\n")
    (tmp_path / "probe.py").write_text(PROBE)
    done = launch(nodes, "--hostfile", "hosts", "--include", "10.77.0.9", "probe.py", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "error: Using hostfile at hosts but host=10.77.0.9 was not reachable via ssh" in done.stdout
    assert "Traceback" not in done.stdout and not list(tmp_path.glob("rank-*"))
