"""A dry run tells what a start would do, in numbers worked out by hand, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.checkpoint.run_folder import RunFolder
from engine.config.arch import ArchConfig
from engine.config.cli import UsageError, parse_config
from engine.config.deepspeed_json import Device
from engine.config.pretrain import PretrainConfig
from engine.config.stages import StageConfig
from engine.data.plan import SequenceLayout, build_row_plan
from engine.launch import dry_run as module
from engine.launch.dry_run import batch_lines, estimated_rows, model_lines, size_text
from engine.train.resolve import resolve, resolved_tree
from engine.train.timeline import Timeline
from preprocess.manifest import read_manifest
from tests import commands

FP32 = str(commands.DS_CONFIGS / "fp32.json")


@pytest.fixture
def options(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of 2 steps in an empty folder, seen by a single rank."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    batch = ["--train.batch_size", "16", "--train.micro_batch_size", "4", "--train.steps", "50"]
    return ["--ds_config", FP32, "--data.shards", str(shards), "--model", "bert-tiny", *batch, "--dry_run", "true"]


def dry_run(*argv: str) -> None:
    module.dry_run(parse_config(PretrainConfig, argv, prog="pretrain.py"))


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    dry_run(*argv)
    return capsys.readouterr().out


def tiny_heads(arch: ArchConfig) -> dict[str, Any]:
    from engine.models.heads import MaskedLMHead

    return {"mlm": MaskedLMHead(arch)}


def test_the_size_of_a_model():
    arch = ArchConfig(vocab_size=2000, hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512)
    embeddings = 2048 * 128 + 512 * 128 + 2 * 128 + 2 * 128
    layer = 4 * (128 * 128 + 128) + (128 * 512 + 512) + (512 * 128 + 128) + 2 * (2 * 128)
    head = (128 * 128 + 128) + 2 * 128 + 2048  # the decoder is the word embedding
    lines = model_lines(arch, "mlm", tiny_heads)
    assert lines[1:] == [
        f"  {embeddings + 2 * layer + head:,} parameters: embeddings {embeddings:,}, encoder {2 * layer:,}, "
        f"heads {head:,}",
        "  vocabulary 2,000, padded to 2,048",
    ]
    assert "2 layers x 128, 2 heads, feed-forward 512, 512 positions; objective mlm" in lines[0]


def test_batches_of_stages_and_ramps():
    config = PretrainConfig(
        ds_config="",
        stages=[
            StageConfig(steps=900, seq_length=128, batch_size=64, micro_batch_size=8, batch_ramp={100: 32}),
            StageConfig(steps=100, seq_length=512, batch_size=32, micro_batch_size=2),
        ],
    )
    assert batch_lines(Timeline(config.all_stages()), 4, "rows") == [
        "batches:",
        "  steps 1-100: 32 rows of 128 tokens = 4 rank(s) x 1 micro-batch(es) x 8 rows; 4,096 tokens",
        "  steps 101-900: 64 rows of 128 tokens = 4 rank(s) x 2 micro-batch(es) x 8 rows; 8,192 tokens",
        "  steps 901-1,000: 32 rows of 512 tokens = 4 rank(s) x 4 micro-batch(es) x 2 rows; 16,384 tokens",
        # 100 x 32 + 800 x 64 + 100 x 32 rows; (100 x 32 + 800 x 64) x 128 + 100 x 32 x 512 tokens
        "  in all 1,000 steps, 57,600 rows, 8,601,600 tokens (filler included)",
    ]
    without = batch_lines(Timeline([PretrainConfig(ds_config="").train.stage(0, {})]), 1, "examples")
    assert without[1] == "  steps 1-100,000: 256 examples = 1 rank(s) x 32 micro-batch(es) x 8 examples"
    assert without[2] == "  in all 100,000 steps, 25,600,000 examples"


@pytest.mark.parametrize("mean", [20, 300, 3000])
@pytest.mark.parametrize("seq_length", [64, 128, 512])
def test_rows_are_estimated_from_counts_alone(mean, seq_length):
    lengths = np.ceil(np.random.default_rng(mean).exponential(mean, 4000)).astype(np.int64)
    layout = SequenceLayout(per_sequence=2, per_document=0)
    shard: Any = SimpleNamespace(num_documents=len(lengths), num_tokens=int(lengths.sum()))
    manifest: Any = SimpleNamespace(shards=[shard])
    assert estimated_rows(manifest, seq_length, layout) == pytest.approx(
        build_row_plan(lengths, seq_length, layout).num_rows, rel=0.03
    )


def test_sizes():
    assert [size_text(size) for size in (2**29, 2**30, 3 * 2**40)] == ["512.0 MiB", "1.00 GiB", "3,072.00 GiB"]


def test_everything_is_told_and_nothing_is_written(options, shards, tmp_path, capsys, monkeypatch):
    before = sorted(shards.rglob("*"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "engine/pretrain.py", "--train.output", "a b"])
    monkeypatch.setenv("NCCL_DEBUG", "IN FO")
    monkeypatch.setenv("NCCL_TOKEN", "secret")
    text = told(capsys, *options, "--data.length_ramp", "{10: 64}")
    manifest = read_manifest(shards)
    tokens = sum(shard.num_tokens for shard in manifest.shards)
    for line in (
        f"  command: {sys.executable} -u engine/pretrain.py --train.output 'a b'",
        "NCCL_DEBUG='IN FO'",
        "  steps 1-10: 16 rows of 64 tokens = 1 rank(s) x 4 micro-batch(es) x 4 rows; 1,024 tokens",
        "  steps 11-50: 16 rows of 128 tokens = 1 rank(s) x 4 micro-batch(es) x 4 rows; 2,048 tokens",
        "  in all 50 steps, 800 rows, 92,160 tokens (filler included)",
        f"  {shards}: {len(manifest.shards)} shard(s), 870 documents, {tokens:,} tokens, manifest ",
        f"manifest {manifest.digest[:12]}; ",
        "; held out ",
        f"computation: fp32, ZeRO stage 0 ({FP32}), on ",
        "memory of a rank (estimated, in micro-batches of 4 rows of 128 tokens): ",
        "  activations ",
        "run folder: runs/pretrain is new: the run begins at step 0 of 50",
    ):
        assert line in text, text
    assert "secret" not in text
    assert not list(tmp_path.iterdir()) and sorted(shards.rglob("*")) == before


def test_each_host_tells_its_own_and_rank_zero_the_rest(options, capsys, monkeypatch):
    for rank, local, host, plan in ((0, 0, True, True), (1, 1, False, False), (2, 0, True, False)):
        for name, value in (("RANK", rank), ("LOCAL_RANK", local), ("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        text = told(capsys, *options)
        assert (f": rank {rank} of 4, 2 rank(s) here" in text) == host
        assert ("4 rank(s) x 1 micro-batch(es) x 4 rows" in text) == plan


def test_all_that_refuses_a_start_refuses_a_dry_run_at_once(options, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError) as raised:
        dry_run(*options, "--arch.num_heads", "3", "--backend", "mpi", "--data.seq_length", "600")
    for words in (
        "train.batch_size (16) must be a multiple of train.micro_batch_size x ranks (4 x 3 = 12)",
        "arch.hidden_size (128) must be a multiple of arch.num_heads (3)",
        "backend is 'mpi'; it must be nccl or gloo",
        "data.seq_length (600) is above arch.max_positions (512)",
    ):
        assert words in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_what_a_start_would_find_in_the_run_folder(options, tmp_path, capsys):
    resolved = resolve(parse_config(PretrainConfig, options, prog="pretrain.py"))
    run = RunFolder("runs/pretrain")
    tree = resolved_tree(resolved)
    assert "dry_run" not in tree and tree["backend"] is None
    run.write_config(tree)
    for step in (20, 30):
        run.step_folder(step).mkdir()
        (run.step_folder(step) / "manifest.json").write_text("{}")
    text = told(capsys, *options, "--backend", "gloo")  # which may change
    assert "run folder: runs/pretrain holds this run: it goes on from step 30 of 50" in text
    run.finish()
    text = told(capsys, *options, "--train.steps", "30")
    assert "run folder: runs/pretrain is finished at step 30: nothing would be done" in text
    with pytest.raises(UsageError, match=r"runs/pretrain is at step 30 already, beyond train.steps \(25\)"):
        dry_run(*options, "--train.steps", "25")
    with pytest.raises(UsageError, match=r"runs/pretrain holds a run with other settings:\n  seed: 1 there, 2 now"):
        dry_run(*options, "--seed", "2")
    assert not (tmp_path / "runs" / "pretrain" / ".lock").exists()
    assert json.loads((run.path / "config.json").read_text()) == json.loads(json.dumps(tree))


def test_tasks_beside_the_run_are_told_and_their_settings_compared(options, tmp_path, capsys):
    rows = tmp_path / "rows.tsv"
    rows.write_text("label\ttext_a\n0\tbad\n1\tgood\n")
    files = {"train_file": str(rows), "dev_file": str(rows)}
    task = {"task": "classification", "ds_config": FP32, **files}
    plan = tmp_path / "tasks.yaml"
    plan.write_text(json.dumps({"every": 25, "tasks": {"reviews": task}}))
    more = ("--train.evaluate_with", str(plan), "--train.save_every", "25")
    text = told(capsys, *options, *more)
    assert (
        "downstream: reviews from the model of step 25, 50\n  note: their files were looked for; a start also" in text
    )
    folder = tmp_path / "runs" / "pretrain" / "downstream"
    folder.mkdir(parents=True)
    score = {"step": 25, "task": "reviews", "figures": {"dev_accuracy": 0.5}, "settings": "0" * 64}
    (folder / "results.jsonl").write_text(json.dumps(score) + "\n")
    run = RunFolder("runs/pretrain")
    run.write_config(resolved_tree(resolve(parse_config(PretrainConfig, [*options, *more], prog="pretrain.py"))))
    with pytest.raises(UsageError, match="task reviews has other settings now than at step 25"):
        dry_run(*options, *more)


def test_a_text_seen_thousands_of_times_is_asked_about(options, capsys):
    asked = "    note: that often over the same text; are these the shards that you mean?\n"
    assert asked not in told(capsys, *options)
    assert asked in told(capsys, *options, "--train.steps", "1000000")


def test_a_host_without_gpus_can_check_a_run_on_gpus(options, capsys, monkeypatch):
    monkeypatch.setattr(module, "describe_device", lambda: SimpleNamespace(type="cpu"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = told(capsys, *options, "--ds_config", str(commands.DS_CONFIGS / "zero2.json"), "--backend", "nccl")
    assert "computation: fp16, ZeRO stage 2" in text and "on cuda through nccl" in text
    assert "note: no GPU here: checked for GPUs that have bf16" in text
    on_cpus = "  note: no GPU here, so this is a run on CPUs; --backend nccl checks and estimates one on GPUs\n"
    assert on_cpus not in text and on_cpus in told(capsys, *options)
    assert on_cpus not in told(capsys, *options, "--backend", "gloo")  # it was asked for
    monkeypatch.setattr(module, "describe_device", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(module, "device_to_check", lambda backend, dry_run: Device("cuda", has_bf16=True))
    assert "no GPU here" not in told(capsys, *options)


def test_a_launch_over_hosts_is_told_without_touching_them(shards, tmp_path):
    (tmp_path / "hosts").write_text("node-0.invalid slots=2\nnode-1.invalid slots=2\n")
    nasty = "it's $(touch obeyed)"
    batch = ["--train.batch_size", "16", "--train.micro_batch_size", "4", "--train.output", nasty]
    script = [str(commands.PRETRAIN), "--ds_config", FP32, "--data.shards", str(shards), "--model", "bert-tiny", *batch]
    launch = [
        sys.executable,
        "-m",
        "engine.launch",
        "--hostfile",
        "hosts",
        "--exclude",
        "node-1.invalid:0",
        "--export",
        "WANDB_API_KEY",
        "--dry_run",
    ]
    (tmp_path / ".deepspeed_env").write_text("MY_PASS=hush\nHTTPS_PROXY=http://me:hush@proxy:1/\n")
    more = {"PYTHONPATH": str(commands.REPOSITORY), "NCCL_DEBUG": "a b", "WANDB_API_KEY": "hush"}
    env = commands.environment(more)
    done = subprocess.run(launch + script, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    # three ranks: 16 rows are no multiple of 3 x 4
    assert done.returncode == 2 and "ranks (4 x 3 = 12)" in done.stderr and not done.stdout, done.stderr
    launch.remove("--exclude"), launch.remove("node-1.invalid:0")
    done = subprocess.run(launch + script, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    encoded = "base64:aXQncyAkKHRvdWNoIG9iZXllZCk="  # of what stands in nasty
    for line in (
        f"launch: 4 rank(s) on 2 host(s) through pdsh, in {tmp_path}\n  node-0.invalid: ranks 0-1 on devices 0,1\n",
        "  node-1.invalid: ranks 2-3 on devices 0,1\n",
        f"    command of rank 2: {sys.executable} -u {commands.PRETRAIN} --local_rank=0 --encoded_arguments=12 ",
        "the ranks read them as they were given:\n    --ds_config ",
        f"--train.output {shlex.quote(nasty)}\n",
        f"--train.output {encoded}\n    environment of rank 2: RANK=2 LOCAL_RANK=0 WORLD_SIZE=4 LOCAL_WORLD_SIZE=2 ",
        "MASTER_PORT=29500",
        "    NCCL_DEBUG='a b'\n",
        "    WANDB_API_KEY=...\n",
        "    MY_PASS=...\n",
        "    HTTPS_PROXY=http://...@proxy:1/\n",
        "= 4 rank(s) x 1 micro-batch(es) x 4 rows",
        f"run folder: {nasty} is new",
    ):
        assert line in done.stdout, done.stdout
    assert "hush" not in done.stdout + done.stderr
    assert done.stdout.count("rank(s) here") == 0
    assert sorted(os.listdir(tmp_path)) == [".deepspeed_env", "hosts"]
