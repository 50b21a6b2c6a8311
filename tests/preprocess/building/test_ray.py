"""``--executor ray`` gives the same bytes and the same errors as processes of this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from preprocess.building import ray_executor
from preprocess.building.ray_executor import run_blocks_on_ray
from tests.preprocess.building.command_line import CommandLine, digests, write_text

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray (the extra `cluster`)")
RAY = ("--executor", "ray")
BLOCKS = ("--shard_bytes", "60000")
CLEANING = ("--deduplicate", "sentences", "--min_characters", "100")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test depends on what this machine's user has set, or leaves anything in the home or temporary folder."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty temporary folder with a short name: the paths of Ray's sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two CPUs that another command started in another folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="r-")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    command = f"start --head --block --node-ip-address=127.0.0.1 --port={port} --num-cpus=2 --include-dashboard=false"
    command += f" --object-store-memory={80 << 20} --temp-dir={folder} --disable-usage-stats"
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *command.split()],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = list(itertools.takewhile(lambda line: "Ray runtime started" not in line, process.stdout))
        assert process.poll() is None, said
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@needs_ray
def test_same_bytes_as_one_process(vocabulary_file: Path, tmp_path: Path, short_folder: Path) -> None:
    text = write_text(tmp_path / "a.txt", 3000)
    store = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    told = []
    for name, options in (("local", ()), ("ray", RAY)):
        run = CommandLine(tmp_path, [text], vocabulary_file, *BLOCKS, *CLEANING)
        dropped = ("--dropped", str(tmp_path / f"{name}.jsonl"))
        told.append(run.run(tmp_path / name, *options, *dropped, workers=2 if options else 1).replace(name, "NAME"))
    assert told[0] == told[1]
    assert digests(tmp_path / "local") == digests(tmp_path / "ray")
    assert len([name for name in digests(tmp_path / "ray") if name.startswith("shard-")]) > 5
    assert (tmp_path / "local.jsonl").read_text() == (tmp_path / "ray.jsonl").read_text() != ""
    assert list(short_folder.iterdir()) == [] and list((tmp_path / "home").iterdir()) == []
    if store:
        assert not [name for name in os.listdir("/dev/shm") if "plasma" in name and name not in store]


@needs_ray
def test_errors_are_those_without_ray(vocabulary_file: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", 1000)
    with open(text, "ab") as file:
        file.write(b"\n\nbad \xff\n")
    told = []
    for options in ((), RAY):
        output = tmp_path / "out"
        run = CommandLine(tmp_path, [text], vocabulary_file, "--shard_bytes", "20000")
        told.append(run.run(output, *options, code=2))
        assert not (output / "manifest.json").exists() and list((output / ".work").glob("block-*.json"))
        if not options:
            shutil.rmtree(output)
    assert told[0] == told[1] and "a.txt is not UTF-8: byte 0xff at offset" in told[0]
    run = CommandLine(tmp_path, [text], vocabulary_file, "--shard_bytes", "20000", "--invalid_utf8", "drop")
    assert "blocks were done already" in run.run(output)  # without Ray this time


@needs_ray
def test_cluster_of_ray_address(
    cluster: str, vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More workers than the cluster has room for do no harm, nor do paths that are relative to the command's folder."""
    write_text(tmp_path / "a.txt", 2000)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    run = CommandLine(tmp_path, ["../a.txt"], vocabulary_file, *BLOCKS)
    run.run(Path("../ray"), *RAY, workers=4)
    monkeypatch.delenv("RAY_ADDRESS")
    run.run(Path("../local"), workers=1)
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")


@needs_ray
def test_wrong_address(vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_text(tmp_path / "a.txt", 10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        run = CommandLine(tmp_path, [text], vocabulary_file)
        said = run.run(tmp_path / "out", *RAY, code=2)
    assert "error: RAY_ADDRESS is '127.0.0.1:" in said and "no Ray cluster answers there" in said
    assert not (tmp_path / "out").exists()


class NoJob:
    """A job that nobody runs."""

    def start(self) -> None:
        """Need nothing."""

    def run(self, state, block: int, progress) -> int:
        """Return the block."""
        return block


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--executor ray needs Ray: pip install 'pretraining-engine\[cluster\]'"):
        run_blocks_on_ray(NoJob(), [1], 1, lambda _: None)
    assert run_blocks_on_ray(NoJob(), [], 1, lambda _: None) == []


def test_nodes_with_other_versions_are_refused() -> None:
    here = {"h5py": "3", "hdf5": "2"}
    ray_executor._check_versions("node-7", {"h5py": "3", "hdf5": "2"}, here)
    with pytest.raises(ValueError, match=r"the Ray node node-7 has other versions of libraries: hdf5 is 1 there and 2"):
        ray_executor._check_versions("node-7", {"h5py": "3", "hdf5": "1"}, here)


@needs_ray
def test_nodes_are_asked_for_all_versions_of_the_plan() -> None:
    """Not only for those of the libraries that write shards."""
    versions = {"sentencex": importlib.metadata.version("sentencex"), "re": f"3.{sys.version_info.minor}"}
    assert run_blocks_on_ray(NoJob(), [5], 1, lambda _: None, versions) == [5]
    with pytest.raises(ValueError, match=r"tiktoken is .* there and 0\.0 here, nowhere is missing there and 1 here"):
        run_blocks_on_ray(NoJob(), [5], 1, lambda _: None, {"tiktoken": "0.0", "nowhere": "1"})
