"""A run that is asked to stop saves, ends with a code of its own, and goes on by the same command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config.cli import EXIT_INTERRUPTED, EXIT_STOPPED
from engine.train.signals import STOP_FILE, StopRequest
from preprocess.files import sha256_of_file
from tests import commands

STEPS = 40
TINY = ("--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3", "--arch.intermediate_size", "100")


def options(shards: Path, output: Path, *more: str) -> list[str | Path]:
    """A run of STEPS steps that saves at its ends only."""
    return [
        "--ds_config", commands.DS_CONFIGS / "fp32.json", *TINY, "--data.shards", shards, "--data.seq_length", "64",
        "--train.output", output, "--train.steps", str(STEPS), "--train.batch_size", "8",
        "--train.micro_batch_size", "2", "--train.log_every", "1", "--train.save_every", "0",
        "--train.keep_checkpoints", "0", "--train.optimizer.lr", "1e-3", *more,
    ]  # fmt: skip


def torchrun(ranks: int, arguments: list[str | Path], *more: str) -> list[str]:
    """The command of a run under torchrun."""
    launcher = str(Path(sys.executable).with_name("torchrun"))
    port = str(commands.free_port())
    return [
        launcher, "--nproc_per_node", str(ranks), "--master_port", port, *more,
        str(commands.PRETRAIN), *map(str, arguments),
    ]  # fmt: skip


@dataclass
class Started:
    """A command that runs, and the processes of its ranks."""

    process: subprocess.Popen[bytes]
    ranks: dict[int, int]
    log: Path

    def end(self) -> tuple[int, str]:
        """Exit code and output."""
        return self.process.wait(timeout=120), self.log.read_text()


def start(command: list[str], run: Path, step: int = 3) -> Started:
    """Start a command and wait until its metrics have a step."""
    log = run.parent / f"{run.name}-{time.monotonic_ns()}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=commands.environment(), stdout=file, stderr=file, cwd=run.parent, start_new_session=True
        )
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    return Started(process, ranks_of(run), log)


def ranks_of(run: Path) -> dict[int, int]:
    """Process of each rank of a run, found by the folder in its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else []
            if str(run) in words and "python" in words[0] and str(commands.PRETRAIN) in words[1:3]:
                pairs = (entry / "environ").read_text().split("\0")
                found[int(dict(pair.split("=", 1) for pair in pairs if "=" in pair).get("RANK", "0"))] = int(entry.name)
        except OSError:
            continue
    return found


