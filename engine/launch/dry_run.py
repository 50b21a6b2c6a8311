"""What a start would do, found out and printed without doing it: nothing is written, and no other rank is needed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch

from engine.checkpoint.run_folder import RunFolder
from engine.config.arch import ArchConfig, padded_vocab_size
from engine.config.backend import backend_on
from engine.config.cli import UsageError, collect
from engine.config.deepspeed_json import DeepSpeedSettings, Device
from engine.config.pretrain import PretrainConfig
from engine.config.train import TrainConfig
from engine.convert.huggingface import huggingface_class
from engine.data.plan import SequenceLayout
from engine.data.shard_sources import ShardSource
from engine.downstream.plan import read_plan
from engine.downstream.runs import DownstreamRuns
from engine.launch.nodes import TOLD, here_text
from engine.models.model import Model
from engine.models.transformer import Transformer
from engine.plan.memory import MemoryEstimate, estimate_phase
from engine.plan.rows import estimated_rows
from engine.train.distributed import describe_device, global_rank, local_rank, world_size
from engine.train.resolve import Resolved, default_tree, resolve, resolved_tree
from engine.train.run import device_to_check, look_into
from engine.train.selection import Selection
from engine.train.sinks import require_login
from engine.train.timeline import StepSettings, Timeline
from preprocess.manifest import Manifest

MakeHeads = Callable[[ArchConfig], Mapping[str, torch.nn.Module]]
MIB, GIB = 2**20, 2**30
MANY_EPOCHS = 1000


def dry_run(config: PretrainConfig) -> None:
    """Check all that a start checks, and print the plan: rank 0 all of it, the first rank of another host its part.

    Raises:
        UsageError: everything that would refuse the start.
    """
    if local_rank() != 0:
        return
    resolved = resolve(config)
    device = device_to_check(config.backend, dry_run=True)
    state = folder_state(resolved.config.train, resolved_tree(resolved), default_tree(), resolved.timeline.steps)
    tell(lambda: plan_text(resolved, world_size(), device, state))


def tell(plan: Callable[[], str]) -> None:
    """Print this host's part, unless the launch printed that of all hosts, and on rank 0 the plan."""
    if not os.environ.get(TOLD):
        print(here_text(), end="")
    if global_rank() == 0:
        print(plan(), end="", flush=True)


def folder_state(
    train: TrainConfig,
    tree: dict[str, Any],
    defaults: dict[str, Any],
    steps: int,
    selection: Selection | None = None,
) -> str:
    """What a start would find in its run folder, in words.

    Raises:
        UsageError: where it would be refused.
    """
    problems: list[str] = []
    collect(problems, lambda: require_login(train.wandb))
    path, run = train.output, RunFolder(train.output)
    resuming = collect(problems, lambda: (look_into(run, tree, defaults, steps, selection),))
    if train.evaluate_with is not None:
        plan = read_plan(train.evaluate_with)
        collect(problems, DownstreamRuns(run, plan, steps).refuse_other_settings)
    if problems or resuming is None:
        raise UsageError("\n".join(problems))
    if resuming[0] is None:
        return f"{path} is finished at step {run.steps()[-1]:,}: nothing would be done"
    if resuming[0]:
        return f"{path} holds this run: it goes on from step {run.steps()[-1]:,} of {steps:,}"
    return f"{path} is new: the run begins at step 0 of {steps:,}"


def plan_text(resolved: Resolved, ranks: int, device: Device, state: str) -> str:
    """All that rank 0 tells of a pretraining run."""
    config, timeline = resolved.config, resolved.timeline
    lines = model_lines(resolved.arch, resolved.objective.name, resolved.objective.make_heads)
    lines += batch_lines(timeline, ranks, unit="rows")
    lines += data_lines(resolved.sources, timeline, resolved.objective.sequence_layout, ranks)
    lines += computation_lines(resolved.settings, config.ds_config, config.backend, device)
    lines += memory_lines(resolved, ranks, device)
    lines += downstream_lines(config.train.evaluate_with, timeline.steps)
    lines.append(f"run folder: {state}")
    return "\n".join(lines) + "\n"


def parameter_counts(arch: ArchConfig, make_heads: MakeHeads) -> Counter[str]:
    """Parameters by part, the vocabulary padded; what parts share counts where it is made."""
    with torch.device("meta"):
        model = Model(Transformer(arch), make_heads(arch))
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = "embeddings" if name.startswith("encoder.embeddings.") else name.partition(".")[0]
        counts[part] += parameter.numel()
    return counts


def model_lines(arch: ArchConfig, objective: str, make_heads: MakeHeads) -> list[str]:
    """The model and its size."""
    counts = parameter_counts(arch, make_heads)
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return [
        f"model: {huggingface_class(arch)}, {arch.num_layers} layers x {arch.hidden_size}, {arch.num_heads} heads, "
        f"feed-forward {arch.intermediate_size}, {arch.max_positions} positions; objective {objective}",
        f"  {counts.total():,} parameters: {parts}",
        f"  vocabulary {arch.vocab_size:,}, padded to {padded_vocab_size(arch.vocab_size):,}",
    ]


