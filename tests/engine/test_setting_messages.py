"""Every wrong value of a setting, given on the command line: the message, and that nothing was begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import pretrain
from tests import commands

OPTIMIZER = [
    ("name adam", "name is 'adam'; it must be one of adamw, lamb, lion, adafactor, muon"),
    ("lr 0", "lr is 0.0; it must be above 0 and finite"),
    ("betas [0.9,1.0]", "betas are [0.9, 1.0]; each must be in [0, 1)"),
    ("eps -1", "eps is -1.0; it must be above 0 and finite"),
    ("weight_decay -0.1", "weight_decay is -0.1; it must not be negative, and finite"),
    ("layer_decay 1.5", "layer_decay is 1.5; it must be above 0, and 1 (off) at most"),
    ("momentum 1", "momentum is 1.0; it must be in [0, 1)"),
    ("clip_update 1", "clip_update is given, and adamw has none; remove it"),
    ("decay_rate 0.8", "decay_rate is given, and adamw has none; remove it"),
    ("trust_clamp [0.01,10.0]", "trust_clamp is given, and adamw has no trust ratio; remove it"),
    ("trust_clamp [10.0,0.01]", "trust_clamp is [10.0, 0.01]; it must be the least and the greatest trust ratio"),
    ("backend cuda", "backend is 'cuda'; it must be one of auto, torch, deepspeed, apex, kernels"),
    ("freeze ['nothing*']", "freeze: 'nothing*' matches no parameter"),
    ("decay_exclude ['nothing*']", "decay_exclude: 'nothing*' matches no parameter"),
]
SCHEDULE = [
    ("name step", "name is 'step'; it must be one of linear, cosine"),
    ("warmup_steps -1", "warmup_steps is -1; it must not be negative"),
    ("warmup_ratio 1.5", "warmup_ratio is 1.5; it must be in [0, 1]"),
    ("final_ratio -0.5", "final_ratio is -0.5; it must be in [0, 1]"),
    ("power 2", "power is given, and linear has none; remove it, or choose polynomial"),
    ("decay_shape round", "decay_shape is 'round'; it must be one of linear, cosine, sqrt"),
    ("decay_from end", "decay_from is 'end'; it must be one of peak, start"),
]
MASKING = [
    ("rate 0", "rate is 0.0; it must be above 0 and below 1"),
    ("final_rate 1", "final_rate is 1.0; it must be above 0 and below 1"),
    ("rate_schedule steep", "rate_schedule is 'steep'; it must be one of"),
    ("rate_schedule cosine", "rate_schedule is cosine, but masking.final_rate is not given; give it"),
    ("mask_share 0.95", "mask_share (0.95) and masking.random_share (0.1) must not be negative and sum to 1 at most"),
    ("span word", "span is 'word'; it must be one of none, geometric, ngram"),
    ("max_span 3", "max_span is 3, but masking.span is none; set masking.span too"),
]
TRAIN = [
    ("steps 0", "steps is 0; it must be at least 1"),
    ("batch_size 0", "batch_size is 0; it must be at least 1"),
    ("micro_batch_size 0", "micro_batch_size is 0; it must be at least 1"),
    ("log_every 0", "log_every is 0; it must be at least 1"),
    ("max_skipped_steps 0", "max_skipped_steps is 0; it must be at least 1"),
    ("save_every -1", "save_every is -1; it must not be negative"),
    ("keep_checkpoints -1", "keep_checkpoints is -1; it must not be negative"),
    ("rank_timeout 0", "rank_timeout is 0.0; it must be at least 1, and finite"),
    ("nonfinite ignore", "nonfinite is 'ignore'; it must be one of stop, skip"),
    ("batch_ramp {5:4,2:2}", "batch_ramp {5: 4, 2: 2} maps the step until which a value holds to the value"),
    ("batch_ramp {5:0}", "batch_ramp {5: 0} has values below 1"),
    ("batch_ramp {20:4}", "batch_ramp lasts until step 20 of 20, so train.batch_size is never reached; end it before"),
]
DATA = [
    ("seq_length 4", "seq_length is 4; it must be at least 8"),
    ("short_seq_prob 2", "short_seq_prob is 2.0; it must be in [0, 1]"),
    ("length_ramp {5:4}", "length_ramp {5: 4} has values below 8"),
    ("shards a:0.7,b", "shards: b has no weight beside other folders"),
]
STAGES = [
    ("[{steps: 0}]", "stages.0: steps is 0; it must be at least 1"),
    ("[{steps: 5}, {steps: 5, seq_length: 4}]", "stages.1: seq_length is 4; it must be at least 8"),
    ("[{steps: 5, batch_size: 3}]", "must be a multiple of train.micro_batch_size x ranks"),
    ("[{steps: 5, optimizer: {lr: -1}}]", "stages.0: train.optimizer.lr is -1.0; it must be above 0 and finite"),
    ("[{steps: 5, schedule: {name: cosine, cycles: 2}}]", "stages.0: train.schedule.cycles is given, and cosine has"),
    ("[{steps: 5, optimizer: {name: lamb}}]", "unknown key stages.0.optimizer.name"),
    ("[{steps: 5, masking: {rate: 0.3}}]", "unknown key stages.0.masking"),
    ("[{steps: 5}]", "train.steps is 20, but the stages take 5 steps; leave train.steps out"),
]
CASES = [
    *((f"--{group}.{case.partition(' ')[0]}", case.partition(" ")[2], f"{group}.{message}")
      for group, cases in (("train.optimizer", OPTIMIZER), ("train.schedule", SCHEDULE), ("masking", MASKING),
                           ("train", TRAIN), ("data", DATA))
      for case, message in cases),
    *(("--stages", value, message) for value, message in STAGES),
    ("--train.batch_ramp", "{5:3}", "the batch of step 1 (3) must be a multiple of train.micro_batch_size x ranks"),
    ("--seed", "-1", "seed is -1; it must be in [0, 2^63)"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value", "message"), CASES, ids=lambda value: value if value[:2] == "--" else "")
def test_wrong_setting(option: str, value: str, message: str, shards: Path, tmp_path: Path, capsys) -> None:
    options = {
        "--ds_config": commands.DS_CONFIGS / "fp32.json", "--model": "bert-tiny", "--data.shards": shards,
        "--data.seq_length": 64, "--train.output": tmp_path / "run", "--train.steps": 20, "--train.batch_size": 8,
        "--train.micro_batch_size": 2, option: value,
    }  # fmt: skip
    assert pretrain.main([str(part) for pair in options.items() for part in pair]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
