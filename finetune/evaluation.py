"""Measure a model on a labelled file; the figures are the same whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import torch

from engine.train.distributed import gather_objects
from engine.train.evaluate import Runner, held_out_turns
from finetune.source import ExampleSource


def evaluate(
    runner: Runner, source: ExampleSource, num_examples: int, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Loss and metrics on the first examples of a file; all ranks must call it.

    Args:
        runner: of the model, with the weights in place.
        source: the file's examples, with their task.
        num_examples: how many of them; 0 for all.
        batch_size: examples per forward call.
        device: where the model is.
    """
    measured = {}
    for samples, counts in held_out_turns(source, num_examples, batch_size):
        rows = runner.run(source.task.measure, source.held_out(samples).to(device))
        if counts:
            measured[samples.start] = rows
    together = {start: rows for part in gather_objects(measured) for start, rows in part.items()}
    table = np.concatenate([together[start] for start in sorted(together)])
    return source.task.figures(table, source.examples.targets[: len(table)])
