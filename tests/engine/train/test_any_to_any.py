"""A checkpoint of any number of ranks, ZeRO stage and offload goes on in any other: the same state, rows and losses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.engine.train.layouts import Job, Layout, Outcome, run_jobs

SAVED, STEPS = 2, 7  # saved after 2 steps, and 5 more
TOLERANCE = {"fp32": 1e-6, "bf16": 1e-3, "fp16": 1e-3}

# Every stage, number of ranks and offload is a source and a target.
SOURCES = [
    Layout(1, 0), Layout(2, 1), Layout(3, 2), Layout(4, 3), Layout(2, 2, offload="cpu"), Layout(3, 3, offload="all"),
    Layout(2, 0, "bf16"), Layout(1, 3, "bf16"), Layout(4, 1, "bf16"), Layout(3, 2, "bf16", "cpu"),
]  # fmt: skip
TARGETS = [
    Layout(1, 3), Layout(2, 0), Layout(3, 1), Layout(4, 2), Layout(1, 1, offload="cpu"), Layout(2, 3, offload="all"),
    Layout(1, 2, "bf16"), Layout(2, 3, "bf16", "all"), Layout(3, 0, "bf16"), Layout(4, 1, "bf16"),
]  # fmt: skip
ALL = [Layout(ranks, stage) for ranks in (1, 2, 3, 4) for stage in (0, 1, 2, 3)]
CONFIGURATIONS = [
    *(Layout(2, stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16", "fp16")),
    *(Layout(2, stage, precision, "cpu") for stage in (1, 2, 3) for precision in ("fp32", "bf16", "fp16")),
    *(Layout(2, 3, precision, place) for place in ("all", "nvme") for precision in ("fp32", "bf16", "fp16")),
]


def options(shards: Path) -> list[str]:
    return [
        "--model", "bert-tiny", "--arch.hidden_size", "48", "--arch.num_heads", "3", "--arch.intermediate_size", "100",
        "--data.shards", str(shards), "--data.seq_length", "32", "--train.steps", str(STEPS),
        "--train.batch_size", "12", "--train.micro_batch_size", "1", "--train.log_every", "1",
        "--train.save_every", str(SAVED), "--train.keep_checkpoints", "0", "--train.eval_rows", "12",
        "--train.optimizer.lr", "1e-3", "--train.tensorboard", "false",
    ]  # fmt: skip


class Runs:
    """Runs of a test session; those of one number of ranks share a process group."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder, self.options = folder, options(shards)
        self.sources: dict[Layout, Outcome] = {}

    def _new_folder(self) -> Path:
        return self.folder / f"group {len(list(self.folder.iterdir()))}"

    def source_folder(self, layout: Layout) -> str:
        return str(self.folder / str(layout))

    def run_sources(self, layouts: Sequence[Layout]) -> list[str]:
        """Whole runs, as far as there were none before; what is wrong."""
        layouts = [layout for layout in layouts if layout not in self.sources]
        for group in grouped(layouts):
            jobs = [Job(self.source_folder(layout), self.options, layout) for layout in group]
            outcomes = run_jobs(self._new_folder(), jobs)
            self.sources |= {layout: outcomes[self.source_folder(layout)] for layout in group}
        found = {layout: [self.sources[layout].error, *self.sources[layout].restored] for layout in layouts}
        return [f"{layout}: {text}" for layout, texts in found.items() for text in texts if text]

    def run_targets(self, pairs: Sequence[tuple[Layout, Layout]]) -> list[str]:
        """Go on from a source's checkpoint in another layout; what is wrong, by pair."""
        wrong = []
        for targets in grouped(list(dict.fromkeys(target for _, target in pairs))):
            jobs = {
                (source, target): Job(
                    str(self.folder / "pairs" / f"{source} to {target}"),
                    self.options,
                    target,
                    self.source_folder(source),
                    SAVED,
                )
                for source, target in pairs
                if target in targets
            }
            outcomes = run_jobs(self._new_folder(), list(jobs.values()), timeout=1800)
            for (source, target), job in jobs.items():
                found = problems(self.sources[source], outcomes[job.output], source, target)
                wrong += [f"{source} to {target}: {text}" for text in found]
        return wrong


