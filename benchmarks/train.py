"""Real tokens per second of this engine and of a plain transformers loop on the same sequences, A B A B.

    OMP_NUM_THREADS=2 python benchmarks/train.py --models bert-small bert-base --texts half full --output results.json

Ours is the DeepSpeed engine as the trainer drives it (packed rows, targets gathered before the head, clipping, AdamW),
collating and masking inside the timed step. The baseline is transformers' model class on padded tensors that lie ready,
with SDPA, torch's fused AdamW and the same clipping; bf16 there is autocast. Dropout is equal on both sides:
hidden 0.1, and each of --attention_dropout. Half-filled text has uniform lengths, drawn in pairs that sum up to a row's
length, so that half of a padded batch is padding. All sides run in one process, round by round. Only real tokens count.
Needs transformers. benchmarks/models.py is for GPUs, and for what each technique gives.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.model_cases import ON_CPU, TEXTS, Case, make_objective, make_rows
from benchmarks.model_sides import Side, Stepper, build_side
from engine.data.rows import Row
from engine.train.distributed import init_distributed

PROGRAMS, PRECISIONS = ("ours", "transformers"), ("fp32", "bf16")


def timed(stepper: Stepper, steps: Sequence[Sequence[Row]], device: torch.device) -> float:
    """Seconds for all steps."""
    begun = time.perf_counter()
    for rows in steps:
        stepper.step(stepper.batch(rows))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure(case: Case, text: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Interleave the sides round by round; speeds are medians, ratios are medians of each round's ratio."""
    objective, _ = make_objective(case)
    steps = make_rows(case, text, options.steps, objective.sequence_layout.per_sequence, together=False)
    tokens = sum(objective.collate(rows).num_tokens for rows in steps)
    sides: dict[str, Stepper] = {}
    for precision in options.precisions:
        for program in PROGRAMS:
            name = f"{program} {precision}"
            sides[name] = build_side(Side(name=name, program=program, precision=precision), case, device)
    for stepper in sides.values():
        timed(stepper, steps, device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, stepper in sides.items():
            seconds[name].append(timed(stepper, steps, device))
        print(f"{case.model} {text}: round {number + 1} of {options.rounds}", file=sys.stderr)
    speed = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    ratios = {
        f"{ours} / {theirs}": statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))
        for ours in sides
        for theirs in sides
        if ours.startswith("ours") and theirs.startswith("transformers")
    }
    share = tokens / (case.rows * case.length * options.steps)
    facts = {key: value for key, value in asdict(case).items() if key != "texts"}
    return {
        **facts, "text": text, "real_share": share,
        "tokens_per_second": speed, "ratios": ratios, "rounds": options.rounds,
    }  # fmt: skip


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: times as fast as the loop in fp32 and in bf16."""
    lines = [
        "| model, length, text | attention dropout | ours bf16 | / plain fp32 | / plain bf16 |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        what = f"{result['model']}, {result['length']}, {result['text']}"
        speed = result["tokens_per_second"].get("ours bf16")
        gains = [result["ratios"].get(f"ours bf16 / transformers {precision}") for precision in PRECISIONS]
        cells = ["" if gain is None else f"{gain:.2f}" for gain in gains]
        tokens = "" if speed is None else f"{speed:,.0f}"
        lines.append(f"| {what} | {result['attention_dropout']} | {tokens} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bert-tiny", "bert-small", "bert-base", "gpt2"], choices=ON_CPU)
    parser.add_argument("--texts", nargs="+", default=["half", "full"], choices=TEXTS)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--attention_dropout", nargs="+", type=float, default=[0.0])
    parser.add_argument("--steps", type=int, default=2, help="steps of a round and side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="JSON file of all results")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    device = init_distributed()
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
    }
    results: list[dict[str, Any]] = []
    for name in options.models:
        for text in options.texts:
            for dropout in options.attention_dropout:
                case = replace(ON_CPU[name], attention_dropout=dropout)
                results.append({**measure(case, text, options, device), **machine})
                print(json.dumps(results[-1]), flush=True)
                if options.output:
                    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
