"""``--profile``: a trace whose parts have names, and training that is none the wiser."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from engine.train.heartbeat import main_thread
from engine.train.profiling import MAX_MICRO_BATCHES, MAX_RANKS, StepProfiler, phases, profiled
from tests import commands

SMALL = (
    "--model", "bert-tiny", "--arch.num_layers", "1", "--data.seq_length", "64", "--train.batch_size", "8",
    "--train.micro_batch_size", "2", "--train.log_every", "1", "--train.eval_rows", "16", "--train.eval_every", "5",
)  # fmt: skip
PARTS = {"data", "counts", "forward", "backward", "optimizer", "evaluation"}


def run(shards: Path, folder: Path, steps: int, *more: str, ranks: int | None = None) -> str:
    config = commands.write_ds_config(folder.parent / "ds.json", zero_optimization={"stage": 2})
    options = ["--ds_config", config, "--data.shards", shards, *SMALL, "--train.output", folder]
    done = commands.run(commands.PRETRAIN, [*options, "--train.steps", str(steps), *more], ranks)
    assert done.returncode == 0, done.stdout
    return done.stdout


def names(trace: Path) -> list[str]:
    with gzip.open(trace) as file:
        return [event.get("name") for event in json.load(file)["traceEvents"]]


def test_every_rank_writes_a_trace_and_weights_are_the_same(shards, tmp_path):
    run(shards, tmp_path / "plain", 7, ranks=2)
    text = run(shards, tmp_path / "run", 7, "--profile", ranks=2)
    folder = tmp_path / "run" / "profile"
    assert f"profile: steps 4 to 6 will be written to {folder}" in text
    assert f"profile: {folder}/rank-0-step-4-6.json.gz (open it in ui.perfetto.dev)" in text
    assert {file.name for file in folder.iterdir()} == {
        f"rank-{rank}-step-4-6.{kind}" for rank in (0, 1) for kind in ("json.gz", "txt")
    }
    for rank in (0, 1):
        found = names(folder / f"rank-{rank}-step-4-6.json.gz")
        assert set(found) >= PARTS
        assert found.count("forward") == 6  # 3 steps of 2 micro-batches
        assert found.count("optimizer") == 3 and found.count("evaluation") == 1
        assert "Self CPU" in (folder / f"rank-{rank}-step-4-6.txt").read_text()
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("plain", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert commands.losses(tmp_path / "plain") == commands.losses(tmp_path / "run")
    assert "profile" not in run(shards, tmp_path / "run", 8)  # goes on without it
    assert "profile: steps 9 to 9 will be written" in run(shards, tmp_path / "run", 9, "--profile", "true")
    assert (folder / "rank-0-step-9-9.json.gz").is_file()


def test_of_many_micro_batches_the_first_and_the_last_are_written(shards, tmp_path):
    more = ["--train.batch_size", "24", "--train.micro_batch_size", "1", "--arch.hidden_size", "32"]
    text = run(shards, tmp_path / "run", 6, "--profile", *more, ranks=2)
    line = f"profile: of the 12 micro-batches of a step the first {MAX_MICRO_BATCHES - 1} and the last are written"
    assert text.count(line) == 1
    for rank in (0, 1):
        found = names(tmp_path / "run" / "profile" / f"rank-{rank}-step-4-6.json.gz")
        assert found.count("forward") == found.count("backward") == 3 * MAX_MICRO_BATCHES
        assert set(found) >= PARTS - {"evaluation"}
        assert found.count("optimizer") == found.count("counts") == found.count("data") == 3


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, (0, 0, 1)), (2, (0, 1, 1)), (3, (0, 1, 2)), (4, (0, 1, 3)), (5, (1, 1, 3)), (6, (2, 1, 3)), (99, (2, 1, 3))],
)
def test_phases(steps, expected):
    assert phases(steps) == expected


def take(folder: Path, steps: int, rank: int = 0, ends_after: int | None = None) -> list[str]:
    said: list[str] = []
    with profiled(StepProfiler(folder, rank, 10, steps, said.append)) as step_ended:
        for _ in range(steps if ends_after is None else ends_after):
            step_ended()
    return said


def test_a_start_of_one_step_has_no_warmup(tmp_path):
    said = take(tmp_path, 1)
    assert "the only step is profiled without a warmup" in said[1]
    assert (tmp_path / "profile" / "rank-0-step-11-11.json.gz").is_file()


@pytest.mark.parametrize(("ends_after", "last"), [(1, None), (2, None), (4, 14), (5, 15)])
def test_a_start_that_ends_early(ends_after, last, tmp_path):
    said = take(tmp_path, 100, ends_after=ends_after)
    if last is None:
        assert said[1:] == ["note: --profile: nothing was profiled, as this start ended before step 14"]
        assert not (tmp_path / "profile").exists()
    else:
        assert (tmp_path / "profile" / f"rank-0-step-14-{last}.json.gz").is_file()


def test_ranks_beyond_the_first_write_nothing(tmp_path):
    assert take(tmp_path, 6, rank=MAX_RANKS) == []
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_writes_its_trace_is_waited_for(tmp_path, capsys):
    patient: list[bool] = []

    class Slow:
        def export_chrome_trace(self, file: str) -> None:
            patient.append(main_thread()[0])
            raise OSError(28, "No space left on device")

    profiler = StepProfiler(tmp_path, 0, 10, 6, lambda text: None)
    profiler._done = profiler._first
    profiler._write(Slow())
    assert patient == [True] and not main_thread()[0]
    assert "No space left on device" in capsys.readouterr().err


def test_what_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "profile").write_text("no folder")
    take(tmp_path, 6, rank=3)
    assert "note: --profile: " in capsys.readouterr().err
    assert (tmp_path / "profile").read_text() == "no folder"


def test_nothing_is_profiled_unasked():
    with profiled(None) as step_ended:
        step_ended()
