"""Mean loss and accuracy on held-out samples, the same whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

from engine.data.batch import PackedBatch
from engine.data.source import HeldOutSource
from engine.models.model import Model
from engine.objectives.base import LossTerm, Objective, perplexity_of
from engine.train.distributed import all_reduce_sum, global_rank, world_size

T = TypeVar("T")


class Runner(Protocol):
    """Runs functions of a model: under ZeRO stage 3 its weights are whole only inside DeepSpeed's own forward call."""

    def run(self, function: Callable[[Model, PackedBatch], T], batch: PackedBatch) -> T:
        """The function's result for a batch, without dropout and gradients; all ranks must call it."""
        ...


class ModelRunner:
    """Runs functions of a model that is whole in memory."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, function: Callable[[Model, PackedBatch], T], batch: PackedBatch) -> T:
        """The function's result for a batch, without dropout and gradients."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            result = function(self.model, batch)
        self.model.train(was_training)
        return result


def evaluate(
    runner: Runner, objective: Objective, source: HeldOutSource, num_samples: int, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Evaluate a model on the first samples of a source; all ranks must call it.

    Args:
        runner: of the model, with the weights in place.
        objective: what is measured.
        source: held-out samples.
        num_samples: how many of them; 0 for all.
        batch_size: samples per forward call.
        device: where the model is.

    Returns:
        ``loss`` (the weighted mean over all targets), ``loss_TERM`` and ``accuracy_TERM`` of each term (``accuracy``
        alone where there is one term), ``perplexity`` where a term predicts tokens, and ``num_targets``.
    """
    sums: dict[str, list[float]] = {}
    weights: dict[str, float] = {}

    def losses(model: Model, batch: PackedBatch) -> dict[str, LossTerm]:
        return objective.losses(model, batch, with_accuracy=True)

    for samples, counts in held_out_turns(source, num_samples, batch_size):
        for name, term in runner.run(losses, source.held_out(samples).to(device)).items():
            correct = 0.0 if term.correct is None else float(term.correct)
            row = [float(term.loss_sum), term.num_targets, correct] if counts else [0.0, 0, 0.0]
            sums[name] = [a + b for a, b in zip(sums.get(name, [0.0, 0, 0.0]), row, strict=True)]
            weights[name] = term.weight
    return _means(sums, weights, device)


def held_out_turns(source: HeldOutSource, num_samples: int, batch_size: int) -> Iterator[tuple[range, bool]]:
    """The samples of each forward call of this rank, and whether they count.

    Batch b runs on rank b mod ranks; every rank makes equally many forward calls, those without a batch left over
    repeat the last one and count it as nothing.
    """
    total = min(num_samples or source.num_samples, source.num_samples)
    num_batches = -(-total // batch_size)
    rank, ranks = global_rank(), world_size()
    for turn in range(-(-num_batches // ranks)):
        first = min(turn * ranks + rank, num_batches - 1) * batch_size
        yield range(first, min(first + batch_size, total)), turn * ranks + rank < num_batches


def _means(sums: dict[str, list[float]], weights: dict[str, float], device: torch.device) -> dict[str, float]:
    names = sorted(sums)
    reduced = all_reduce_sum([value for name in names for value in sums[name]], device).view(-1, 3).tolist()
    result = {"loss": 0.0, "num_targets": 0.0}
    means: dict[str, float] = {}
    for name, (loss_sum, count, correct) in zip(names, reduced, strict=True):
        means[name] = loss_sum / max(count, 1.0)
        result["loss"] += weights[name] * means[name]
        result["num_targets"] += count
        if len(names) > 1:
            result[f"loss_{name}"] = means[name]
        result["accuracy" if len(names) == 1 else f"accuracy_{name}"] = correct / max(count, 1.0)
    return result | perplexity_of(means)