def stopped_step(run: Path) -> int:
    """The step of the checkpoint that the stop left, the only one beside that of step 0."""
    steps = sorted(int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*"))
    assert len(steps) == 2 and steps[0] == 0 and 3 <= steps[1] < STEPS, steps
    assert not (run / "FINISHED").exists()
    return steps[1]


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory) -> dict[int, Path]:
    """Runs on 1 and 2 ranks that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    for ranks in (None, 2):
        done = commands.run(commands.PRETRAIN, options(shards, folder / str(ranks or 1)), ranks)
        assert done.returncode == 0, done.stdout
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


def goes_on_as_unbroken(command: list[str], run: Path, unbroken: Path) -> None:
    """The same command ends the run with the weights of one that was never stopped."""
    done = subprocess.run(
        command, env=commands.environment(), cwd=run.parent, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
    weights = [folder / f"checkpoints/step-{STEPS}/model/model.safetensors" for folder in (run, unbroken)]
    assert sha256_of_file(weights[0]) == sha256_of_file(weights[1])
    assert commands.losses(run) == commands.losses(unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_plain_python(number, shards, unbroken, tmp_path):
    run = tmp_path / "run"
    command = commands.launch_command(commands.PRETRAIN, options(shards, run), None)
    started = start(command, run)
    os.kill(started.process.pid, number)
    code, text = started.end()
    assert code == EXIT_STOPPED, text
    line = f"stopped by {number.name} at step {stopped_step(run)}, which is saved: the same command goes on from there"
    assert line in text and "Traceback" not in text
    goes_on_as_unbroken(command, run, unbroken[1])


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGUSR1, [1]),
        pytest.param(signal.SIGTERM, [0], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, [0, 1], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_deepspeed_launcher(number, whom, shards, unbroken, tmp_path):
    run = tmp_path / "run"
    command = commands.launch_command(commands.PRETRAIN, options(shards, run), 2)
    started = start(command, run)
    for rank in whom:
        os.kill(started.ranks[rank], number)
    code, text = started.end()
    assert code == EXIT_STOPPED, text
    assert f"at step {stopped_step(run)}, which is saved" in text and "Traceback" not in text
    goes_on_as_unbroken(command, run, unbroken[2])


@pytest.mark.slow
def test_the_process_of_deepspeed_that_starts_the_ranks(shards, unbroken, tmp_path):
    run = tmp_path / "run"
    command = commands.launch_command(commands.PRETRAIN, options(shards, run), 2)
    started = start(command, run)
    parent = int(Path(f"/proc/{started.ranks[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGTERM)
    code, text = started.end()
    assert code == 1  # the launcher's own
    assert f"stopped by SIGTERM at step {stopped_step(run)}, which is saved" in text
    goes_on_as_unbroken(command, run, unbroken[2])


@pytest.mark.parametrize("whom", ["launcher", pytest.param("all", marks=pytest.mark.slow)])
def test_torchrun(whom, shards, unbroken, tmp_path):
    run = tmp_path / "run"
    command = torchrun(2, options(shards, run))
    started = start(command, run)
    for pid in [started.process.pid] if whom == "launcher" else started.ranks.values():
        os.kill(pid, signal.SIGTERM)
    code, text = started.end()
    assert code == 1  # torchrun's own, whatever the ranks end with
    assert f"stopped by SIGTERM at step {stopped_step(run)}, which is saved" in text
    goes_on_as_unbroken(command, run, unbroken[2])


def test_a_file_in_the_run_folder_stops_too(shards, tmp_path):
    run = tmp_path / "run"
    started = start(
        commands.launch_command(commands.PRETRAIN, options(shards, run, "--train.steps", "5000"), None), run
    )
    (run / STOP_FILE).touch()
    code, text = started.end()
    assert code == EXIT_STOPPED, text
    assert f"stopped by the file {run / STOP_FILE} at step " in text
    assert not (run / STOP_FILE).exists()


@pytest.mark.slow
def test_fine_tuning_stops_alike(unbroken, tmp_path):
    examples = "".join(f"{'good' if row % 2 else 'bad'}\tday number {row}\n" for row in range(200))
    (tmp_path / "train.tsv").write_text("label\ttext_a\n" + examples)
    run = tmp_path / "run"
    command = [
        sys.executable, str(commands.REPOSITORY / "finetune" / "run.py"), "--task", "classification",
        "--ds_config", str(commands.DS_CONFIGS / "fp32.json"), "--model", str(unbroken[1] / "model"),
        "--train_file", str(tmp_path / "train.tsv"), "--dev_file", str(tmp_path / "train.tsv"),
        "--output", str(run), "--epochs", "50", "--train.log_every", "1",
    ]  # fmt: skip
    started = start(command, run)
    os.kill(started.process.pid, signal.SIGUSR1)
    code, text = started.end()
    assert code == EXIT_STOPPED, text
    assert re.search(r"stopped by SIGUSR1 at step \d+, which is saved", text)


def test_ctrl_c_ends_at_once_and_leaves_the_last_checkpoint(shards, tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable, "-c",  # a job in the background starts with Ctrl-C ignored
        "import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "os.execv(sys.argv[1], sys.argv[1:])",
        *commands.launch_command(commands.PRETRAIN, options(shards, run), None),
    ]  # fmt: skip
    started = start(command, run)
    os.kill(started.process.pid, signal.SIGINT)
    code, text = started.end()
    assert code == EXIT_INTERRUPTED, text
    assert "Traceback" not in text
    assert [folder.name for folder in (run / "checkpoints").glob("step-*")] == ["step-0"]


def test_a_request_remembers_the_signal_and_gives_the_handlers_back(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    stop = StopRequest(tmp_path)
    stop.install()
    assert stop.requested is None
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)  # the second ends nothing either
    assert stop.requested == "SIGUSR1"
    (tmp_path / STOP_FILE).touch()
    stop.restore()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    assert (tmp_path / STOP_FILE).exists()  # a wish that was not obeyed stays


def test_only_rank_zero_looks_for_the_file_and_not_at_every_step(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    (tmp_path / STOP_FILE).touch()
    assert StopRequest(tmp_path).requested is None
    monkeypatch.setenv("RANK", "0")
    stop = StopRequest(tmp_path)
    assert stop.requested == f"the file {tmp_path / STOP_FILE}"
    stop.restore()
    assert not (tmp_path / STOP_FILE).exists()
    seldom = StopRequest(tmp_path)
    assert seldom.requested is None
    (tmp_path / STOP_FILE).touch()
    assert seldom.requested is None  # the next look comes a second later
    monkeypatch.setattr("engine.train.signals.SECONDS_BETWEEN_LOOKS", 0.0)
    assert seldom.requested is not None
