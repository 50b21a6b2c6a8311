"""``python -m engine.plan`` as a user calls it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config.recipes import RECIPE_FOLDER, recipe_names
from engine.data.plan import SequenceLayout
from engine.data.shard_sources import open_shards
from engine.launch.dry_run import estimated_rows
from engine.plan.__main__ import main
from preprocess.manifest import read_manifest
from tests import commands

SMALL = ["--model", "bert-mini", "--gpus", "2", "--train.batch_size", "64"]
SIZE = "train.micro_batch_size"
RECIPES = recipe_names(RECIPE_FOLDER)


def figures(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> dict:
    assert main([*options, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shards in the working directory."""
    monkeypatch.chdir(tmp_path)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "gpt2", "--gpus", "8", "--gpu_memory", "80"]) == 0
    text = capsys.readouterr().out
    assert "gpt2: 124.5 M parameters (12 layers x 768), objective lm" in text
    assert "50,257 tokens (assumed, GPT-2's; --vocab_size gives another)" in text
    assert "8 GPU(s) of 80 GiB, of which 72.0 are planned with" in text
    lines = [line.split() for line in text.splitlines() if line.startswith("zero")]
    assert [line[0] for line in lines] == [
        f"{name}_bf16.json" for name in ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
    ]
    assert all(sum(map(float, line[2:7])) == pytest.approx(float(line[7]), abs=0.03) for line in lines)
    assert "fits         --ds_config ds_configs/zero0_bf16.json --train.micro_batch_size 32" in text
    assert "peak         989 TFLOP/s of one GPU, dense bf16, by the data sheet of the H100 SXM" in text
    assert "8 x 989 x MFU 0.4)" in text and "steps        100,000" in text


def test_a_file_is_judged_with_its_micro_batch(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, *SMALL, "--ds_config", str(commands.DS_CONFIGS / "zero1_bf16.json"))
    assert [candidate["micro_batch_size"] for candidate in found["candidates"]] == [{SIZE: 8}]
    assert found["largest"]["micro_batch_size"] == {SIZE: 32} and found["fits"]
    assert found["asked"] == found["best"] and found["asked_fits"]
    assert found["seconds"] == pytest.approx(found["flops"] / (2 * 989e12 * 0.4))


def test_a_run_that_does_not_fit_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "gpt2-large", "--gpus", "8", "--gpu_memory", "8", "--data.seq_length", "1024"]
    file = str(commands.DS_CONFIGS / "zero1_bf16.json")
    assert main([*options, "--ds_config", file]) == 1
    text = capsys.readouterr().out
    assert "does not fit --ds_config ds_configs/zero1_bf16.json --train.micro_batch_size 8 (" in text
    assert " GiB too much" in text
    assert "would fit    --ds_config ds_configs/zero2_bf16.json" in text
    assert "--train.activation_checkpointing true" in text


def test_a_micro_batch_that_does_not_divide_the_rows_is_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(commands.DS_CONFIGS / "zero1_bf16.json")
    assert main([*SMALL, "--ds_config", file, "--train.micro_batch_size", "24"]) == 1
    text = capsys.readouterr().out
    assert "does not fit --ds_config ds_configs/zero1_bf16.json --train.micro_batch_size 24" in text
    assert "a run is refused: train.micro_batch_size 24 does not divide the 32 rows of a rank" in text
    assert "would fit    --ds_config ds_configs/zero1_bf16.json --train.micro_batch_size 32 (" in text


def test_a_smaller_micro_batch_than_asked_for_is_advice(capsys: pytest.CaptureFixture[str]) -> None:
    """256 rows of 512 tokens of BERT-mini do not fit, fewer do."""
    file = str(commands.DS_CONFIGS / "zero0_bf16.json")
    options = [
        "--model",
        "bert-mini",
        "--data.seq_length",
        "512",
        "--gpu_memory",
        "2",
        "--train.micro_batch_size",
        "256",
    ]
    found = figures(capsys, *options, "--ds_config", file, code=1)
    assert found["asked"]["micro_batch_size"] == {SIZE: 256}
    assert not found["asked_fits"] and not found["fits"] and found["largest"] is None
    advised = found["advice"][0]
    assert advised["ds_config"] == file and advised["micro_batch_size"][SIZE] < 256
    assert advised["total_bytes"] <= found["room_bytes"] < found["asked"]["total_bytes"]


