"""Training of a small model under DeepSpeed by every optimizer and stage, on the ranks of one process group."""

from __future__ import annotations

import contextlib
import gc
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint.files import write_tensors
from engine.checkpoint.state import snapshot
from engine.config.arch import ArchConfig
from engine.config.deepspeed_json import Device, complete_deepspeed_config
from engine.config.optimizer import OptimizerConfig
from engine.config.train import BatchShape
from engine.data.batch import PackedBatch, Targets, pack
from engine.models.heads import CausalLMHead
from engine.models.model import Model, build_model
from engine.objectives.base import Vocabulary
from engine.objectives.lm import CausalLM
from engine.optim import muon
from engine.optim.build import bind_optimizer, build_optimizer, describe
from engine.train.zero import ZeroEngine

STEPS, MICRO_BATCHES, CLIP = 5, 4, 0.5
ARCH = ArchConfig(
    vocab_size=53, hidden_size=24, num_layers=2, num_heads=2, intermediate_size=41, max_positions=19, causal=True,
    norm_position="pre", embedding_norm=False, num_segments=0, hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
# The bias of keys has no gradient but rounding noise, which Adam's like would blow up to whole steps.
FROZEN = ["*.position.weight", "encoder.layers.?.attention.qkv.bias"]
CONFIGS = {
    name: OptimizerConfig(name=name, lr=lr, weight_decay=0.1, freeze=FROZEN, layer_decay=0.8, **more)
    for name, lr, more in (
        ("adamw", 1e-2, {"eps": 1e-6, "decay_exclude": ["encoder.embeddings.word.*"]}),
        ("lamb", 2e-2, {"trust_clamp": (0.105, 0.22), "decay_exclude": ["encoder.layers.1.mlp.up.weight"]}),
        ("lion", 2e-3, {}),
        ("adafactor", 1e-2, {"eps": 1e-12}),
        ("muon", 1e-2, {"eps": 1e-6}),
    )
}


def rate(config: OptimizerConfig, step: int) -> float:
    """A warmup of two steps, then a decay."""
    return config.lr * min(1.0, (step + 1) / 2) * 0.9**step


def first_model() -> Model:
    """The model with its first weights; larger than usual, so that the trust ratio differs between parameters."""
    return build_model(replace(ARCH, init_std=0.1), {"lm": CausalLMHead(ARCH)}, seed=3)


def micro_batches(step: int) -> list[PackedBatch]:
    """The micro-batches of a step, of uneven lengths."""
    generator = np.random.default_rng([7, step])
    batches = []
    for _ in range(MICRO_BATCHES):
        batch = pack([generator.integers(0, 53, size) for size in generator.integers(3, 19, 3)])
        keep = np.ones(batch.num_tokens, bool)
        keep[batch.layout.cu_seqlens[1:].numpy() - 1] = False
        index = torch.from_numpy(np.flatnonzero(keep))
        targets = {"lm": Targets(index, batch.tokens[index + 1])}
        batches.append(replace(batch, targets=targets, counts={"lm": len(index)}))
    return batches


def make_engine(config: OptimizerConfig, stage: int, **more: Any) -> ZeroEngine:
    """An engine whose partitions and sub-groups cut through parameters."""
    ranks = torch.distributed.get_world_size()
    zero = {"stage": stage, **more.pop("zero", {})}
    if stage:
        zero |= {"reduce_bucket_size": 3000, "allgather_bucket_size": 5000}
    if stage == 3:
        zero |= {"sub_group_size": 1500, "stage3_param_persistence_threshold": 50}
    tree = {"gradient_clipping": CLIP, "zero_optimization": zero, **more}
    shape = BatchShape(MICRO_BATCHES, 1, ranks)
    settings = complete_deepspeed_config(tree, shape, Device("cpu", has_bf16=True))
    settings.config["zero_force_ds_cpu_optimizer"] = False
    model = first_model()
    objective = CausalLM(Vocabulary(53, {"bos": 0, "eos": 1}, np.zeros(53, bool), np.zeros(53, bool)))
    optimizer = build_optimizer(model, config, settings)
    with contextlib.redirect_stdout(io.StringIO()):
        engine = ZeroEngine(model, objective, optimizer, settings)
    bind_optimizer(engine.deepspeed, model)
    return engine


def take_steps(engine: ZeroEngine, config: OptimizerConfig, steps: range) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of some steps."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    losses, norms = [], []
    for step in steps:
        batches = micro_batches(step)
        count = sum(batch.counts["lm"] for batch in batches)
        mine = batches[rank::ranks]
        engine.apply(config.completed(), rate(config, step))
        total = torch.zeros((), dtype=torch.float64)
        for number, batch in enumerate(mine):
            terms = engine.micro_step(batch, {"lm": torch.tensor(float(count))}, last=number == len(mine) - 1)
            total += terms["lm"].loss_sum.detach().double()
        torch.distributed.all_reduce(total)
        losses.append(float(total) / count)
        norms.append(engine.gradient_norm())
    return losses, norms


def weights(engine: ZeroEngine) -> dict[str, Tensor]:
    """This rank's fragments of weights and states."""
    tensors, _ = snapshot(engine.deepspeed, engine.model)
    return tensors


def run_here(folder: Path) -> dict[str, Any]:
    """The runs that ``runs.json`` names, as (name, optimizer, stage, further settings).

    The setting ``partitions`` is the mistake that the references are there to catch: norms of what a rank holds;
    ``backend`` is that of the optimizer.
    """
    torch.set_num_threads(1)
    muon.BUCKET_ELEMENTS = 2500  # several buckets, of one and of several matrices
    found = {}
    for name, optimizer, stage, more in json.loads((folder / "runs.json").read_text()):
        partitions = more.pop("partitions", False)
        config = replace(CONFIGS[optimizer], backend=more.pop("backend", "auto"))
        engine = make_engine(config, stage, **more)
        if partitions:
            engine.optimizer.sharded = False
        losses, norms = take_steps(engine, config, range(STEPS))
        found[name] = {"losses": losses, "norms": norms, "optimizer": describe(engine.optimizer)}
        (folder / name).mkdir(exist_ok=True)
        write_tensors(folder / name / f"rank-{torch.distributed.get_rank()}.safetensors", weights(engine))
        del engine
        gc.collect()
    return found
