"""The benchmark of training on a CPU, on the smallest models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import train
from tests import commands

SCRIPT = commands.REPOSITORY / "benchmarks" / "train.py"


def test_a_small_run(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ["--models", "bert-tiny", "--texts", "half", "--attention_dropout", "0", "0.1", "--precisions", "bf16"]
    done = commands.run(SCRIPT, [*options, "--steps", "1", "--rounds", "3", "--output", output])
    assert done.returncode == 0, done.stdout
    without, dropping = json.loads(output.read_text())
    assert (without["attention_dropout"], dropping["attention_dropout"]) == (0.0, 0.1)
    for result in (without, dropping):
        speed = result["tokens_per_second"]
        assert result["real_share"] == 0.5 and speed.keys() == {"ours bf16", "transformers bf16"}
        assert min(speed.values()) > 10 and max(speed.values()) < 1e6
        assert result["ratios"].keys() == {"ours bf16 / transformers bf16"}
        line = f"| bert-tiny, 128, half | {result['attention_dropout']} | {speed['ours bf16']:,.0f} |  |"
        assert line in done.stdout


def test_the_table_has_both_ratios() -> None:
    ratios = {"ours bf16 / transformers fp32": 7.123, "ours bf16 / transformers bf16": 4.567}
    facts = {"model": "bert-small", "length": 128, "text": "half", "attention_dropout": 0.1}
    result = {**facts, "tokens_per_second": {"ours bf16": 4321.4}, "ratios": ratios}
    assert train.table([result]).splitlines()[-1] == "| bert-small, 128, half | 0.1 | 4,321 | 7.12 | 4.57 |"


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--models", "bert-enormous"])
    assert "invalid choice: 'bert-enormous'" in capsys.readouterr().err
