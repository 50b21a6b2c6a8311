"""Training runs for ``benchmarks/scaling.py``: the training command on several ranks, and what it leaves to be read."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.scaling_network import Hosts

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 900.0
NEVER = 10**9
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
HERE = Hosts()
LAUNCHER_SETS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run.

    Args:
        stage: of ZeRO, by ds_configs/zeroN_bf16.json.
        precision: bf16, or fp32: the same file without its bf16 part.
        ranks: how many, and where by ``hosts``.
        rows: of a step on each rank.
        accumulation: micro-batches a step.
        steps: optimizer steps.
        log_every: steps between lines of metrics.jsonl.
        changes: to the file's zero_optimization.
        first_core: of the first rank; the others follow, round by round over this machine's cores.
    """

    stage: int
    precision: str = "fp32"
    ranks: int = 1
    rows: int = 4
    accumulation: int = 1
    steps: int = 4
    log_every: int = NEVER
    changes: Mapping[str, Any] = field(default_factory=dict)
    hosts: Hosts = HERE
    first_core: int = 0


@dataclass(frozen=True)
class Measured:
    """What a run left: the step records of each rank, the lines of metrics.jsonl, sizes of the parameters."""

    records: list[list[dict[str, Any]]]
    metrics: list[dict[str, Any]]
    sizes: list[int]
    sent: int  # bytes by the kernel's count, on all hosts, of the whole run

    def last_ops(self) -> dict[str, dict[str, float]]:
        """Collectives of the last recorded step of rank 0."""
        ops: dict[str, dict[str, float]] = self.records[0][-1]["ops"]
        return ops

    def blocked_shares(self, skip: int) -> list[float]:
        """Of each rank: share of time in collectives, without the first steps."""
        shares = []
        for record in self.records:
            steps = record[skip:]
            blocked = sum(entry["blocked"] for step in steps for entry in step["ops"].values())
            shares.append(blocked / sum(step["seconds"] for step in steps))
        return shares

    def step_seconds(self, skip: int) -> float:
        """Median step of rank 0, without the first ones."""
        return statistics.median(step["seconds"] for step in self.records[0][skip:])


