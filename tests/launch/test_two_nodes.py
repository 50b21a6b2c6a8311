"""The two hosts themselves: ranks on both meet through the network, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.launch import two_nodes

# every rank writes its host, its number, the sum of all numbers and what it found in the environment
RANK_SCRIPT = """
import json, os, socket, sys
from pathlib import Path
import torch
import torch.distributed as distributed

distributed.init_process_group("gloo")
rank = distributed.get_rank()
total = torch.tensor([rank + 1.0])
distributed.all_reduce(total)
found = {"host": socket.gethostname(), "sum": total.item(), "given": os.environ["GIVEN"], "folder": os.getcwd()}
Path(f"rank-{rank}.json").write_text(json.dumps(found))
distributed.destroy_process_group()
"""


def test_ranks_on_both_hosts_meet(nodes: two_nodes.TwoNodes, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANK_SCRIPT)
    done = nodes.run(["--num_nodes", "2", "ranks.py"], cwd=tmp_path, env={"GIVEN": "to all ranks"})
    assert done.returncode == 0, done.stdout
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [rank["host"] for rank in ranks] == ["node-0", "node-1"]
    assert all(rank["sum"] == 3 and rank["given"] == "to all ranks" for rank in ranks)
    assert {rank["folder"] for rank in ranks} == {str(tmp_path)}


def test_a_failing_rank_fails_the_launch(nodes: two_nodes.TwoNodes, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text("raise SystemExit(3)")
    done = nodes.run(["--num_nodes", "2", "ranks.py"], cwd=tmp_path)
    assert done.returncode != 0


def test_killing_leaves_only_the_sshds(nodes: two_nodes.TwoNodes, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text("import os, time; open(os.environ['RANK'], 'w').close(); time.sleep(600)")
    with ThreadPoolExecutor(1) as pool:
        launch = pool.submit(nodes.run, ["--num_nodes", "2", "ranks.py"], cwd=tmp_path)
        while not launch.done() and not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            time.sleep(0.05)
        nodes.kill_processes(spare_sshd=True)
        assert launch.result(timeout=60).returncode != 0
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists(), launch.result().stdout
    assert running(nodes) == {int(path.read_text()) for path in nodes.folder.glob("sshd-*.pid")}


def test_a_time_limit_kills_the_launch(nodes: two_nodes.TwoNodes, tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        nodes.run(["--num_nodes", "2", "ranks.py"], cwd=tmp_path, timeout=0.5)
    assert len(running(nodes)) == 2


def running(nodes: two_nodes.TwoNodes) -> set[int]:
    """All processes on both hosts."""
    return {pid for name in nodes.namespaces for pid in two_nodes.processes_in(name)}


def test_namespaces_of_a_dead_run_are_removed(nodes: two_nodes.TwoNodes) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, alive = f"{two_nodes.PREFIX}-{ended.pid}-a", f"{two_nodes.PREFIX}-{os.getppid()}-a"
    try:
        for name in (dead, alive):
            subprocess.run(["ip", "netns", "add", name], check=True)
        sleeper = subprocess.Popen(["ip", "netns", "exec", dead, "sleep", "600"])
        while sleeper.pid not in two_nodes.processes_in(dead):
            time.sleep(0.01)
        two_nodes.remove_leftovers()
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert sleeper.wait(timeout=10) != 0
        assert dead not in listed
        assert alive in listed and nodes.namespaces[0] in listed
    finally:
        subprocess.run(["ip", "netns", "del", alive], check=True)


def test_missing_prerequisites_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_nodes.os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        two_nodes.shutil, "which", lambda command, path: None if command in ("sshd", "pdsh") else "/bin"
    )
    assert two_nodes.missing() == "two hosts need openssh-server, pdsh: apt-get install openssh-server pdsh"
    monkeypatch.setattr(two_nodes.os, "geteuid", lambda: 1000)
    assert two_nodes.missing() == "two hosts need root on Linux (network namespaces)"
