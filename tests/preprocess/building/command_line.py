"""The real command in processes of its own, for tests that stop it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
WORDS = ["the", "token", "masking", "cat", "dog", "中文", "人", "running", "é", "x", "字大", "a-b"]
SECONDS = 90.0


class CommandLine:
    """``python -m preprocess shards`` with one corpus and tokenizer, started in an empty folder.

    Args:
        folder: to work in; ``folder / "cwd"`` is the commands' current folder.
    """

    def __init__(self, folder: Path, corpus: Sequence[Path | str], tokenizer: Path, *options: str) -> None:
        self.cwd = folder / "cwd"
        self.cwd.mkdir(exist_ok=True)
        self.command = ["shards", "--corpus", *map(str, corpus), "--tokenizer", str(tokenizer), *options]

    def start(self, output: Path, *options: str, workers: int = 2, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start the command as leader of a process group."""
        arguments = [*self.command, "--output", str(output), "--workers", str(workers), *options]
        return self._start([*prefix, sys.executable, "-m", "preprocess", *arguments])

    def run(self, output: Path, *options: str, workers: int = 2, code: int = 0) -> str:
        """Run the command to its end and return what it says, on both streams."""
        return self._finish(self.start(output, *options, workers=workers), code)

    def finish(self, output: Path, code: int = 0) -> str:
        """Run ``finish`` on a folder and return what it says."""
        return self._finish(self._start([sys.executable, "-m", "preprocess", "finish", str(output)]), code)

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            cwd=self.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _finish(self, process: subprocess.Popen[str], code: int) -> str:
        try:
            said = process.communicate(timeout=SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {SECONDS} s: {process.communicate()[0]}") from None
        assert process.returncode == code, said
        assert "Traceback" not in said
        assert list(self.cwd.iterdir()) == []
        return said


def wait_for(what: str, is_so, process: subprocess.Popen[str]) -> None:
    """Wait until something is so while a process runs."""
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.003)


def records(output: Path) -> list[Path]:
    """Return the records of the blocks that are done."""
    return sorted((output / ".work").glob("block-*.json"))


def stop(process: subprocess.Popen[str], number: signal.Signals, output: Path, num_blocks: int = 3) -> str:
    """Send a signal to all processes of a run when some blocks are done; return what it said."""
    wait_for(f"{num_blocks} blocks", lambda: len(records(output)) >= num_blocks, process)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=SECONDS)[0]
    assert not (output / "manifest.json").exists(), "the run was too fast to be stopped"
    return said


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the worker processes of a run."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def times_of_shards(folder: Path) -> dict[str, int]:
    """Return when each shard was written, held-out ones included."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("shard-*.h5"))}


def write_text(path: Path, num_documents: int = 8000, seed: int = 1) -> Path:
    """Write documents of several sentences, one a line, of which some occur again."""
    generator = random.Random(seed)
    documents: list[str] = []
    for _ in range(num_documents):
        if documents and generator.random() < 0.1:
            documents.append(generator.choice(documents))
        else:
            lines = [" ".join(generator.choices(WORDS, k=generator.randint(1, 20))) for _ in range(5)]
            documents.append("\n".join(lines))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path
