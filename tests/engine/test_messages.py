"""Every mistake that a user can make with the pretraining command, made, and what the command says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

FP32 = commands.DS_CONFIGS / "fp32.json"
SMALL = ("--model", "bert-tiny", "--data.seq_length", "64", "--train.batch_size", "8", "--train.micro_batch_size", "2")


def fails(*options: str | Path, ranks: int | None = None) -> str:
    """Run the command, which must end with a user's error and no traceback; returns what it printed."""
    done = commands.run(commands.PRETRAIN, options, ranks)
    assert done.returncode != 0, done.stdout
    if ranks is None:
        assert done.returncode == 2, done.stdout
    assert "error: " in done.stdout and "Traceback" not in done.stdout, done.stdout
    return done.stdout


@pytest.fixture
def run(tmp_path: Path) -> tuple[str | Path, ...]:
    return ("--train.output", tmp_path / "run", "--train.steps", "2", *SMALL)


def test_missing_shards_print_the_command_that_makes_them(run, tmp_path):
    text = fails("--ds_config", FP32, "--data.shards", tmp_path / "none", *run)
    assert f"data.shards {tmp_path / 'none'} does not exist" in text
    assert f"python -m preprocess shards --corpus FILE... --tokenizer tokenizer/ --output {tmp_path / 'none'}" in text


def test_ds_config_alone_asks_for_default_shards(tmp_path):
    done = commands.run(commands.PRETRAIN, ["--ds_config", FP32], cwd=tmp_path)
    assert done.returncode == 2
    assert "data.shards shards/ does not exist" in done.stdout


def test_unknown_option_key_preset_and_objective_give_the_nearest_name(run, shards, tmp_path):
    assert "unknown option --train.stepz; did you mean --train.steps?" in fails(
        "--ds_config", FP32, "--train.stepz", "3"
    )
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  stps: 3\nmasking:\n  whole_words: true\n")
    text = fails("--ds_config", FP32, "--config", file)
    assert "unknown key train.stps; did you mean train.steps?" in text
    assert "unknown key masking.whole_words; did you mean masking.whole_word?" in text
    text = fails("--ds_config", FP32, "--data.shards", shards, *run, "--model", "bert-tinny", "--objective", "mml")
    assert "unknown model 'bert-tinny'" in text and "did you mean bert-tiny" in text
    assert "unknown objective 'mml'" in text and "did you mean mlm?" in text


