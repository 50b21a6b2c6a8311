"""DeepSpeed files: those that ship are right everywhere, and what DeepSpeed would ignore is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from engine.config.cli import UsageError
from engine.config.deepspeed_json import (
    Device,
    complete_deepspeed_config,
    deepspeed_problems,
    read_deepspeed_json,
)
from engine.config.train import BatchShape
from tests.commands import DS_CONFIGS

SHAPE = BatchShape(24, 2, 3)
OLD_CPU, NEW_CPU = Device("cpu", has_bf16=False, has_fp16=False), Device("cpu", has_bf16=True, has_fp16=False)
OLD_GPU, NEW_GPU = Device("cuda", has_bf16=False), Device("cuda", has_bf16=True)
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
FILES = sorted(DS_CONFIGS.glob("*.json"))


def problems(tree: dict, device: Device = NEW_GPU, shape: BatchShape = SHAPE) -> list[str]:
    before = copy.deepcopy(tree)
    found = deepspeed_problems(tree, "f.json", shape, device)
    assert tree == before
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
@pytest.mark.parametrize("device", [OLD_CPU, NEW_CPU, NEW_GPU], ids=str)
def test_files_that_ship_are_right(file, device):
    tree = read_deepspeed_json(str(file))
    assert problems(tree, device) == []
    settings = complete_deepspeed_config(tree, SHAPE, device)
    written = "bf16" if "bf16" in file.name else "fp32" if "fp32" in file.name else "fp16"
    cpu = "bf16" if device.has_bf16 else "fp32"
    assert settings.precision == (cpu if written == "fp16" and device.type == "cpu" else written)
    assert (
        settings.stage == int(file.name[4]) if file.name.startswith("zero") else settings.stage == (written != "fp32")
    )
    if device.type == "cpu":
        assert "fp16" not in settings.config
    if settings.precision == "bf16":  # at accumulation in bf16 the losses are off
        assert settings.fp32_gradients == (settings.stage == 0)
        assert settings.fp32_gradients or settings.config["data_types"]["grad_accum_dtype"] == "fp32"
        assert settings.config["communication_data_type"] == "fp32"


def test_there_are_files_for_each_stage_and_precision():
    kinds = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_nvme")
    names = {file.name for file in FILES}
    assert names == {"fp32.json", "bf16.json", "fp16.json", *(f"{k}{p}.json" for k in kinds for p in ("", "_bf16"))}


@pytest.mark.parametrize(
    ("tree", "device", "precision", "notes"),
    [
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}, OLD_CPU, "fp32", "this run computes in fp32"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}, NEW_CPU, "bf16", "this run computes in bf16"),
        ({"bf16": {"enabled": True}}, OLD_CPU, "bf16", "bf16 is emulated and slow"),
        ({"bf16": {"enabled": True}}, NEW_CPU, "bf16", "gradients add up in bf16"),
        ({"bf16": {"enabled": True}, **FP32_SUMS}, NEW_CPU, "bf16", ""),
        ({"bfloat16": {"enabled": True}, **FP32_SUMS}, NEW_GPU, "bf16", ""),
        ({"fp16": {"enabled": True}}, Device("cpu", has_bf16=True, has_fp16=True), "fp16", ""),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 1}}, NEW_GPU, "fp16", ""),
        ({"fp16": {"enabled": False}}, OLD_CPU, "fp32", ""),
        ({}, OLD_CPU, "fp32", ""),
    ],
    ids=str,
)
def test_precision_that_the_device_has(tree, device, precision, notes):
    assert problems(tree, device) == []
    settings = complete_deepspeed_config(tree, SHAPE, device)
    assert settings.precision == precision
    assert notes in " ".join(settings.notes) and bool(notes) == bool(settings.notes)
    assert settings.config.get("bf16", {}).get("enabled", False) == (precision == "bf16")
    assert "bfloat16" not in settings.config


def test_completed_batch_keys():
    given = {"train_batch_size": "auto", "gradient_clipping": 1.0}
    config = complete_deepspeed_config(given, SHAPE, OLD_CPU).config
    assert given == {"train_batch_size": "auto", "gradient_clipping": 1.0}
    assert config["train_batch_size"] == 24
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train_batch_size": 23}, "'train_batch_size' is 23, but by train.batch_size it is 24; remove it or set it"),
        ({"train_micro_batch_size_per_gpu": 4}, "'train_micro_batch_size_per_gpu' is 4, but by train.micro_batch_size"),
        ({"gradient_accumulation_steps": 1}, "'gradient_accumulation_steps' is 1, but by train.batch_size and"),
        ({"steps_per_print": 10}, "'steps_per_print' is not DeepSpeed's here; remove it and use --train.log_every"),
        ({"checkpoint": {}}, "'checkpoint' is not DeepSpeed's here"),
        ({"amp": {"enabled": False}}, "DeepSpeed 0.19.8 no longer has 'amp'"),
        (
            {"zero_optimisation": {}},
            "unknown key 'zero_optimisation' (DeepSpeed would ignore it); did you mean zero_opt",
        ),
        ({"gradient_clipping": "auto"}, 'gradient_clipping is "auto", which only the batch sizes can be'),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, 'zero_optimization.reduce_bucket_size is "auto"'),
        ({"zero_optimization": None}, "'zero_optimization' must be an object in braces, found null"),
        ({"data_types": "fp32"}, "'data_types' must be an object in braces, found \"fp32\""),
        ({"bf16": True}, "'bf16' must be an object in braces, found true"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4; it must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": "2"}}, 'zero_optimization.stage is "2"'),
        ({"zero_optimization": {"stge": 2}}, "key zero_optimization.stge; did you mean stage?"),
        ({"bf16": {"enable": True}}, "key bf16.enable; did you mean enabled?"),
        ({"bf16": {"enabled": 0}}, "bf16.enabled is 0; it must be true or false"),
        ({"gradient_clipping": -1}, "'gradient_clipping' is -1; it must be a number, 0 (off) or above"),
        ({"gradient_clipping": True}, "'gradient_clipping' is true"),
        (
            {"fp16": {"enabled": True}, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
            "both bf16 and fp16 are enabled; keep one",
        ),
        (
            {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp16"}},
            'data_types.grad_accum_dtype is "fp16"; it must be fp32, or the type of the weights',
        ),
        ({"bf16": {"check_grad_overflow": False}}, "would let a gradient of NaN into the weights; remove it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_has_its_message(tree, message):
    found = problems(tree)
    assert len(found) == 1 and found[0].startswith("f.json: ") and message in found[0]


def test_bf16_on_a_gpu_without_it():
    tree = {"bf16": {"enabled": True}}
    assert "this GPU has no bf16; use the fp16 file" in problems(tree, OLD_GPU)[0]
    assert problems(tree, NEW_GPU) == []


@pytest.mark.parametrize("tree", [{"train_batch_size": 24}, {"train_batch_size": "auto"}])
def test_batch_keys_that_agree(tree):
    assert problems(tree) == []


def test_sizes_that_are_wrong_themselves_do_no_harm():
    assert problems({"train_batch_size": "auto"}, shape=BatchShape(8, 0, 2)) == []


def test_offload_to_nowhere_is_no_offload():
    assert problems({"zero_optimization": {"offload_param": None, "offload_optimizer": {"device": "none"}}}) == []


def test_all_problems_come_at_once():
    found = problems({"optimizer": {}, "train_batch_size": 1, "zero_optimization": {"stage": 9}, "x": 1, "fp16": 1})
    assert len(found) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"fp16": {"enabled": true,}}', "is not JSON: line 1: "),
        (b"{\n 'a': 1}", "is not JSON: line 2: "),
        (b"\xff\x00", "is not a text file"),
        (b"[1]", "expected a JSON object, found list"),
    ],
)
def test_unreadable_files(content, message, tmp_path):
    file = tmp_path / "ds.json"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_deepspeed_json(str(file))
    assert f"--ds_config {file} {message}".replace(" expected", ": expected") in str(caught.value)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "zero2.json").write_text(json.dumps({}))
    with pytest.raises(UsageError) as caught:
        read_deepspeed_json(str(tmp_path / "zero22.json"))
    assert f"no such file; did you mean {tmp_path / 'zero2.json'}?" in str(caught.value)
    with pytest.raises(UsageError, match="no such file"):
        read_deepspeed_json(str(Path("nowhere") / "zero2.json"))


def test_bf16_sums_are_noted():
    tree = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    settings = complete_deepspeed_config(tree, BatchShape(8, 2, 2), Device("cpu", has_bf16=True))
    assert any("gradients add up in bf16" in note for note in settings.notes)
