"""Which evaluation of a run was the best, and whether it is time to stop.

That is read from metrics.jsonl alone, so that a run that was interrupted decides as one that was not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.files import read_manifest
from engine.checkpoint.metric_lines import read_metric_lines
from engine.checkpoint.run_folder import RunFolder
from engine.checkpoint.state import restore
from engine.train.distributed import from_rank_zero
from engine.train.metrics import say
from engine.train.zero import ZeroEngine


@dataclass(frozen=True)
class Selection:
    """How evaluations decide.

    Attributes:
        figure: of evaluation lines; the larger, the better.
        patience: evaluations in a row without a better one, after which the run ends; 0: it never does for that.
        keep_best: whether the checkpoint of the best evaluation is kept, and is the run's result.
    """

    figure: str
    patience: int = 0
    keep_best: bool = False

    def evaluations(self, metrics: Path) -> dict[int, float]:
        """The figure by step, in order; where it was not finite it is as bad as can be."""
        lines, _ = read_metric_lines(metrics)
        found = {line.step: line.figures[self.figure] for line in lines if self.figure in line.figures}
        return {step: float("-inf") if value is None else float(value) for step, value in sorted(found.items())}

    def best(self, metrics: Path, among: Collection[int] | None = None) -> int | None:
        """The step with the best evaluation, the first of equal ones; None where there is none.

        Args:
            metrics: the run's metrics.jsonl.
            among: steps that count; None: all.
        """
        found = {step: value for step, value in self.evaluations(metrics).items() if among is None or step in among}
        return max(found, key=lambda step: found[step], default=None)

    def is_over(self, metrics: Path) -> bool:
        """Whether the run has gone ``patience`` evaluations without a better one."""
        steps, best = list(self.evaluations(metrics)), self.best(metrics)
        return bool(self.patience and best is not None and len(steps) - 1 - steps.index(best) >= self.patience)


def return_to_best(run: RunFolder, engine: ZeroEngine, last: int) -> int:
    """Put the weights of the best checkpoint in place, where the best is kept; returns the step of those in place."""
    best = from_rank_zero(run.spared)
    if best is None or best == last:
        return last
    folder = run.step_folder(best)
    restore(engine.deepspeed, engine.model, folder, read_manifest(folder))
    say(f"going back to step {best}, the best of the evaluations")
    return best
