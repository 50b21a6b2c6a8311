"""The demo's own parts, on made-up results; `make demo` runs the whole."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from examples import demo, demo_results, prepare


def write_metrics(folder: Path, lines: list[dict[str, Any]], unfinished: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + unfinished)


def training_line(step: int, loss: float, tokens_per_second: float = 1000.0) -> dict[str, Any]:
    return {"step": step, "loss": loss, "lr": 1e-3, "tokens_per_second": tokens_per_second}


def heldout_line(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "heldout_loss": loss}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A demo folder as the stages leave it."""
    write_metrics(
        tmp_path / "bert",
        [
            training_line(5, 8.7, 900),
            training_line(10, 7.5, 40_000),
            heldout_line(10, 7.25),
            training_line(10, 7.4, 41_000),
            training_line(15, 6.125, 42_000),
            heldout_line(15, 6.5),
        ],
    )
    write_metrics(tmp_path / "gpt2", [training_line(5, 8.8), training_line(10, 6.0), heldout_line(10, 5.75)])
    for name, accuracy in (("classifier", 0.8125), ("classifier-random-init", 0.5)):
        (tmp_path / name).mkdir()
        results = {"dev_accuracy": accuracy, "test_accuracy": accuracy - 0.0625}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_metrics_of_a_resumed_run_keep_the_later_line(finished: Path) -> None:
    metrics = demo_results.read_metrics(finished / "bert" / "metrics.jsonl")
    assert metrics.curve() == ([5, 10, 15], [8.7, 7.4, 6.125])
    assert metrics.heldout == {10: 7.25, 15: 6.5}
    assert metrics.tokens_per_second == 41_000


def test_metrics_leave_out_a_line_that_is_being_written(tmp_path: Path) -> None:
    assert demo_results.read_metrics(tmp_path / "metrics.jsonl") == demo_results.Metrics({}, {})
    write_metrics(tmp_path, [training_line(5, 8.7)], unfinished='{"step": 10, "lo')
    assert demo_results.read_metrics(tmp_path / "metrics.jsonl").curve() == ([5], [8.7])


def test_summary_shows_all_numbers(finished: Path) -> None:
    table = demo_results.summarize(finished, {"Train a tokenizer": 2.4, "Pretrain": 60.3})
    rows = [line.split() for line in table.splitlines()]
    assert ["bert-tiny", "41,000", "8.700", "6.125", "6.500"] in rows
    assert ["gpt2-tiny", "1,000", "8.800", "6.000", "5.750"] in rows
    assert ["with", "pretraining", "81.2%", "75.0%"] in rows
    assert ["from", "random", "weights", "50.0%", "43.8%"] in rows
    assert ["all", "63", "s"] in rows


def test_table_aligns_its_columns() -> None:
    lines = demo_results.format_table(["name", "n"], [["a", "1"], ["longer", "22,000"]]).splitlines()
    assert lines == ["name         n", "------  ------", "a            1", "longer  22,000"]


def test_plot_is_a_png(finished: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    assert demo_results.plot_losses(finished).read_bytes().startswith(b"\x89PNG\r\n")


def test_predictions_stand_beside_the_truth(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("label\ttext_a\n1\t好\n0\t差\n", encoding="utf-8")
    (tmp_path / "predictions.tsv").write_text("label\tprobability\n1\t0.9\n1\t0.6\n", encoding="utf-8")
    shown = demo_results.show_predictions(tmp_path / "test.tsv", tmp_path / "predictions.tsv", count=2)
    assert [line.split() for line in shown.splitlines()[1:]] == [["1", "1", "好"], ["0", "1", "差"]]


def test_stages_read_only_what_exists_or_was_written_before(repository: Path) -> None:
    stages = demo.build_stages(Path("runs/demo"), num_ranks=2)
    commands = [stage.command for stage in stages]
    named = {part for command in commands for part in command if part.startswith(("examples/", "ds_configs/"))}
    assert not {name for name in named if not (repository / name).is_file()}
    assert sum("--master_port" in command for command in commands) == 4
    assert [stage.kill_at_step for stage in stages].count(demo.KILL_AT_STEP) == 1
    assert demo.SAVE_EVERY < demo.KILL_AT_STEP < demo.PRETRAIN_STEPS


# a run that logs a step every 50 ms, saves at step 2, has a child, and goes on from its checkpoint
RUN = """
import json, os, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.joinpath("checkpoints").mkdir(parents=True, exist_ok=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
folder.joinpath("child.pid").write_text(str(child.pid))
start = 2 if folder.joinpath("checkpoints/step-2").is_dir() else 0
with open(folder / "metrics.jsonl", "a") as log:
    for step in range(start + 1, 41):
        log.write(json.dumps({"step": step, "loss": 1.0, "tokens_per_second": 1.0}) + chr(10))
        log.flush()
        if step == 2:
            folder.joinpath("checkpoints/step-2").mkdir(exist_ok=True)
        time.sleep(0 if start else 0.05)
child.kill()
"""


def test_a_killed_stage_is_run_again_and_leaves_no_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    stage = demo.Stage("Interrupted", command, kill_at_step=5, run_folder=tmp_path)
    demo.run_stage(stage, dict(os.environ), "1/1")
    assert "killed on purpose (SIGKILL) at step" in capsys.readouterr().out
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps.count(1) == 1 and steps.count(3) == 2 and steps[-1] == 40
    assert ended(int((tmp_path / "child.pid").read_text()))


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet reaped, within a few seconds."""
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_failing_stage_ends_the_demo() -> None:
    stage = demo.Stage("Fails", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit, match="exit code 3"):
        demo.run_stage(stage, dict(os.environ), "1/1")


def test_only_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(SystemExit, match="no earlier demo made it"):
        demo.new_folder(tmp_path)
    demo.new_folder(tmp_path / "demo")
    (tmp_path / "demo" / "old").touch()
    demo.new_folder(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()


def test_examples_are_what_prepare_makes(repository: Path, shared_data: Path, tmp_path: Path) -> None:
    prepare.main(["--source", str(shared_data / "sample"), "--output", str(tmp_path)])
    made = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == 6
    for path in made:
        assert (tmp_path / path).read_bytes() == (repository / "examples" / path).read_bytes(), path


def test_no_review_stands_in_two_splits(repository: Path) -> None:
    folder = repository / "examples" / "reviews"
    texts = {
        split: [row["text_a"] for row in demo_results.read_table(folder / f"{split}.tsv")] for split in prepare.SPLITS
    }
    everything = [text for split in texts.values() for text in split]
    assert len(everything) == len(set(everything)) == 766
    corpus = (repository / "examples" / "corpus" / "reviews.txt").read_text(encoding="utf-8").splitlines()
    assert corpus == texts["train"]
