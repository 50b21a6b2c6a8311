"""Measure a model on a labelled file; the figures are the same whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from engine.train.distributed import gather_objects
from engine.train.evaluate import Runner, held_out_turns
from finetune.tasks.base import Example
from finetune.training.source import ExampleSource


def run_outputs(
    runner: Runner, source: ExampleSource, num_records: int, batch_size: int, device: torch.device
) -> list[Any]:
    """The outputs of the examples of the first records of a file, in its order, on every rank; all ranks must call it.

    Args:
        runner: of the model, with the weights in place.
        source: the file's examples, with their task.
        num_records: how many of the file's records, of each part; 0 for all.
        batch_size: examples per forward call.
        device: where the model is.
    """
    return [
        output
        for part in source.parts()
        for output in _outputs_of_part(runner, part, len(part.first(num_records)), batch_size, device)
    ]


def first_examples(source: ExampleSource, num_records: int) -> list[Example]:
    """Those whose outputs ``run_outputs`` returns."""
    return [example for part in source.parts() for example in part.first(num_records)]


def _outputs_of_part(
    runner: Runner, source: ExampleSource, num_examples: int, batch_size: int, device: torch.device
) -> list[Any]:
    found: dict[int, list[Any]] = {}
    for samples, counts in held_out_turns(source, num_examples, batch_size):
        examples = source.examples[samples.start : samples.stop]
        function = partial(source.task.outputs, examples=examples)
        outputs = runner.run(function, source.held_out(samples).to(device))
        if counts:
            found[samples.start] = outputs
    together = {start: outputs for part in gather_objects(found) for start, outputs in part.items()}
    return [output for start in sorted(together) for output in together[start]]


def evaluate(
    runner: Runner,
    source: ExampleSource,
    records: Sequence[Any],
    num_records: int,
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """Loss and metrics on the first records of a dev file, on which the task chooses what it chooses.

    All ranks must call it.

    Args:
        runner: of the model, with the weights in place.
        source: the file's examples, with their task.
        records: that the examples were made of.
        num_records: how many of them, of each part; 0 for all.
        batch_size: examples per forward call.
        device: where the model is.
    """
    outputs = run_outputs(runner, source, num_records, batch_size, device)
    measured = first_examples(source, num_records)
    source.task.tune(outputs, measured, records)
    return source.task.figures(outputs, measured, records)
