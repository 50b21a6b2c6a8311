"""Real tokens per second of this engine and of a plain transformers loop on the same sequences, A B A B.

    OMP_NUM_THREADS=2 python benchmarks/train.py --models bert-small bert-base --fill half full --output results.json

Ours is the DeepSpeed engine as the trainer drives it (packed rows, targets gathered before the head, gradient clipping,
fused AdamW), collating and masking inside the timed step. The baseline is transformers' model class on padded tensors
that lie ready, with torch's fused AdamW and the same clipping; bf16 there is autocast. Dropout is equal on both sides
(hidden 0.1, attention 0). Half-filled text has lengths uniform in 3..L, drawn in pairs that sum up, so that half of a
padded batch is padding. All sides run in one process, round by round. Only real tokens count. Needs transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from engine.config.arch import ArchConfig
from engine.config.deepspeed_json import complete_deepspeed_config, read_deepspeed_json
from engine.config.masking import MaskingConfig
from engine.config.optimizer import OptimizerConfig
from engine.config.presets import load_preset
from engine.config.train import BatchShape
from engine.data.batch import PackedBatch
from engine.data.rows import Piece, Row
from engine.models.model import build_model
from engine.objectives.base import PretrainingObjective, Vocabulary
from engine.objectives.lm import CausalLM
from engine.objectives.mlm import MaskedLM
from engine.optim.build import build_optimizer
from engine.train.distributed import describe_device, init_distributed
from engine.train.zero import ZeroEngine

ROOT = Path(__file__).resolve().parent.parent
CLIP = 1.0
SEED = 1


@dataclass(frozen=True)
class Case:
    """One model on one kind of text: sequences of at most ``length`` tokens, ``batch_size`` of them in a step."""

    model: str
    length: int
    batch_size: int
    vocab_size: int


CASES = {
    case.model: case
    for case in (
        Case("bert-tiny", 128, 32, 30522),
        Case("bert-small", 128, 16, 30522),
        Case("bert-base", 128, 8, 30522),
        Case("bert-large", 128, 32, 30522),
        Case("gpt2", 256, 4, 50257),
    )
}


def make_rows(case: Case, fill: str, steps: int, specials: int) -> list[list[Row]]:
    """Rows of one random sequence each, in steps; ``specials`` tokens of the length are left for the objective."""
    generator = np.random.default_rng(SEED)
    lowest = case.length if fill == "full" else specials + 1
    rows = []
    for step in range(steps):
        drawn = generator.integers(lowest, case.length + 1, case.batch_size // 2)
        lengths = np.concatenate([drawn, lowest + case.length - drawn]) - specials  # in pairs: half is half
        tokens = [generator.integers(1000, case.vocab_size, size) for size in lengths]
        rows.append([Row((Piece(t, False),), step, number) for number, t in enumerate(tokens)])
    return rows


def make_objective(case: Case) -> tuple[PretrainingObjective, ArchConfig]:
    """The preset's objective over a vocabulary of the usual special tokens."""
    fields, name = load_preset(case.model)
    arch = ArchConfig(**{**fields, "vocab_size": case.vocab_size, "max_positions": max(512, case.length)})
    special = np.zeros(case.vocab_size, np.bool_)
    special[:106] = True
    ids = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103, "bos": 104, "eos": 105}
    vocabulary = Vocabulary(case.vocab_size, ids, special, np.zeros(case.vocab_size, np.bool_))
    return (MaskedLM(MaskingConfig(), vocabulary, SEED) if name == "mlm" else CausalLM(vocabulary)), arch


Step = Callable[[Sequence[Row]], None]


def our_step(case: Case, precision: str, device: torch.device) -> Step:
    """A step of the engine at the precision's DeepSpeed file, on one rank."""
    objective, arch = make_objective(case)
    model = build_model(arch, objective.make_heads(arch), SEED)
    tree = read_deepspeed_json(str(ROOT / "ds_configs" / f"{precision}.json"))
    shape = BatchShape(case.batch_size, case.batch_size, 1)
    settings = complete_deepspeed_config(tree, shape, describe_device())
    engine = ZeroEngine(model, objective, build_optimizer(model, OptimizerConfig()), settings)

    def step(rows: Sequence[Row]) -> None:
        batch = objective.collate(rows)
        torch.manual_seed(SEED)
        counts = {name: torch.tensor(float(count), device=device) for name, count in batch.counts.items()}
        engine.micro_step(batch.to(device), counts, last=True)

    return step


