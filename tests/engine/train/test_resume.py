"""A run that was killed goes on by the same command and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from preprocess.files import sha256_of_file
from tests import commands

STEPS = 10
TINY = ("--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3", "--arch.intermediate_size", "100")


def options(shards: Path, output: Path, ds_config: Path, *more: str) -> list[str | Path]:
    return [
        "--ds_config", ds_config, *TINY, "--data.shards", shards, "--data.seq_length", "64", "--train.output", output,
        "--train.steps", str(STEPS), "--train.batch_size", "8", "--train.micro_batch_size", "2",
        "--train.log_every", "1", "--train.save_every", "2", "--train.eval_every", "4", "--train.eval_rows", "10",
        "--train.optimizer.lr", "1e-3", "--train.keep_checkpoints", "0", *more,
    ]  # fmt: skip


def fp32(folder: Path, stage: int) -> Path:
    return commands.write_ds_config(folder / f"fp32-{stage}.json", zero_optimization={"stage": stage})


def kill_at_step(command: list[str], run: Path, step: int, cwd: Path) -> None:
    """Start a command and SIGKILL it and its ranks when a line for ``step`` is in the metrics."""
    with (cwd / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, env=commands.environment(), stdout=log, stderr=log, cwd=cwd, start_new_session=True
        )
        file = run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (file.is_file() and f'"step": {step},' in file.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, (cwd / "killed.log").read_text()
            time.sleep(0.002)
        for pid in group_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    while group_of(process.pid):  # ranks lead sessions of their own under the launcher
        time.sleep(0.05)


def group_of(parent: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [parent] if Path(f"/proc/{parent}").exists() else []
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def digests(run: Path, step: int = STEPS) -> dict[str, str]:
    folder = run / "checkpoints" / f"step-{step}"
    return {
        file.name: sha256_of_file(file) for file in [*folder.glob("*.safetensors"), folder / "model/model.safetensors"]
    }


def figures(run: Path, *names: str) -> list[dict[str, float]]:
    return [{name: line[name] for name in ("step", *names) if name in line} for line in commands.metrics(run)]


@pytest.mark.parametrize(
    ("ranks", "config"),
    [
        (2, "zero2.json"),
        pytest.param(None, "fp32-0", marks=pytest.mark.runtime),
        (2, "fp32-1"),
        (None, "bf16.json"),
    ],
    ids=str,
)
def test_killed_run_ends_bit_identical(ranks, config, shards, tmp_path):
    file = fp32(tmp_path, int(config[-1])) if config.startswith("fp32-") else commands.DS_CONFIGS / config
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    done = commands.run(commands.PRETRAIN, options(shards, unbroken, file), ranks)
    assert done.returncode == 0, done.stdout
    step = int(np.random.default_rng().integers(1, STEPS))  # anywhere, also before the first checkpoint
    kill_at_step(
        commands.launch_command(commands.PRETRAIN, options(shards, broken, file), ranks), broken, step, tmp_path
    )
    assert not (broken / "FINISHED").exists()
    again = commands.run(commands.PRETRAIN, options(shards, broken, file), ranks)
    assert again.returncode == 0, again.stdout
    assert "going on from step" in again.stdout
    assert digests(broken) == digests(unbroken), f"killed at step {step}"
    names = ("loss", "lr", "grad_norm", "tokens", "heldout_loss")
    assert figures(broken, *names) == figures(unbroken, *names), f"killed at step {step}"
    assert (broken / "FINISHED").is_file()


@pytest.fixture(scope="module")
def two_rank_run(shards, tmp_path_factory):
    """Half a run on 2 ranks at stage 2, and the whole run there, in fp32."""
    folder = tmp_path_factory.mktemp("two-ranks")
    file = fp32(folder, 2)
    done = commands.run(commands.PRETRAIN, options(shards, folder / "whole", file), 2)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.parametrize(("ranks", "stage"), [(None, 0), (None, 1), (4, 2)], ids=str)
def test_other_ranks_and_stages_go_on(ranks, stage, two_rank_run, tmp_path):
    """What 2 ranks saved at ZeRO stage 2, 1 and 4 ranks go on with, at other stages too: the same curve."""
    shards = json.loads((two_rank_run / "whole" / "config.json").read_text())["data"]["shards"]
    run = tmp_path / "run"
    copy_up_to(two_rank_run / "whole", run, step=4)
    done = commands.run(commands.PRETRAIN, options(shards, run, fp32(tmp_path, stage)), ranks)
    assert done.returncode == 0, done.stdout
    assert "going on from step 4" in done.stdout
    np.testing.assert_allclose(commands.losses(run), commands.losses(two_rank_run / "whole"), rtol=1e-6)


def copy_up_to(run: Path, copy: Path, step: int) -> None:
    """A run's folder as it was when a step had been saved."""
    subprocess.run(["cp", "-a", str(run), str(copy)], check=True)
    (copy / "FINISHED").unlink()
    for folder in (copy / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            subprocess.run(["rm", "-r", str(folder)], check=True)


def test_finished_run_says_so_and_more_steps_go_on(two_rank_run, tmp_path):
    shards = json.loads((two_rank_run / "whole" / "config.json").read_text())["data"]["shards"]
    run = tmp_path / "run"
    subprocess.run(["cp", "-a", str(two_rank_run / "whole"), str(run)], check=True)
    again = commands.run(commands.PRETRAIN, options(shards, run, fp32(tmp_path, 2)))
    assert again.returncode == 0 and "is finished at step 10" in again.stdout
    more = commands.run(commands.PRETRAIN, options(shards, run, fp32(tmp_path, 2), "--train.steps", "12"))
    assert more.returncode == 0, more.stdout
    assert [line["step"] for line in commands.metrics(run) if "loss" in line] == list(range(1, 13))
    assert os.readlink(run / "model") == "checkpoints/step-12/model"


def test_a_run_of_a_version_with_fewer_settings_goes_on(two_rank_run, tmp_path):
    """What its config.json lacks counts as the default; with another value it is a change."""
    shards = json.loads((two_rank_run / "whole" / "config.json").read_text())["data"]["shards"]
    run = tmp_path / "run"
    copy_up_to(two_rank_run / "whole", run, step=8)
    config = json.loads((run / "config.json").read_text())
    del config["stages"], config["train"]["batch_ramp"], config["train"]["optimizer"]["layer_decay"]
    assert config["train"]["schedule"]["cycles"] == 4 and config["train"]["optimizer"]["momentum"] == 0.95
    del config["train"]["optimizer"]["clip_update"]
    del config["train"]["schedule"]["power"], config["masking"]["span"], config["data"]["short_seq_prob"]
    (run / "config.json").write_text(json.dumps(config))
    power = ("--train.schedule.name", "polynomial", "--train.schedule.power", "2")
    other = commands.run(commands.PRETRAIN, options(shards, run, fp32(tmp_path, 2), *power))
    assert other.returncode == 2 and "train.schedule.power: 1.0 there, 2.0 now" in other.stdout, other.stdout
    done = commands.run(commands.PRETRAIN, options(shards, run, fp32(tmp_path, 2)))
    assert done.returncode == 0 and "going on from step 8" in done.stdout, done.stdout


def test_damaged_checkpoint_is_passed_over(two_rank_run, tmp_path):
    shards = json.loads((two_rank_run / "whole" / "config.json").read_text())["data"]["shards"]
    run = tmp_path / "run"
    copy_up_to(two_rank_run / "whole", run, step=4)
    file = run / "checkpoints" / "step-4" / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    done = commands.run(commands.PRETRAIN, options(shards, run, fp32(tmp_path, 2)))
    assert done.returncode == 0, done.stdout
    assert "step-4: rank-00001.safetensors is damaged" in done.stdout
    assert "going on from step 2" in done.stdout
    np.testing.assert_allclose(commands.losses(run), commands.losses(two_rank_run / "whole"), rtol=1e-6)
    assert (run / "checkpoints" / "damaged-step-4").is_dir()
