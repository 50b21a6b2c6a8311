"""Small engines of every layout, trained by a loop that a plain PyTorch loop can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.checkpoint.files import CheckpointManifest, write_tensors
from engine.checkpoint.state import model_shapes, model_snapshot, restore, snapshot
from engine.config.arch import ArchConfig
from engine.config.deepspeed_json import DeepSpeedSettings, Device, complete_deepspeed_config, deepspeed_problems
from engine.config.train import BatchShape
from engine.data.batch import PackedBatch, Targets, pack
from engine.models.heads import MaskedLMHead
from engine.models.model import Model, build_model
from engine.objectives.base import LossTerm, cross_entropy_term, encode
from engine.train.distributed import gather_objects, init_distributed
from engine.train.zero import ZeroEngine

CLIP, RATE, ROWS = 0.5, 3e-3, 12
ARCH = ArchConfig(
    vocab_size=101,
    hidden_size=24,
    num_layers=2,
    num_heads=3,
    intermediate_size=53,
    max_positions=17,
    hidden_dropout=0.0,
)
FROZEN = "encoder.embeddings.position.weight"


class Objective:
    """Masked tokens whose targets come with the batch."""

    name = "mlm"

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        target = batch.targets["mlm"]
        logits = model.heads["mlm"](encode(model, batch)[target.index], model.word_embedding)
        return {"mlm": cross_entropy_term(logits, target.labels, batch.counts["mlm"], with_accuracy)}


@dataclass(frozen=True)
class Layout:
    """How a small engine computes."""

    stage: int
    precision: str = "fp32"
    accumulation: int = 2
    zero: tuple[tuple[str, Any], ...] = ()
    top: tuple[tuple[str, Any], ...] = ()
    frozen: bool = False
    clip: float = CLIP
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW

    def settings(self, ranks: int) -> DeepSpeedSettings:
        """The checked and completed DeepSpeed configuration."""
        tree: dict[str, Any] = {"gradient_clipping": self.clip, "zero_optimization": {"stage": self.stage}}
        if self.precision != "fp32":
            tree[self.precision] = {"enabled": True}
        for key, value in self.top:
            tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) else value
        tree["zero_optimization"] |= dict(self.zero)
        shape = BatchShape(ROWS, ROWS // ranks // self.accumulation, ranks)
        device = Device("cpu", has_bf16=True, has_fp16=True)
        assert not (found := deepspeed_problems(tree, "test", shape, device)), found
        return complete_deepspeed_config(tree, shape, device)


FP32_SUMS = (("data_types", {"grad_accum_dtype": "fp32"}), ("communication_data_type", "fp32"))


def tiny_model(seed: int = 0, frozen: bool = False, arch: ArchConfig = ARCH) -> Model:
    """A BERT with a tied decoder, odd sizes and perhaps a frozen table."""
    model = build_model(arch, {"mlm": MaskedLMHead(arch)}, seed)
    model.get_parameter(FROZEN).requires_grad_(not frozen)
    return model


def groups(model: nn.Module, decay: float = 0.1) -> list[dict[str, Any]]:
    """Matrices that decay, and vectors that do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]


def begin() -> None:
    """What every rank does first."""
    torch.set_num_threads(1)
    init_distributed()


def build(layout: Layout, folder: Path, seed: int = 0, arch: ArchConfig = ARCH, lags: bool = False) -> ZeroEngine:
    """An engine that has taken no step; like every run it starts by loading a checkpoint."""
    model = tiny_model(seed, layout.frozen, arch)
    shapes, weights = model_shapes(model), model_snapshot(model)
    optimizer = layout.optimizer(groups(model), lr=RATE)
    engine = ZeroEngine(model, Objective(), optimizer, layout.settings(torch.distributed.get_world_size()), lags)
    file = f"initial-{torch.distributed.get_rank()}.safetensors"
    manifest = CheckpointManifest(0, shapes, {}, {}, {file: write_tensors(folder / file, weights)})
    restore(engine.deepspeed, model, folder, manifest)
    return engine


def save(engine: ZeroEngine, folder: Path, step: int) -> CheckpointManifest:
    """A checkpoint of all ranks without the rest of a run."""
    tensors, optimizer = snapshot(engine.deepspeed, engine.model)
    file = f"step-{step}-{torch.distributed.get_rank()}.safetensors"
    files = gather_objects((file, write_tensors(folder / file, tensors)))
    return CheckpointManifest(step, model_shapes(engine.model), optimizer, {}, dict(files))


def rows(step: int, arch: ArchConfig = ARCH) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The token sequences of a step and the positions that are predicted, unequally many in each."""
    draw = np.random.default_rng(step)
    lengths = draw.integers(5, arch.max_positions + 1, ROWS)
    tokens = [draw.integers(0, arch.vocab_size, n) for n in lengths]
    return tokens, [np.flatnonzero(draw.random(n) < draw.uniform(0.2, 0.9)) for n in lengths]


def make_batch(tokens: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> PackedBatch:
    """Pack sequences; the label of a chosen position is its own token times 3, modulo 97."""
    batch = pack(tokens)
    starts = np.cumsum([0, *map(len, tokens)])[:-1]
    index = np.concatenate([at + start for at, start in zip(chosen, starts, strict=True)])
    labels = np.concatenate([t[at] * 3 % 97 for t, at in zip(tokens, chosen, strict=True)])
    batch.targets["mlm"] = Targets(torch.from_numpy(index), torch.from_numpy(labels))
    batch.counts["mlm"] = len(index)
    return batch


def train(
    engine: ZeroEngine,
    steps: Sequence[int],
    accumulation: Sequence[int] | int = 2,
    poison: int | None = None,
    arch: ArchConfig = ARCH,
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of steps; accumulation may differ from step to step."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    losses, norms = [], []
    for number, step in enumerate(steps):
        tokens, chosen = rows(step, arch)
        share = slice(ROWS // ranks * rank, ROWS // ranks * (rank + 1))
        targets = sum(map(len, chosen))
        parts = accumulation if isinstance(accumulation, int) else accumulation[number]
        size = ROWS // ranks // parts
        loss = torch.zeros(1, dtype=torch.float64)
        for part in range(parts):
            cut = slice(part * size, (part + 1) * size)
            batch = make_batch(tokens[share][cut], chosen[share][cut])
            counts = {"mlm": torch.tensor(float(targets) if step != poison else float("nan"))}
            terms = engine.micro_step(batch, counts, last=part == parts - 1)
            loss += terms["mlm"].loss_sum.detach().double()
        torch.distributed.all_reduce(loss)
        losses.append(float(loss) / targets)
        norms.append(engine.gradient_norm())
    return losses, norms


def plain_loop(steps: Sequence[int], dtype: torch.dtype = torch.float64, frozen: bool = False) -> list[list[float]]:
    """The same training without DeepSpeed, on one rank, in one batch: losses and norms."""
    model = tiny_model(0, frozen).to(dtype)
    optimizer = torch.optim.AdamW(groups(model), lr=RATE)
    losses, norms = [], []
    for step in steps:
        batch = make_batch(*rows(step))
        target = batch.targets["mlm"]
        logits = model.heads["mlm"](encode(model, batch)[target.index], model.word_embedding)
        loss = nn.functional.cross_entropy(logits, target.labels)
        loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        norms.append(float(nn.utils.clip_grad_norm_(trained, CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return [losses, norms]