def test_unreadable_settings_files(run, tmp_path):
    assert "no such file; did you mean" in fails("--ds_config", commands.DS_CONFIGS / "zero22.json", *run)
    assert "No such file" in fails("--ds_config", FP32, "--config", tmp_path / "none.yaml")
    bad = tmp_path / "bad.json"
    bad.write_text('{"fp16": {"enabled": true,}}')
    assert "is not JSON: line 1" in fails("--ds_config", bad, *run)
    assert "--train.steps: expected int, found many" in fails("--ds_config", FP32, "--train.steps", "many")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"optimizer": {"type": "AdamW"}},
            "'optimizer' is not DeepSpeed's here; remove it and use --train.optimizer.*",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' is not DeepSpeed's here"),
        ({"train_batch_size": 64}, "'train_batch_size' is 64, but by train.batch_size it is 8"),
        ({"gradient_accumulation_steps": 3}, "'gradient_accumulation_steps' is 3, but by train.batch_size and"),
        ({"elasticity": {"enabled": False}}, "DeepSpeed 0.19.8 no longer has 'elasticity'"),
        (
            {"gradient_cliping": 1.0},
            "unknown key 'gradient_cliping' (DeepSpeed would ignore it); did you mean gradient_clipp",
        ),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4; it must be 0, 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer on cpu needs ZeRO stage 1, 2 or 3, and zero_optimization.stage is 0",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/dev/null/x"}}},
            "offload_optimizer.nvme_path is /dev/null/x, which cannot take tensors (Not a directory)",
        ),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "both bf16 and fp16 are enabled"),
        ({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp64"}}, "it must be fp32, or the type of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_deepspeed_file_may_not_say(content, message, run, shards, tmp_path):
    file = commands.write_ds_config(tmp_path / "ds.json", **content)
    assert message in fails("--ds_config", file, "--data.shards", shards, *run)


def test_batch_that_does_not_divide_gives_the_nearest_legal_sizes(shards, tmp_path):
    options = ("--ds_config", FP32, "--data.shards", shards, "--train.output", tmp_path / "run", "--model", "bert-tiny")
    text = fails(*options, "--train.batch_size", "30", "--train.micro_batch_size", "4")
    assert "train.batch_size (30) must be a multiple of train.micro_batch_size x ranks (4 x 1 = 4)" in text
    assert "nearest legal train.batch_size: 28 or 32; or keep it and set train.micro_batch_size to 3 or 5" in text
    text = fails(*options, "--train.batch_size", "4", "--train.micro_batch_size", "4", ranks=2)
    assert "(4 x 2 = 8); nearest legal train.batch_size: 8; or keep it and set train.micro_batch_size to 1 or 2" in text
    assert text.count("error: ") == 1  # not once a rank


def test_all_problems_come_at_once(shards, tmp_path):
    text = fails(
        "--ds_config", commands.write_ds_config(tmp_path / "ds.json", optimizer={}), "--data.shards", tmp_path / "none",
        "--model", "bert-tinny", "--train.batch_size", "3", "--train.micro_batch_size", "2", "--masking.rate", "2",
    )  # fmt: skip
    for message in ("'optimizer' is not", "does not exist", "unknown model", "must be a multiple", "masking.rate is 2"):
        assert message in text


def test_settings_that_the_run_would_not_use(run, shards):
    base = ("--ds_config", FP32, "--data.shards", shards, *run)
    text = fails(
        *base, "--model", "gpt2", "--masking.rate", "0.3", "--data.short_seq_prob", "0", "--train.schedule.cycles", "2",
        "--train.optimizer.momentum", "0.9", "--data.length_ramp", "{2: 32}",
    )  # fmt: skip
    assert "masking.rate is 0.3, but objective lm masks nothing; remove it" in text
    assert "data.short_seq_prob is 0.0, but objective lm has no pairs; remove it" in text
    assert "train.schedule.cycles is given, and linear has none; remove it, or choose cosine_restarts" in text
    assert "train.optimizer.momentum is given, and adamw has none; remove it" in text
    assert "data.length_ramp lasts until step 2 of 2, so data.seq_length is never reached; end it before" in text


def test_architecture_that_does_not_fit(run, shards):
    base = ("--ds_config", FP32, "--data.shards", shards, *run)
    assert "must be a multiple of arch.num_heads (3)" in fails(*base, "--arch.num_heads", "3")
    text = fails(*base, "--data.seq_length", "1024")
    assert "data.seq_length (1024) is above arch.max_positions (512)" in text
    assert "objective lm needs a causal model" in fails(*base, "--objective", "lm")
    assert "arch.embedding_norm is False, bert has True" in fails(*base, "--arch.embedding_norm", "false")
    pairs = fails(*base, "--arch.norm_position", "pre", "--objective", "mlm,nsp")
    assert "no transformers class: a roberta-prelayernorm with the head mlm + nsp" in pairs


def test_vocabulary_without_the_special_tokens_of_the_objective(run, corpus, tokenizer, tmp_path):
    vocabulary = [line for line in (tokenizer / "vocab.txt").read_text().splitlines() if line != "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    made = commands.preprocess(
        "shards", "--corpus", *corpus, "--tokenizer", tmp_path / "vocab.txt", "--output", tmp_path / "shards"
    )
    assert made.returncode == 0, made.stdout
    text = fails("--ds_config", FP32, "--data.shards", tmp_path / "shards", *run)
    assert "objective mlm needs the special token(s) mask, and the vocabulary has" in text


@pytest.fixture
def damaged(shards, tmp_path) -> Path:
    """A copy of the shards to damage."""
    return Path(shutil.copytree(shards, tmp_path / "damaged", ignore=shutil.ignore_patterns(".plans")))


def test_shards_of_another_tokenizer(run, damaged, corpus, tmp_path):
    other = tmp_path / "other"
    options = ["--type", "wordpiece", "--vocab_size", "1500", "--output", other]
    assert commands.preprocess("tokenizer", "--corpus", *corpus, *options).returncode == 0
    shutil.rmtree(damaged / "tokenizer")
    shutil.copytree(other, damaged / "tokenizer")
    text = fails("--ds_config", FP32, "--data.shards", damaged, *run)
    assert "was made with another tokenizer" in text


def test_truncated_missing_and_corrupt_shards(run, damaged):
    shard = damaged / "shard-00001.h5"
    content = shard.read_bytes()
    shard.write_bytes(content[:-50])
    assert f"{shard} is truncated" in fails("--ds_config", FP32, "--data.shards", damaged, *run)
    shard.unlink()
    assert f"{shard} is missing" in fails("--ds_config", FP32, "--data.shards", damaged, *run)
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 16
    shard.write_bytes(flipped)
    text = fails("--ds_config", FP32, "--data.shards", damaged, *run)
    assert f"{shard} is damaged" in text
    text = fails("--ds_config", FP32, "--data.shards", damaged, *run, ranks=2)
    assert text.count("error: ") == text.count("is damaged") == 1  # rank 0 tells it, and rank 1 does not hang


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory) -> Path:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = ["--ds_config", FP32, "--data.shards", shards, "--train.output", folder, "--train.steps", "2", *SMALL]
    done = commands.run(commands.PRETRAIN, options)
    assert done.returncode == 0, done.stdout
    return folder


def test_output_folder_of_another_run_or_of_something_else(finished, shards, tmp_path):
    base = ["--ds_config", FP32, "--data.shards", shards, "--train.steps", "2", *SMALL]
    text = fails(*base, "--train.output", finished, "--seed", "7", "--train.optimizer.lr", "0.5")
    assert "holds a run with other settings" in text
    assert "seed: 1 there, 7 now" in text and "train.optimizer.lr: 0.0001 there, 0.5 now" in text
    assert "these may change" in text
    (tmp_path / "thesis.tex").write_text("precious")
    assert "holds files but no config.json of a run" in fails(*base, "--train.output", tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    text = fails(*base, "--train.output", finished / "model")  # it has a config.json, of another kind
    assert "holds files but no config.json of a run" in text
    assert "No such file or directory" in fails(*base, "--train.output", "/proc/run")
    assert "at step 2 already, beyond train.steps (1)" in fails(*base, "--train.output", finished, "--train.steps", "1")


def test_checkpoint_of_another_model(finished, tmp_path, shards):
    run = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    config = json.loads((run / "config.json").read_text())
    config["arch"]["intermediate_size"] = 256
    (run / "config.json").write_text(json.dumps(config))
    base = ["--ds_config", FP32, "--data.shards", shards, "--train.steps", "4", *SMALL]
    text = fails(*base, "--train.output", run, "--arch.intermediate_size", "256")
    assert (
        "is of another model" in text and "layers.0.mlp.up.weight: [512, 128] there, [256, 128] in this model" in text
    )


def test_initial_weights_of_another_model_or_tokenizer(run, finished, shards, damaged, tmp_path, tokenizer):
    base = ["--ds_config", FP32, "--data.shards", shards, *run]
    text = fails(*base, "--init_from", finished / "model", "--model", "bert-mini")
    assert "has another architecture: hidden_size 128 there, 256 here" in text
    text = fails(*base, "--init_from", finished, "--model", "bert-mini")  # a run folder means its newest model
    assert f"the model in {finished / 'model'} has another architecture" in text
    assert "is no model folder: it has no config.json" in fails(*base, "--init_from", tmp_path / "none")
    other = Path(shutil.copytree(finished / "model", tmp_path / "other"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    words = (other / "vocab.txt").read_text().splitlines()
    (other / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]) + "\n")
    assert "trained with another tokenizer than the shards" in fails(*base, "--init_from", other)


def test_no_whole_checkpoint(finished, tmp_path, shards):
    run = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    (run / "FINISHED").unlink()
    for file in (run / "checkpoints").glob("*/rank-00000.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    text = fails("--ds_config", FP32, "--data.shards", shards, "--train.steps", "4", *SMALL, "--train.output", run)
    assert "holds no whole checkpoint" in text and "step-2: rank-00000.safetensors has" in text


def test_torchrun_shows_the_message_of_rank_zero(run, shards):
    """Ranks that have nothing to tell wait: torchrun ends all ranks with the first that ends."""
    options = ["--ds_config", FP32, "--data.shards", shards, *run, "--train.batch_size", "3"]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(commands.free_port())]
    command = [sys.executable, *launcher, str(commands.PRETRAIN), *map(str, options)]
    done = subprocess.run(command, env=commands.environment(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("error: train.batch_size (3) must be a multiple") == 1


def test_two_nodes_without_a_hostfile(run, shards):
    options = ["--ds_config", FP32, "--data.shards", shards, *run]
    command = commands.launch_command(commands.PRETRAIN, options, ranks=1)
    command[1:3] = ["--num_nodes", "2"]
    done = subprocess.run(command, env=commands.environment(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Num nodes is >1 but no extra nodes available via hostfile" in done.stderr + done.stdout


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs root to mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_the_last_checkpoint(small_disk, shards):
    output = small_disk / "run"
    tiny = ["--arch.hidden_size", "32", "--arch.num_heads", "2", "--arch.intermediate_size", "64"]
    options = [
        "--ds_config",
        FP32,
        "--data.shards",
        shards,
        *SMALL,
        *tiny,
        "--train.steps",
        "20",
        "--train.save_every",
        "1",
        "--train.keep_checkpoints",
        "0",
    ]
    text = fails(*options, "--train.output", output)
    assert "could not be written: No space left on device" in text and "MiB free" in text
    steps = sorted(int(folder.name.removeprefix("step-")) for folder in (output / "checkpoints").glob("step-*"))
    assert steps == list(range(len(steps))) and steps
    assert not list((output / "checkpoints").glob(".*"))
    newest = output / "checkpoints" / f"step-{steps[-1]}"
    manifest = json.loads((newest / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        assert (newest / name).stat().st_size == entry["bytes"]
