"""A plan as text and as JSON."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from engine.plan.account import PARTS
from engine.plan.duration import GPU_NAMES
from engine.plan.judging import Candidate, rows_of_rank
from engine.plan.planning import FOLDER, Plan
from engine.plan.setting_up import GIB, WHOLE_RUN


def as_json(plan: Plan) -> dict[str, Any]:
    """All figures: bytes, seconds, operations."""
    setup, duration = plan.setup, plan.duration
    return {
        "model": setup.config.model,
        "parameters": plan.parameters,
        "objective": setup.objective,
        "defaults": setup.config.own_defaults(),
        "not_planned": setup.config.not_planned(),
        "vocab_size": setup.arch.vocab_size,
        "gpus": setup.config.gpus,
        "gpu_memory_bytes": int(setup.config.gpu_memory * GIB),
        "room_bytes": setup.room,
        "fits": plan.best.fits,
        "asked": _candidate(plan.asked) if plan.asked else None,
        "asked_fits": plan.asked.fits if plan.asked else None,
        "candidates": [_candidate(candidate) for candidate in plan.candidates],
        "best": _candidate(plan.best),
        "largest": _candidate(plan.largest) if plan.largest else None,
        "advice": [_candidate(candidate) for candidate in plan.advice],
        "steps": duration.steps,
        "tokens": duration.tokens,
        "flops": duration.flops,
        "mfu": setup.config.mfu,
        "peak_tflops": plan.peak_tflops,
        "peak_of": _peak(plan),
        "seconds": duration.seconds,
        "days": duration.days,
        "epochs": duration.epochs,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "ds_config": candidate.file,
        "micro_batch_size": candidate.micro_batches,
        "activation_checkpointing": candidate.checkpointing,
        "memory_bytes": candidate.memory.parts,
        "total_bytes": candidate.memory.total,
        "host_bytes": candidate.memory.host_parts,
        "divides": candidate.divides,
        "fits": candidate.fits,
        "precision": candidate.precision,
    }


def as_text(plan: Plan) -> str:
    """The plan for a reader, GiB in its table."""
    parts = [_head(plan), _table(plan), _verdict(plan), _time(plan), _assumed(plan)]
    return "\n\n".join(parts)


def _head(plan: Plan) -> str:
    setup, arch = plan.setup, plan.setup.arch
    config, first = setup.config, setup.timeline.at(0)
    lengths = " then ".join(map(str, setup.timeline.lengths()))
    return "\n".join(
        [
            f"{config.model}: {plan.parameters / 1e6:,.1f} M parameters ({arch.num_layers} layers x "
            f"{arch.hidden_size}), objective {setup.objective}",
            f"vocabulary   {arch.vocab_size:,} tokens ({setup.vocabulary})",
            f"run          {setup.timeline.steps:,} steps of {first.batch_size:,} rows x {lengths} tokens, "
            f"{first.optimizer.name}" + (", layers computed again" if plan.best.checkpointing else ""),
            *_defaults(plan),
            f"machines     {config.gpus:,} GPU(s) of {config.gpu_memory:g} GiB, of which {setup.room / GIB:.1f} are "
            f"planned with",
        ]
    )


def _defaults(plan: Plan) -> list[str]:
    """Which of rows, batch and steps nobody gave, with the options that change them; and what is not planned."""
    config, arch = plan.setup.config, plan.setup.arch
    texts = {
        "data.seq_length": "rows of {:,} tokens (--data.seq_length; the model takes " + f"{arch.max_positions:,})",
        "train.batch_size": "{:,} rows a step (--train.batch_size)",
        "train.steps": "{:,} steps (--train.steps)",
    }
    own = [texts[name].format(value) for name, value in config.own_defaults().items()]
    lines = [f"defaults     as a run takes them: {', '.join(own)}"] if own else []
    unseen = config.not_planned()
    return lines + ([f"not planned  {', '.join(unseen)}: the figures are those without"] if unseen else [])


def _table(plan: Plan) -> str:
    """Memory of one rank by part, a line for each file."""
    header = ["GiB of one rank", "micro-batch", *PARTS, "total", "host", ""]
    rows = [header]
    for candidate in plan.candidates:
        memory = candidate.memory
        rows.append(
            [
                Path(candidate.file).name,
                _sizes(candidate),
                *(f"{memory.parts.get(part, 0) / GIB:.2f}" for part in PARTS),
                f"{memory.total / GIB:.2f}",
                f"{memory.host_total / GIB:.2f}" if memory.host_parts else "-",
                "fits" if candidate.fits else "does not fit",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: list[str], widths: list[int]) -> str:
    """The first cell to the left, figures to the right, the verdict as it is."""
    figures = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *figures, row[-1]]).rstrip()


def _sizes(candidate: Candidate) -> str:
    return ",".join(map(str, candidate.micro_batches.values()))


def _verdict(plan: Plan) -> str:
    best = plan.best
    if best.fits:
        lines = [f"fits         {options_of(best)}"]
        if plan.largest and plan.largest.micro_batches != best.micro_batches:
            lines.append(f"largest      {options_of(plan.largest)}")
        return "\n".join(lines)
    lines = [f"does not fit {options_of(best)}", *(f"             {why}" for why in _reasons(plan))]
    lines += [f"would fit    {options_of(change)}" for change in plan.advice]
    if not plan.advice:
        lines.append("nothing here would make it fit: take more GPUs or larger ones, shorter rows, or zero3_nvme.json")
    return "\n".join(lines)


def _reasons(plan: Plan) -> list[str]:
    """Why the best of the candidates does not fit."""
    best, found = plan.best, []
    if (missing := best.memory.total - plan.setup.room) > 0:
        found.append(f"{missing / GIB:.2f} GiB too much")
    for unit in plan.setup.units():
        size, rows = best.micro_batches[unit.setting], rows_of_rank(plan.setup, unit)
        if rows % size:
            found.append(f"a run is refused: {unit.setting} {size} does not divide the {rows} rows of a rank")
    return found


def options_of(candidate: Candidate) -> str:
    """A candidate as the options of a run, what belongs into the stages of its file, and what it needs."""
    sizes = dict(candidate.micro_batches)
    options = [f"--ds_config {shlex.quote(_shown(candidate.file))}"]
    if WHOLE_RUN in sizes:
        options.append(f"--{WHOLE_RUN} {sizes.pop(WHOLE_RUN)}")
    if candidate.checkpointing:
        options.append("--train.activation_checkpointing true")
    of_stages = ", ".join(f"{setting} {size}" for setting, size in sizes.items())
    in_file = f", in the run's file {of_stages}" if of_stages else ""
    memory = candidate.memory
    host = f" and {memory.host_total / GIB:.2f} GiB of the host" if memory.host_parts else ""
    return f"{' '.join(options)}{in_file} ({memory.total / GIB:.2f} GiB{host})"


def _shown(file: str) -> str:
    """A path as an option takes it; files that ship by their name in the repository."""
    path = Path(file)
    return str(Path(FOLDER.name) / path.name) if path.resolve().parent == FOLDER else file


def _time(plan: Plan) -> str:
    duration, config = plan.duration, plan.setup.config
    flops = config.gpus * plan.peak_tflops * config.mfu
    lines = [
        f"steps        {duration.steps:,}, {duration.tokens / duration.steps:,.0f} tokens each, "
        f"{duration.tokens / 1e9:,.2f} billion in all" + _epochs(duration.epochs),
        f"work         {duration.flops:.3g} operations at {flops:,.0f} TFLOP/s ({config.gpus} x "
        f"{plan.peak_tflops:g} x MFU {config.mfu:g})",
        f"peak         {plan.peak_tflops:g} TFLOP/s of one GPU, {_peak(plan)}",
        f"time         {_duration(duration.seconds)} ({duration.tokens / duration.seconds:,.0f} tokens a second)",
    ]
    return "\n".join(lines)


def _epochs(epochs: dict[str, float]) -> str:
    """Passes over the text; over each source where there are several."""
    if len(epochs) < 2:
        return "".join(f", {number:.2f} epochs" for number in epochs.values())
    return "; epochs: " + ", ".join(f"{name} {number:.2f}" for name, number in epochs.items())


def _peak(plan: Plan) -> str:
    """Where the peak is from."""
    config, precision = plan.setup.config, plan.best.precision
    if config.train.peak_tflops is not None:
        return "given by train.peak_tflops"
    kind = "fp32 without TF32, which torch leaves off" if precision == "fp32" else f"dense {precision}"
    return f"{kind}, by the data sheet of the {GPU_NAMES[config.gpu.lower()]}"


def _duration(seconds: float) -> str:
    if seconds >= 2 * 86_400:
        return f"{seconds / 86_400:,.1f} days"
    return f"{seconds / 3600:.1f} hours" if seconds >= 7200 else f"{seconds / 60:.1f} minutes"


def _assumed(plan: Plan) -> str:
    config, text = plan.setup.config, plan.setup.text
    rows = "each row is one sequence" if not text.sources else "documents are of their mean length"
    return (
        f"assumed: MFU {config.mfu:g}; {rows}; {config.margin:.0%} of a GPU for its context, NCCL and fragmentation;\n"
        "no time for evaluation, checkpoints, offload or restarts. The parts are those of the moment at which a rank\n"
        "needs most. What is counted, and how it was checked: docs/planning.md"
    )