def transformers_step(case: Case, precision: str, device: torch.device) -> Step:
    """A step of the plain loop; batches are padded before the clock runs (on their first use)."""
    import transformers

    objective, arch = make_objective(case)
    model = transformers_model(transformers, case, arch).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    ready: dict[int, dict[str, torch.Tensor]] = {}

    def step(rows: Sequence[Row]) -> None:
        if id(rows) not in ready:
            ready[id(rows)] = padded(objective.collate(rows), objective.name, case.length, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**ready[id(rows)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformers_model(transformers: Any, case: Case, arch: ArchConfig) -> torch.nn.Module:
    """The same architecture as transformers' own class, with its default attention (SDPA)."""
    if arch.causal:
        config = transformers.GPT2Config(
            vocab_size=case.vocab_size, n_positions=arch.max_positions, n_embd=arch.hidden_size,
            n_layer=arch.num_layers, n_head=arch.num_heads, attn_pdrop=0.0, resid_pdrop=arch.hidden_dropout,
            embd_pdrop=arch.hidden_dropout,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    config = transformers.BertConfig(
        vocab_size=case.vocab_size, hidden_size=arch.hidden_size, num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads, intermediate_size=arch.intermediate_size,
        hidden_dropout_prob=arch.hidden_dropout, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def padded(batch: PackedBatch, name: str, length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The packed batch as transformers wants it: [B, L] tokens, mask and labels (-100 where nothing is predicted)."""
    num = len(batch.layout.lengths)
    tokens, mask = torch.zeros(num, length, dtype=torch.int64), torch.zeros(num, length, dtype=torch.int64)
    labels = torch.full((num, length), -100)
    flat = torch.full((batch.num_tokens,), -100)
    if name == "mlm":
        flat[batch.targets[name].index] = batch.targets[name].labels
    else:
        flat = batch.tokens  # transformers shifts by itself
    start = 0
    for number, size in enumerate(batch.layout.lengths):
        tokens[number, :size] = batch.tokens[start : start + size]
        labels[number, :size] = flat[start : start + size]
        mask[number, :size] = 1
        start += size
    return {"input_ids": tokens.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def timed(step: Step, batches: list[list[Row]], device: torch.device) -> float:
    """Seconds for all batches."""
    begun = time.perf_counter()
    for rows in batches:
        step(rows)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure(case: Case, fill: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Interleave the sides round by round; speeds are medians, ratios are medians of each round's ratio."""
    objective, _ = make_objective(case)
    batches = make_rows(case, fill, arguments.steps, objective.sequence_layout.per_sequence)
    tokens = sum(objective.collate(rows).num_tokens for rows in batches)
    sides: dict[str, Step] = {}
    for precision in arguments.precisions:
        sides[f"ours {precision}"] = our_step(case, precision, device)
        sides[f"transformers {precision}"] = transformers_step(case, precision, device)
    for step in sides.values():
        timed(step, batches, device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name, step in sides.items():
            seconds[name].append(timed(step, batches, device))
        print(f"{case.model} {fill}: round {number + 1} of {arguments.rounds}", file=sys.stderr)
    speed = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    ratios = {
        f"{ours} / {theirs}": statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))
        for ours in sides
        for theirs in sides
        if ours.startswith("ours") and theirs.startswith("transformers")
    }
    share = tokens / (case.batch_size * case.length * arguments.steps)
    return {**asdict(case), "fill": fill, "real_share": share, "tokens_per_second": speed, "ratios": ratios}


def main() -> None:
    """Run the cases and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bert-tiny", "bert-small", "bert-base", "gpt2"], choices=CASES)
    parser.add_argument("--fill", nargs="+", default=["half", "full"], choices=["half", "full"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=2, help="steps of a round and side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="JSON file of all results")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    device = init_distributed()
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
    }
    results = []
    for name in arguments.models:
        for fill in arguments.fill:
            results.append({**measure(CASES[name], fill, arguments, device), **machine})
            print(json.dumps(results[-1]), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