def test_steps_that_share_a_setting_get_one_micro_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe ramps rows from 128 to 512 tokens: what fits the short ones does not fit the long ones."""
    options = ["--config", "bert-base", "--gpus", "8", "--arch.num_layers", "2", "--gpu_memory", "2.3"]
    chosen = figures(capsys, *options)["best"]
    file = ["--ds_config", chosen["ds_config"]]
    short = figures(capsys, *options, *file, "--data.length_ramp", "{}", "--data.seq_length", "128")["largest"]
    assert chosen["micro_batch_size"][SIZE] < short["micro_batch_size"][SIZE]
    asked = figures(capsys, *options, *file, "--train.micro_batch_size", str(chosen["micro_batch_size"][SIZE]))
    assert asked["asked_fits"] and asked["asked"] == chosen
    figures(capsys, *options, *file, "--train.micro_batch_size", str(2 * chosen["micro_batch_size"][SIZE]), code=1)


def test_one_micro_batch_divides_all_rows_of_a_ramp(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, *SMALL, "--train.batch_ramp", "{10: 24}", "--gpu_memory", "80")
    assert found["best"]["micro_batch_size"] == {SIZE: 4}  # of 12 and of 32 rows of a rank


def test_stages_with_a_micro_batch_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Options and GiB are those of the combination: the option of the whole run does not reach the second stage."""
    options = ["--config", "bert-large-lamb", "--gpus", "64", "--arch.num_layers", "2", "--gpu_memory", "1.8"]
    file = str(commands.DS_CONFIGS / "zero0_bf16.json")
    found = figures(capsys, *options, "--ds_config", file, code=1)
    assert found["asked"]["micro_batch_size"] == {SIZE: 64, "stages.1.micro_batch_size": 16}
    assert main([*options, "--ds_config", file]) == 1
    text = capsys.readouterr().out
    for change in found["advice"]:
        first, second = change["micro_batch_size"].values()
        assert re.search(
            rf"would fit    --ds_config ds_configs/{Path(change['ds_config']).name} --train.micro_batch_size {first}"
            rf"( --train.activation_checkpointing true)?, in the run's file stages.1.micro_batch_size {second} "
            rf"\({change['total_bytes'] / 2**30:.2f} GiB",
            text,
        )
        assert change["total_bytes"] <= found["room_bytes"]
    assert found["advice"]


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--gpu_memory", "0.05"]) == 1
    assert "nothing here would make it fit: take more GPUs or larger ones" in capsys.readouterr().out


def test_shards_give_vocabulary_and_epochs(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, *SMALL, "--data.shards", str(shards), "--train.steps", "10")
    manifest = json.loads((shards / "manifest.json").read_text())
    tokens = sum(shard["num_tokens"] for shard in manifest["shards"])
    assert found["vocab_size"] == manifest["tokenizer"]["vocab_size"]
    assert next(iter(found["epochs"].values())) == pytest.approx(640 * 125 / tokens, rel=0.15)


