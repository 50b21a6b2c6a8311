"""Two ranks under each launcher are one run: they meet, and their losses are those of one rank."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests import commands

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "PMI_", "GLOO_")
STEPS = ("--model", "bert-tiny", "--train.steps", "2", "--train.batch_size", "8", "--train.micro_batch_size", "4")
QUIET = ("--train.log_every", "1", "--train.tensorboard", "false", "--train.eval_every", "0", "--train.save_every", "0")


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """An environment that says nothing of ranks but what is given, on CPUs unless that is."""
    kept = {k: v for k, v in commands.environment().items() if not k.startswith(LAUNCHERS)}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", **more}


def start(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=cwd, env=clean_environment(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_all(commands_of_ranks: Sequence[tuple[Sequence[str], Mapping[str, str]]], cwd: Path) -> list[str]:
    """Run all to their end, which must be a good one; what each printed."""
    processes = [start(command, env, cwd) for command, env in commands_of_ranks]
    try:
        printed = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(printed)
    return printed


@pytest.fixture(scope="module")
def options(shards: Path) -> list[str]:
    files = ("--ds_config", str(commands.DS_CONFIGS / "fp32.json"), "--data.shards", str(shards))
    return [*files, "--data.seq_length", "64", *STEPS, *QUIET]


@pytest.fixture(scope="module")
def losses_of_one_rank(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("one")
    run_all([([sys.executable, str(commands.PRETRAIN), *options, "--train.output", "run"], {})], folder)
    return commands.losses(folder / "run")


def is_the_run_of_one_rank(folder: Path, losses: list[float]) -> None:
    """Whether a run of two ranks computed what one rank did."""
    assert (folder / "run" / "FINISHED").exists()
    assert len(losses) == 2 and commands.losses(folder / "run") == pytest.approx(losses, rel=1e-5)
    assert '"world_size": 2' in (folder / "run" / "config.json").read_text()


def test_srun_s_variables_alone(options, losses_of_one_rank, tmp_path):
    port = commands.free_port()
    step = {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
    }
    command = [sys.executable, str(commands.PRETRAIN), *options, "--train.output", "run", "--backend", "gloo"]
    ranks = [(command, {**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}) for rank in range(2)]
    run_all(ranks, tmp_path)
    is_the_run_of_one_rank(tmp_path, losses_of_one_rank)
    assert '"backend": "gloo"' in (tmp_path / "run" / "config.json").read_text()


def test_a_kubernetes_job_s_variables_alone(options, losses_of_one_rank, tmp_path):
    pods = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(commands.free_port())}
    command = [sys.executable, str(commands.PRETRAIN), *options, "--train.output", "run"]
    run_all([(command, {**pods, "RANK": str(rank)}) for rank in range(2)], tmp_path)
    is_the_run_of_one_rank(tmp_path, losses_of_one_rank)


def test_torchrun(options, losses_of_one_rank, tmp_path):
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    launch = [torchrun, "--nproc_per_node", "2", "--master_port", str(commands.free_port())]
    run_all([([*launch, str(commands.PRETRAIN), *options, "--train.output", "run"], {})], tmp_path)
    is_the_run_of_one_rank(tmp_path, losses_of_one_rank)


def test_half_an_environment_is_an_error_at_once(options, tmp_path):
    command = [sys.executable, str(commands.PRETRAIN), *options, "--train.output", "run"]
    for env, words in (
        ({"WORLD_SIZE": "2"}, "error: WORLD_SIZE is set (2), but RANK is not; start the ranks with deepspeed"),
        ({"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "error: RANK is 'one'; it must be a whole number"),
    ):
        process = start(command, env, tmp_path)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 2 and printed.startswith(words) and "Traceback" not in printed, printed
    process = start(command, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, tmp_path)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed  # a batch script's own shell is one rank
    assert "note: one rank alone, though the Slurm job has 4 tasks: start it with srun to use them" in printed


def test_a_backend_that_cannot_be_is_an_error(options, tmp_path):
    command = [sys.executable, str(commands.PRETRAIN), *options, "--train.output", "run", "--backend", "nccl"]
    process = start(command, {"CUDA_VISIBLE_DEVICES": ""}, tmp_path)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "error: backend nccl moves tensors of GPUs, and torch sees none" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_gloo_moves_the_tensors_of_two_ranks_on_one_gpu(options, tmp_path):
    gpu = {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": "0"}
    command = [sys.executable, str(commands.PRETRAIN), *options, "--train.output"]
    run_all([([*command, "one"], gpu)], tmp_path)
    ranks = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(commands.free_port()), **gpu}
    two = [*command, "run", "--backend", "gloo"]
    run_all([(two, {**ranks, "RANK": n, "LOCAL_RANK": n, "LOCAL_WORLD_SIZE": "2"}) for n in "01"], tmp_path)
    assert commands.losses(tmp_path / "run") == pytest.approx(commands.losses(tmp_path / "one"), rel=1e-4)