def batch_lines(timeline: Timeline, ranks: int, unit: str) -> list[str]:
    """How each stretch of the run deals its rows or examples to ranks and micro-batches."""
    lines, rows, tokens = ["batches:"], 0, 0
    for step, _, num_steps in timeline.phases():
        shape = step.shape(ranks)
        of_length = f" of {step.seq_length:,} tokens" if step.seq_length else ""
        per_step = f"; {shape.batch_size * step.seq_length:,} tokens" if step.seq_length else ""
        lines.append(
            f"  steps {step.step + 1:,}-{step.step + num_steps:,}: {shape.batch_size:,} {unit}{of_length} = "
            f"{ranks} rank(s) x {shape.accumulation} micro-batch(es) x {shape.micro_batch_size} {unit}{per_step}"
        )
        rows += num_steps * shape.batch_size
        tokens += num_steps * shape.batch_size * step.seq_length
    total = f", {tokens:,} tokens (filler included)" if tokens else ""
    return [*lines, f"  in all {timeline.steps:,} steps, {rows:,} {unit}{total}"]


def data_lines(sources: tuple[ShardSource, ...], timeline: Timeline, layout: SequenceLayout, ranks: int) -> list[str]:
    """The shard folders, and how often the run passes over each."""
    lines = ["data:"]
    consumed = timeline.rows_before(timeline.steps)
    for source in sources:
        manifest, held_out = source.manifest, source.held_out
        weight = f" (weight {source.weight:g})" if len(sources) > 1 else ""
        text = f"{amount(manifest)}, manifest {manifest.digest[:12]}"
        outside = f"held out {amount(held_out)}" if held_out else "nothing held out: nothing is evaluated"
        lines.append(f"  {manifest.folder}{weight}: {text}; {outside}")
        for length, rows in consumed.items():
            there = estimated_rows(manifest, length, layout)
            lines.append(
                f"    about {there:,} rows of {length:,} tokens: {rows * source.weight / there:,.2f} epochs of them"
            )
            if rows * source.weight / there > MANY_EPOCHS:
                lines.append("    note: that often over the same text; are these the shards that you mean?")
            if there < ranks:
                lines.append(f"    note: fewer rows than the {ranks} ranks; a start may refuse this")
    return lines


def amount(manifest: Manifest) -> str:
    """Shards, documents and tokens of a folder."""
    shards = manifest.shards
    documents, tokens = sum(s.num_documents for s in shards), sum(s.num_tokens for s in shards)
    return f"{len(shards):,} shard(s), {documents:,} documents, {tokens:,} tokens"


def computation_lines(settings: DeepSpeedSettings, ds_config: str, backend: str | None, device: Device) -> list[str]:
    """Precision, ZeRO, and where it runs."""
    lines = [
        f"computation: {settings.precision}, ZeRO stage {settings.stage} ({ds_config}), on {device.type} through "
        f"{backend_on(device.type, backend)}"
    ]
    if describe_device().type != device.type:
        lines.append("  note: no GPU here: checked for GPUs that have bf16")
    elif device.type == "cpu" and backend is None:
        lines.append("  note: no GPU here, so this is a run on CPUs; --backend nccl checks and estimates one on GPUs")
    return [*lines, *(f"  note: {note}" for note in settings.notes)]


def downstream_lines(file: str | None, steps: int) -> list[str]:
    """The checkpoints that are fine-tuned, and what only a start can check, which has a model."""
    if file is None:
        return []
    plan = read_plan(file)
    chosen = ", ".join(f"{step:,}" for step in plan.chosen(steps))
    return [
        f"downstream: {', '.join(plan.tasks)} from the model of step {chosen}",
        "  note: their files were looked for; a start also lets finetune/run.py read them and check every setting",
    ]


def memory_lines(resolved: Resolved, ranks: int, device: Device) -> list[str]:
    """The memory of a rank in the stretch of the run that needs most."""
    heaviest, step = max(
        ((estimate(resolved, steps, ranks, device), steps[0]) for steps in _kinds_of_steps(resolved.timeline)),
        key=lambda found: found[0].total,
    )
    return estimate_lines(heaviest, f"micro-batches of {step.micro_batch_size} rows of {step.seq_length:,} tokens")


def estimate_lines(found: MemoryEstimate, batches: str) -> list[str]:
    """An estimate, part by part."""
    lines = [f"memory of a rank (estimated, in {batches}): {size_text(found.total)}"]
    lines += [f"  {name} {size_text(size)}" for name, size in found.parts.items() if size]
    lines.append("  tensors alone: on a CPU memory_bytes of metrics.jsonl is that of the whole process")
    if found.host_parts:
        lines.append(f"  on the host {size_text(found.host_total)}:")
        lines += [f"    {name} {size_text(size)}" for name, size in found.host_parts.items()]
    return lines


def size_text(num_bytes: int) -> str:
    """Bytes in GiB, or in MiB where that is less than one."""
    return f"{num_bytes / GIB:,.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:,.1f} MiB"


def _kinds_of_steps(timeline: Timeline) -> list[tuple[StepSettings, StepSettings]]:
    """First and last step of each row length, batch and micro-batch."""
    kinds: dict[tuple[int, int, int], tuple[StepSettings, StepSettings]] = {}
    for first, last, _ in timeline.phases():
        key = first.seq_length, first.batch_size, first.micro_batch_size
        kinds[key] = kinds.get(key, (first, last))[0], last
    return list(kinds.values())


def estimate(
    resolved: Resolved, steps: tuple[StepSettings, StepSettings], ranks: int, device: Device
) -> MemoryEstimate:
    """What a stretch of the run needs, with its own batch."""
    return estimate_phase(
        arch=resolved.arch,
        objective=resolved.objective.name,
        settings=resolved.settings,
        steps=steps,
        world_size=ranks,
        activation_checkpointing=resolved.config.train.activation_checkpointing,
        device_type=device.type,
    )