def test_each_folder_of_a_mixture_has_its_epochs(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its weight, with the rows that a dry run tells of."""
    (one,), tokenizer = open_shards(str(shards))
    mixed = tuple(replace(one, name=name, share=share) for name, share in (("a", 9000), ("b", 1000)))
    monkeypatch.setattr("engine.plan.setting_up.open_shards", lambda text: (mixed, tokenizer))
    options = [*SMALL, "--objective", "mlm", "--data.shards", "a:0.9,b:0.1", "--train.steps", "10"]
    epochs = figures(capsys, *options)["epochs"]
    rows = estimated_rows(read_manifest(shards), 128, SequenceLayout(2, 0))
    assert epochs == pytest.approx({"a": 640 * 0.9 / rows, "b": 640 * 0.1 / rows})
    assert main(options) == 0
    told = ", ".join(f"{name} {number:.2f}" for name, number in epochs.items())
    assert f"; epochs: {told}\n" in capsys.readouterr().out


def test_defaults_of_the_engine_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-2 XL takes rows of 1,024 tokens, but a run takes 128 where nobody says so."""
    small = ["--arch.num_layers", "1", "--gpus", "64"]
    assert main(["--model", "gpt2-xl", *small]) == 0
    assert (
        "defaults     as a run takes them: rows of 128 tokens (--data.seq_length; the model takes 1,024), "
        "256 rows a step (--train.batch_size), 100,000 steps (--train.steps)\n"
    ) in capsys.readouterr().out
    options = ["--model", "gpt2-xl", *small, "--data.seq_length", "1024", "--train.steps", "5"]
    assert figures(capsys, *options)["defaults"] == {"train.batch_size": 256}
    assert figures(capsys, "--config", "bert-large-lamb", *small)["defaults"] == {}


def test_settings_that_a_plan_does_not_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--backend", "gloo", "--dry_run", "--train.compile=true"]) == 2
    error = capsys.readouterr().err
    for name in ("backend", "dry_run", "train.compile"):
        assert f"--{name}: a plan does not depend on it; leave it out" in error
    file = tmp_path / "run.yaml"
    file.write_text("backend: gloo\nprofile: true\ninit_from: folder\ntrain: {compile: true}\n")
    assert main(["--config", str(file), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "not planned  init_from, train.compile, backend, profile: the figures are those without" in text
    assert main(SMALL) == 0 and "not planned" not in capsys.readouterr().out


def test_only_files_that_ship_are_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my files").mkdir()
    file = commands.write_ds_config(tmp_path / "my files" / "zero1.json", zero_optimization={"stage": 1})
    assert main([*SMALL, "--ds_config", str(file)]) == 0
    assert f"fits         --ds_config '{file}' --train.micro_batch_size 8 (" in capsys.readouterr().out


def test_fp32_has_a_peak_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--ds_config", str(commands.DS_CONFIGS / "fp32.json")]
    found = figures(capsys, *SMALL, *file)
    assert found["peak_tflops"] == 67.0
    assert found["peak_of"] == "fp32 without TF32, which torch leaves off, by the data sheet of the H100 SXM"
    given = figures(capsys, *SMALL, *file, "--train.peak_tflops", "9")
    assert (given["peak_tflops"], given["peak_of"]) == (9.0, "given by train.peak_tflops")


def test_bf16_is_refused_for_a_gpu_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(commands.DS_CONFIGS / "zero2_bf16.json")
    assert main([*SMALL, "--gpu", "v100", "--ds_config", file]) == 2
    assert "this GPU has no bf16; use the fp16 file" in capsys.readouterr().err


def test_a_gpu_before_bf16_is_planned_in_fp16(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, *SMALL, "--gpu", "v100")
    assert found["peak_tflops"] == 125.0
    assert Path(found["best"]["ds_config"]).name == "zero0.json"
    assert figures(capsys, *SMALL, "--train.peak_tflops", "10")["peak_tflops"] == 10.0


@pytest.mark.parametrize("recipe", ["bert-large-lamb"])
def test_a_recipe_is_taken_as_it_is(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe in RECIPES
    options = ["--config", recipe, "--gpus", "64", "--arch.num_layers", "2"]
    found = figures(capsys, *options, "--ds_config", str(commands.DS_CONFIGS / "zero1.json"))
    assert found["steps"] == 8601 and len(found["best"]["micro_batch_size"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_planned(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures(capsys, "--config", recipe, "--gpus", "64", "--arch.num_layers", "2")["days"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "0"], "gpus is 0; it must be at least 1"),
        (["--gpu_memory", "0"], "gpu_memory is 0.0; it must be the GiB of one GPU"),
        (["--margin", "1"], "margin is 1.0; it must be in"),
        (["--mfu", "40"], "mfu is 40.0; it must be above 0 and at most 1"),
        (["--gpu", "h10"], "gpu is 'h10'; there are .*did you mean h100.*--train.peak_tflops"),
        (["--vocab_size", "3"], "vocab_size is 3; it must be at least 8"),
        (["--gpus", "3"], r"train.batch_size \(256\) must be a multiple .* 255 or 258"),
        (["--model", "gpt2-x"], "unknown model 'gpt2-x'.*did you mean gpt2"),
        (["--model", "bert-mini", "--data.seq_length", "1000"], "rows of 1000 tokens are above arch.max_positions"),
        (["--model", "bert-mini", "--objective", "lm"], "objective lm needs a causal model"),
        (["--objective", "mlms"], "unknown objective 'mlms'.*did you mean mlm"),
        (["--data.shards", "nowhere"], "data.shards nowhere does not exist"),
        (["--ds_config", "nowhere.json"], "nowhere.json: no such file"),
        (["--gpu_mem", "80"], "unknown option --gpu_mem; did you mean --gpu_memory"),
    ],
)
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_wrong_file_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = commands.write_ds_config(tmp_path / "ds.json", optimizer={"type": "Adam"})
    assert main([*SMALL, "--ds_config", str(file)]) == 2
    assert "'optimizer' is not DeepSpeed's here" in capsys.readouterr().err
