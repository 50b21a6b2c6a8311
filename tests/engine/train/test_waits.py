"""How often a step makes the host wait for the device: counted, on a CPU by what would wait on a GPU."""

from __future__ import annotations

import collections
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.train.lagging import LaggingFlag
from kernels import optimizer as kernels
from tests import commands
from tests.engine.ranks import run_ranks
from tests.engine.train.zero_layouts import FP32_SUMS, ROWS, Layout, begin, build, make_batch, rows, train

MODULE = "tests.engine.train.test_waits"
# What reads a tensor's elements on the host, and what makes a tensor of Python's numbers, which is copied to a GPU from
# memory that is not pinned.
WAITS = (
    "_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "unique_dim",
    "unique_consecutive", "_unique2", "repeat_interleave", "lift_fresh",
)  # fmt: skip
IMMEDIATE = (("bf16", {"immediate_grad_update": True}),)


class Fused(torch.optim.AdamW):
    """As the engine builds it; without fusion torch's reads its count of steps on a CPU."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr, fused=True)


# The layout, what is asked of the device in a step, and in one that lags.
CASES = [
    (Layout(0, optimizer=Fused), 1, 0),
    (Layout(0, "bf16", top=FP32_SUMS, optimizer=Fused), 1, 0),
    (Layout(1, "bf16", top=FP32_SUMS + IMMEDIATE, optimizer=Fused), 1, 0),
    (Layout(2, "bf16", top=FP32_SUMS, optimizer=Fused), 1, 0),
    (Layout(2, "bf16", optimizer=Fused), 1, 0),
    (Layout(2, optimizer=Fused), 1, 1),
    (Layout(0, clip=0.0, optimizer=Fused), 1, 0),
    (Layout(0, "bf16", top=FP32_SUMS, optimizer=kernels.AdamW), 1, 0),
    (Layout(2, "bf16", top=FP32_SUMS, optimizer=kernels.AdamW), 1, 0),
    (Layout(2, "bf16", top=FP32_SUMS, clip=0.0, optimizer=Fused), 1, 0),
]


class Waits(TorchDispatchMode):
    """Counts the operations that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::").partition(".")[0]
        if name in WAITS:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def count_synchronizations(found: collections.Counter[str]) -> None:
    """Count DeepSpeed's waits for all that the device was asked to do, which a CPU does without an operation."""
    from deepspeed.accelerator import get_accelerator

    accelerator = type(get_accelerator())
    right = accelerator.synchronize

    def synchronize(self: Any, device_index: Any = None) -> Any:
        found["synchronize"] += 1
        return right(self, device_index)

    accelerator.synchronize = synchronize


