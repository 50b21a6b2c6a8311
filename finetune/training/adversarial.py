"""Adversarial training (Miyato et al. 2017, arXiv:1605.07725; Madry et al. 2018, arXiv:1706.06083) of any task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.data.batch import PackedBatch
from engine.models.layout import PackedLayout
from engine.models.model import Model
from engine.objectives.base import LossTerm, Objective
from finetune.config.techniques import AdversarialConfig

FP16_SCALE = 256.0  # of the loss, whose gradient in fp16 would be subnormal in many places

# N tokens in the packed batch, S sequences, D hidden_size


class Offsets:
    """What is added to the vectors that enter the first layer: [N, D] for each call of the encoder in a pass.

    A task may call the encoder several times, in the same order in every pass.
    """

    def __init__(self) -> None:
        self.layouts: list[PackedLayout] = []
        self.values: list[Tensor] = []
        self.read: list[Tensor] = []  # in the pass that goes on, as the graph knows them
        self.learns = False

    @contextmanager
    def applied(self, model: Model, learns: bool) -> Iterator[None]:
        """A pass with the offsets, whose gradient is asked for where ``learns``."""
        self.read, self.learns = [], learns
        model.encoder.perturb = self._perturb
        try:
            yield
        finally:
            model.encoder.perturb = None

    def _perturb(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        number = len(self.read)
        if number == len(self.values):
            self.values.append(torch.zeros_like(hidden, dtype=torch.float32))
            self.layouts.append(layout)
        self.read.append(self.values[number].to(hidden.dtype).detach().clone().requires_grad_(self.learns))
        return hidden + self.read[number]

    @torch.no_grad()
    def climb(self, loss: Tensor, epsilon: float, step: float, keep_graph: bool) -> None:
        """Move each sequence's offset by ``step`` along the gradient of a loss, and back into the ball of ``epsilon``.

        Args:
            loss: scalar, of the pass that has just been.
            epsilon: largest L2 norm of a sequence's offset.
            step: L2 norm of the move.
            keep_graph: whether the loss is differentiated once more.
        """
        scale = FP16_SCALE if self.read[0].dtype == torch.float16 else 1.0
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss * scale, self.read, retain_graph=keep_graph)
        for number, (gradient, layout) in enumerate(zip(gradients, self.layouts, strict=True)):
            upward = torch.nan_to_num(gradient.float(), 0.0, 0.0, 0.0)
            norms = sequence_norms(upward, layout)
            move = torch.where(norms > 0, upward * (step / norms), 0.0)  # none without a gradient
            moved = self.values[number] + move
            self.values[number] = moved * (epsilon / sequence_norms(moved, layout).clamp(min=epsilon))


def sequence_norms(vectors: Tensor, layout: PackedLayout) -> Tensor:
    """L2 norm of all vectors of a token's sequence, for each token: [N, D] to [N, 1]; filler is one sequence more."""
    places = torch.arange(len(vectors), device=vectors.device, dtype=layout.cu_seqlens.dtype)
    sequences = torch.searchsorted(layout.cu_seqlens[1:], places, right=True)  # [N], S for filler
    sums = vectors.new_zeros(len(layout.cu_seqlens)).index_add_(0, sequences, vectors.square().sum(-1))  # [S + 1]
    return sums.sqrt()[sequences].unsqueeze(1)


class AdversarialObjective:
    """The mean of a task's loss on texts as they are and on texts whose vectors an attack has moved.

    The attack climbs the loss by its gradient with respect to the vectors that enter the first layer. It is a part of
    the forward pass, which asks autograd for that gradient alone: no weight's gradient is touched, so that ZeRO,
    accumulation and ranks see one loss. Each sequence has an offset of its own, whatever is packed beside it.
    """

    def __init__(self, task: Objective, config: AdversarialConfig) -> None:
        self.task, self.name = task, task.name
        self.epsilon, (self.steps, self.step_size) = config.epsilon, config.attack

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Run the task two times and more: steps + 1, at ZeRO stage 3 or compiled steps + 2."""
        offsets = Offsets()
        clean = self._attacked_once(model, batch, offsets)
        for _ in range(self.steps - 1):
            with offsets.applied(model, learns=True):
                terms = self.task.losses(model, batch)
            offsets.climb(_whole(terms), self.epsilon, self.step_size, keep_graph=False)
        with offsets.applied(model, learns=False):
            moved = self.task.losses(model, batch)
        return {
            name: term._replace(loss_sum=(term.loss_sum + moved[name].loss_sum) / 2) for name, term in clean.items()
        }

    def _attacked_once(self, model: Model, batch: PackedBatch, offsets: Offsets) -> dict[str, LossTerm]:
        """Losses on the texts as they are, and the first step of the attack.

        Where DeepSpeed gathers divided weights it counts on one backward pass through a graph, and so does compiled
        code, which reuses the memory of what it saved: there the step has a pass of its own, with the same dropout.
        """
        divided = hasattr(model.word_embedding, "ds_id") or model.encoder.compiled
        devices = [torch.cuda.current_device()] if model.word_embedding.is_cuda else []
        with torch.random.fork_rng(devices, enabled=divided), offsets.applied(model, learns=True):
            clean = self.task.losses(model, batch)
        offsets.climb(_whole(clean), self.epsilon, self.step_size, keep_graph=not divided)
        return self.task.losses(model, batch) if divided else clean


def _whole(terms: Mapping[str, LossTerm]) -> Tensor:
    """The weighted sum of the terms' means, in multiples of the mean with most targets: its gradient is not tiny."""
    most = max(term.num_targets for term in terms.values())
    parts = [term.weight * term.loss_sum * (most / max(1, term.num_targets)) for term in terms.values()]
    return torch.stack(parts).sum()