@dataclass(frozen=True)
class Bench:
    """What all runs have in common: model, shards, row length, and the folder for what they leave."""

    model: str
    shards: Path
    seq_length: int
    folder: Path

    def run(self, jobs: Sequence[Job]) -> list[Measured]:
        """Run jobs one after the other in the same processes; they have ranks, hosts and cores in common."""
        return self.run_together([jobs])[0]

    def run_together(self, groups: Sequence[Sequence[Job]]) -> list[list[Measured]]:
        """Run groups of jobs at the same time; those of a group one after the other in the same processes.

        Raises:
            RuntimeError: with what was printed, if a rank fails.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folders, processes = [], []
            for number, jobs in enumerate(groups):
                folders.append(Path(name) / str(number))
                processes += self._processes(jobs, folders[-1])
            run_ranks(processes)
            return [
                [_read(folder / str(number), job) for number, job in enumerate(jobs)]
                for jobs, folder in zip(groups, folders, strict=True)
            ]

    def _processes(self, jobs: Sequence[Job], folder: Path) -> list[Rank]:
        listed = []
        for number, job in enumerate(jobs):
            own = folder / str(number)
            own.mkdir(parents=True)
            listed.append({"folder": str(own), "arguments": self._arguments(job, own)})
        (folder / "jobs.json").write_text(json.dumps(listed))
        script = ["benchmarks/scaling_rank.py", "--jobs", str(folder / "jobs.json")]
        if jobs[0].hosts.namespaces:
            script += ["--interface", jobs[0].hosts.interface]
        return rank_processes(script, jobs[0].ranks, jobs[0].hosts, jobs[0].first_core)

    def _arguments(self, job: Job, folder: Path) -> list[str]:
        config = folder / "ds_config.json"
        config.write_text(json.dumps(ds_config(job)))
        options = {
            "ds_config": config, "model": self.model, "data.shards": self.shards, "data.seq_length": self.seq_length,
            "train.output": folder / "run", "train.steps": job.steps, "train.batch_size": job.rows * job.ranks,
            "train.micro_batch_size": job.rows // job.accumulation, "train.log_every": job.log_every,
            "train.save_every": 0, "train.eval_every": 0, "train.eval_rows": 1, "train.tensorboard": "false",
        }  # fmt: skip
        return [text for name, value in options.items() for text in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Rank:
    """A process to start: its command and its environment."""

    command: list[str]
    environment: dict[str, str]


def ds_config(job: Job) -> dict[str, Any]:
    """The DeepSpeed file of a job."""
    tree: dict[str, Any] = json.loads((ROOT / "ds_configs" / f"zero{job.stage}_bf16.json").read_text())
    if job.precision == "fp32":
        for key in ("bf16", "data_types", "communication_data_type"):
            tree.pop(key, None)
    tree["zero_optimization"] |= job.changes
    return tree


def rank_processes(script: Sequence[str], ranks: int, hosts: Hosts, first_core: int = 0) -> list[Rank]:
    """Each rank pinned to one core, with one thread for arithmetic, as a launcher would start it."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER_SETS}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    per_host = ranks // max(1, len(hosts.namespaces))
    found = []
    for rank in range(ranks):
        core = ["--core", str(CORES[(first_core + rank) % len(CORES)])]
        command = [sys.executable, str(ROOT / script[0]), *script[1:], *core]
        environment = {
            **kept, "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank % per_host),
            "MASTER_ADDR": hosts.address, "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": hosts.interface,
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_CPP_LOG_LEVEL": "ERROR",
        }  # fmt: skip
        found.append(Rank(hosts.command(rank, ranks, command), environment))
    return found


def run_ranks(ranks: Sequence[Rank]) -> str:
    """Run processes to their end; returns what the first printed to stdout.

    Raises:
        RuntimeError: with what was printed, if one fails or they take too long; none is left running.
    """
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in "oe"] for _ in ranks]
        started = [
            subprocess.Popen(rank.command, env=rank.environment, cwd=ROOT, stdout=output, stderr=errors)
            for rank, (output, errors) in zip(ranks, files, strict=True)
        ]
        try:
            for process in started:
                process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for process in started:
                process.kill()  # does nothing to one that has ended
                process.wait()
        texts = []
        for pair in files:
            for file in pair:
                file.seek(0)
            texts.append([file.read() for file in pair])
    codes = [process.returncode for process in started]
    if any(codes):
        raise RuntimeError(f"ranks ended with {codes}:\n" + "\n".join(errors[-3000:] for _, errors in texts))
    return texts[0][0]


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _read(folder: Path, job: Job) -> Measured:
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(job.ranks)]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    manifest = next((folder / "run" / "checkpoints").glob("step-*/manifest.json"))
    sizes = [math.prod(shape) for shape in json.loads(manifest.read_text())["shapes"].values()]
    sent = sum(one["sent"] for one in found)
    metrics = [line for line in lines if "tokens_per_second" in line]
    return Measured([one["steps"] for one in found], metrics, sizes, sent)


def make_shards(folder: Path) -> Path:
    """Shards of the sample text that ships, with a small WordPiece vocabulary."""
    corpus = [str(path) for path in sorted((ROOT / "examples" / "corpus").glob("*.txt"))]
    tokenizer, shards = str(folder / "tokenizer"), str(folder / "shards")
    for options in (
        ["tokenizer", "--corpus", *corpus, "--type", "wordpiece", "--vocab_size", "4000", "--output", tokenizer],
        ["shards", "--corpus", *corpus, "--tokenizer", tokenizer, "--output", shards],
    ):
        command = [sys.executable, "-m", "preprocess", *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Path(shards)