def counted(folder: Path) -> list[list[dict[str, int]]]:
    """What each layout asks in its fourth step, of two micro-batches: as it is, and lagging."""
    begin()
    synchronizations: collections.Counter[str] = collections.Counter()
    count_synchronizations(synchronizations)
    result = []
    for layout, _, _ in CASES:
        of_layout = []
        for lags in (False, True):
            engine = build(layout, folder, lags=lags)
            train(engine, range(3))
            tokens, chosen = rows(3)
            halves = [slice(0, ROWS // 2), slice(ROWS // 2, ROWS)]
            batches = [make_batch(tokens[half], chosen[half]) for half in halves]
            counts = {"mlm": torch.tensor(float(sum(map(len, chosen))))}
            synchronizations.clear()
            with Waits() as waits:
                for number, batch in enumerate(batches):
                    engine.micro_step(batch, counts, last=number == 1)
            assert not engine.was_not_finite(newest=True)
            of_layout.append(dict(waits.found + synchronizations))
        result.append(of_layout)
    return result


def test_a_step_asks_once_or_never(tmp_path):
    (found,) = run_ranks(MODULE, "counted", tmp_path, ranks=1)
    for (layout, waits, lagging), of_layout in zip(CASES, found, strict=True):
        expected = [{"_local_scalar_dense": count} if count else {} for count in (waits, lagging)]
        assert of_layout == expected, layout


def same_curves(folder: Path) -> list[Any]:
    """Losses of each layout, asking and lagging."""
    begin()
    return [[train(build(layout, folder, lags=lags), range(4)) for lags in (False, True)] for layout, _, _ in CASES]


def test_steps_that_lag_compute_the_same(tmp_path):
    for found in run_ranks(MODULE, "same_curves", tmp_path, ranks=2):
        assert all(asking == lagging for asking, lagging in found)


def spoilt(folder: Path) -> list[list[bool]]:
    """Whether each layout tells of a gradient that is not finite after the step, one step later, or when asked."""
    begin()
    result = []
    for layout, _, lagging in CASES:
        if lagging:
            continue
        told = []
        for ask in (False, True):
            engine = build(layout, folder, lags=True)
            train(engine, range(2))
            assert not engine.was_not_finite(newest=True)
            train(engine, [2], poison=2)
            told.append(engine.was_not_finite(newest=ask))
            train(engine, [3])
            told.append(engine.was_not_finite())
        result.append(told)
    return result


def test_a_gradient_that_is_not_finite_is_told_of_a_step_later(tmp_path):
    for found in run_ranks(MODULE, "spoilt", tmp_path, ranks=2):
        assert found == [[False, True, True, True]] * 9


@pytest.mark.parametrize(("lags", "expected"), [(True, [False, False, True, True]), (False, [False, True, True, True])])
def test_a_flag_lags_by_one_update(lags, expected):
    flag, seen = LaggingFlag(torch.device("cpu"), lags), []
    for value in (0.0, 2.0, 0.0, 0.0):
        flag.update(torch.tensor(value))
        seen.append(flag.is_set())
    assert seen == expected
    flag = LaggingFlag(torch.device("cpu"), True)
    flag.update(torch.tensor(1.0))
    assert not flag.is_set()
    flag.settle()
    assert flag.is_set()


SCRIPT = """
    import collections, json
    import engine.train.run
    from engine.train.trainer import Trainer
    from tests.engine.train.test_waits import Waits, count_synchronizations
    engine.train.run._may_lag = lambda train: {lags}
    right, synchronizations = Trainer._take_step, collections.Counter()
    count_synchronizations(synchronizations)
    def take_step(self, work):
        synchronizations.clear()
        with Waits() as waits:
            right(self, work)
        print("WAITS", json.dumps(waits.found + synchronizations), flush=True)
    Trainer._take_step = take_step
"""
POISON = """
    from engine.objectives.mlm import MaskedLM
    losses, calls = MaskedLM.losses, 0
    def poisoned(self, model, batch, with_accuracy=False):
        global calls
        terms = losses(self, model, batch, with_accuracy)
        calls += model.training
        if model.training and calls == {call}:
            terms["mlm"] = terms["mlm"]._replace(loss_sum=terms["mlm"].loss_sum * float("nan"))
        return terms
    MaskedLM.losses = poisoned
"""


def run(shards: Path, folder: Path, body: str, precision: str, more: Sequence[str] = ()) -> tuple[int, str, list[str]]:
    """A run of 6 steps of 4 micro-batches: exit code, output, and what each step asked of the device."""
    script = folder / "script.py"
    script.write_text(
        f"import sys\nsys.path[0] = {str(commands.REPOSITORY)!r}\n{textwrap.dedent(body)}\n"
        "from engine.config.cli import exit_process\nfrom engine.pretrain import main\nexit_process(main())\n"
    )
    options = [
        "--ds_config", commands.DS_CONFIGS / f"{precision}.json", "--model", "bert-tiny", "--arch.hidden_size", "48",
        "--arch.num_heads", "3", "--arch.intermediate_size", "100", "--data.shards", shards, "--data.seq_length", "64",
        "--train.output", folder / "run", "--train.steps", "6", "--train.batch_size", "8", "--train.micro_batch_size",
        "2", "--train.log_every", "3", "--train.save_every", "2", "--train.eval_every", "0", "--train.eval_rows", "8",
        "--train.tensorboard", "false", "--train.fixed_shapes", "true", *more,
    ]  # fmt: skip
    done = commands.run(script, options)
    lines = [line.partition("WAITS ")[2] for line in done.stdout.splitlines() if "WAITS" in line]
    return done.returncode, done.stdout, lines


@pytest.mark.parametrize(("precision", "lags"), [("fp32", True), ("fp32", False), ("zero2_bf16", True)])
def test_a_step_of_a_run(precision, lags, shards, tmp_path):
    """With its batches, counts and flags: nothing but the one question, and the counts, which are copied from pinned
    memory on a GPU."""
    code, output, lines = run(shards, tmp_path, SCRIPT.format(lags=lags), precision)
    assert code == 0, output
    expected = {"lift_fresh": 1} if lags else {"lift_fresh": 1, "_local_scalar_dense": 1}
    assert list(map(json.loads, lines)) == [expected] * 6


@pytest.mark.parametrize(("step", "seen_in"), [(3, 3), (5, 6)])
def test_a_run_that_lags_stops_before_it_keeps_anything(step, seen_in, shards, tmp_path):
    """At a step that is logged at once, else in the next one; the message is that of a run that does not lag."""
    body = SCRIPT.format(lags=True) + POISON.format(call=4 * (step - 1) + 2)
    code, output, lines = run(shards, tmp_path, body, "fp32", ("--train.save_every", "4"))
    assert code == 2, output
    assert f"step {step}: the loss of micro-batch 1 is not finite (rows of 64 tokens: " in output
    assert len(lines) == seen_in - (seen_in > step)  # the step in which it is seen ends early
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved[-1] == ("step-0" if step == 3 else "step-4")
    assert (tmp_path / "run" / "metrics.jsonl").exists() == (step == 5)  # the line of step 3
    assert step == 3 or [line["step"] for line in commands.metrics(tmp_path / "run")] == [3, 4]
