"""``python -m engine.downstream RUN FILE.yaml``: fine-tune the checkpoints of a run that has ended or is stopped."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from engine.config.cli import run_command
from engine.downstream.plan import DownstreamPlan, read_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 1 where a fine-tuning failed."""
    return run_command(lambda: _evaluate(sys.argv[1:] if argv is None else argv))


def _evaluate(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.downstream",
        description="Fine-tune checkpoints of a pretraining run, as --train.evaluate_with does while it trains.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="run folder: what --train.output names")
    parser.add_argument("file", metavar="FILE", help="YAML file: which checkpoints, on what (docs/recipes.md)")
    options = parser.parse_args(argv)
    plan = read_plan(options.file)
    plan.refuse_absent_files()
    from engine.checkpoint.metric_lines import end_last_line  # torch takes seconds to import
    from engine.checkpoint.run_folder import RunFolder
    from engine.downstream.runs import DownstreamRuns
    from engine.train.metrics import say

    run = RunFolder(options.run)
    if not run.steps():
        raise ValueError(f"{run.path} is no run folder with a checkpoint")
    run.claim()
    end_last_line(run.metrics)
    last_step = run.steps()[-1]
    runs = DownstreamRuns(run, plan, last_step)
    _check_steps(plan, runs.folder.kept_steps(), last_step, say)

    def write(step: int, figures: dict[str, float | int | None]) -> None:
        with run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    try:
        runs.start(last_step)
        runs.wait(write, lambda: None)
    finally:
        runs.close()
    return 1 if runs.failed else 0


def _check_steps(plan: DownstreamPlan, steps: Sequence[int], last_step: int, say: Callable[[str], None]) -> None:
    """Raise ValueError where no checkpoint is chosen; tell single steps that are not there."""
    if not any(plan.chooses(step, last_step) for step in steps):
        raise ValueError(f"no checkpoint is chosen: there are those of steps {', '.join(map(str, steps))}")
    if absent := [step for step in plan.at if step not in steps]:
        say(f"note: no checkpoint is there of step {', '.join(map(str, absent))}")


if __name__ == "__main__":
    sys.exit(main())