def grouped(layouts: Sequence[Layout]) -> list[list[Layout]]:
    """By number of ranks."""
    ordered = sorted(layouts, key=lambda layout: layout.ranks)
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda layout: layout.ranks)]


def problems(source: Outcome, target: Outcome, before: Layout, after: Layout) -> list[str]:
    """What did not go on as it should."""
    if source.error or target.error:
        return [f"ended with {source.error or target.error}"]
    found = [f"restored: {text}" for text in target.restored]
    steps = [str(step) for step in range(SAVED + 1, STEPS + 1)]
    if list(target.rows) != steps or any(target.rows[step] != source.rows[step] for step in steps):
        found.append("trained on other rows")
    losses = [[outcome.losses.get(step, np.nan) for step in steps] for outcome in (source, target)]
    deviation = np.abs(np.divide(*losses) - 1).max()
    if not deviation <= TOLERANCE[after.precision]:
        found.append(f"losses deviate by {deviation:.1e}")
    if before == after and (losses[0] != losses[1] or source.files != target.files):
        found.append(f"not bit-exact: losses deviate by {deviation:.1e}")
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("any-to-any"), shards)


def test_every_kind_of_layout_reads_others(runs):
    """Weights and optimizer state bit-equal after the restore, the same rows, the next losses; a covering set."""
    assert runs.run_sources(SOURCES) == []
    pairs = [(source, source) for source in SOURCES]
    for precision in ("fp32", "bf16"):
        sources = [layout for layout in SOURCES if layout.precision == precision]
        targets = [layout for layout in TARGETS if layout.precision == precision]
        pairs += [*zip(sources, targets, strict=True), *zip(sources, targets[1:] + targets[:1], strict=True)]
    assert runs.run_targets(pairs) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_layout_reads_every_other(ranks, runs):
    """{1,2,3,4} ranks x {0,1,2,3} stages, all 256 ordered pairs."""
    assert runs.run_sources(ALL) == []
    targets = [layout for layout in ALL if layout.ranks == ranks]
    assert runs.run_targets([*itertools.product(ALL, targets)]) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_same_layout_goes_on_bit_exact(runs):
    """In every configuration."""
    assert runs.run_sources(CONFIGURATIONS) == []
    assert runs.run_targets([(layout, layout) for layout in CONFIGURATIONS]) == []


def test_differences_would_be_found():
    """What the tests above look for is seen where it is there."""
    rows = {str(step): "a" for step in range(1, STEPS + 1)}
    losses = {str(step): 5.0 for step in range(1, STEPS + 1)}
    after = {step: rows[step] for step in rows if int(step) > SAVED}
    source, one, two = Outcome(losses, rows, [], {"f": "x"}), Layout(1, 0), Layout(2, 1)

    def found(target: Outcome, after: Layout = two) -> str:
        return "; ".join(problems(source, target, one, after))

    assert found(Outcome(losses, after, [], {"f": "y"})) == ""
    assert found(Outcome({**losses, "5": 5.0001}, after)) == "losses deviate by 2.0e-05"
    assert found(Outcome({k: losses[k] for k in ("3", "4")}, after)) == "losses deviate by nan"
    assert found(Outcome(losses, {**after, "4": "b"})) == found(Outcome(losses, {})) == "trained on other rows"
    assert found(Outcome(losses, after, ["x differs"])) == "restored: x differs"
    assert found(Outcome(error="no room")) == "ended with no room"
    assert found(Outcome(losses, after, [], {"f": "x"}), one) == ""
    assert found(Outcome({**losses, "5": 5.0000001}, after, [], {"f": "x"}), one).startswith("not bit-exact")
    assert found(Outcome(losses, after, [], {"f": "y"}), one).startswith("not bit-exact")
