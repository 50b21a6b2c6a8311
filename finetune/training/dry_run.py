"""What a fine-tuning would do, found out and printed without doing it; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.config.deepspeed_json import Device
from engine.launch.dry_run import batch_lines, computation_lines, estimate_lines, folder_state, model_lines, tell
from engine.models.lora import adapted_maps
from engine.models.model import Model
from engine.models.transformer import Transformer
from engine.plan.memory import estimate_batch
from engine.train.distributed import local_rank, world_size
from engine.train.run import device_to_check
from engine.train.timeline import Timeline
from finetune.config.run import FinetuneConfig
from finetune.training.finetuning import (
    Resolved,
    default_tree,
    objective_of,
    path_of,
    resolve,
    resolved_tree,
    selection_of,
    with_adapters,
)
from finetune.training.repeated import runs_of
from finetune.training.source import digest_of


def dry_run(config: FinetuneConfig) -> None:
    """Check all that a start checks, and print the plan: rank 0 all of it, the first rank of another host its part.

    Raises:
        UsageError: everything that would refuse the start.
    """
    if local_rank() != 0:
        return
    runs = runs_of(config) if config.is_repeated else []
    resolved = resolve(runs[0][1] if runs and not config.problems() else config)
    device = device_to_check(config.backend, dry_run=True)
    train = resolved.config.train
    state = folder_state(train, resolved_tree(resolved), default_tree(), train.steps, selection_of(resolved))
    text = plan_text(resolved, world_size(), device, state) + repeated_text(config, [name for name, _ in runs])
    tell(lambda: text)


def plan_text(resolved: Resolved, ranks: int, device: Device, state: str) -> str:
    """All that rank 0 tells of a fine-tuning."""
    config, task = resolved.config, resolved.task
    timeline = Timeline([config.train.stage(seq_length=0, length_ramp={})])
    lines = model_lines(resolved.arch, task.name, task.make_heads)
    lines += technique_lines(resolved)
    lines += batch_lines(timeline, ranks, unit="examples")
    lines += data_lines(resolved)
    lines += computation_lines(resolved.settings, config.ds_config, config.backend, device)
    lines += memory_lines(resolved, ranks, device)
    lines.append(f"run folder: {state}")
    return "\n".join(lines) + "\n"


def repeated_text(config: FinetuneConfig, names: Sequence[str]) -> str:
    """That the plan is that of the first of several runs."""
    if not names:
        return ""
    return f"the first of {len(names)} runs in {config.run_folder()}, one after the other: {', '.join(names)}\n"


def technique_lines(resolved: Resolved) -> list[str]:
    """What is done beside plain fine-tuning of all weights."""
    config, lines = resolved.config, []
    if config.lora.rank:
        with torch.device("meta"):
            model = Model(Transformer(resolved.arch), resolved.task.make_heads(resolved.arch))
            with_adapters(config, model)
        sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        maps = len(adapted_maps(model, config.lora.targets))
        lines.append(f"  lora: rank {config.lora.rank} in {maps} linear maps; {sum(sizes):,} parameters are trained")
    if method := config.adversarial.method:
        steps, size = config.adversarial.attack
        lines.append(f"  adversarial: {method}, {steps} step(s) of {size:g} within {config.adversarial.epsilon:g}")
    return lines


def data_lines(resolved: Resolved) -> list[str]:
    """The files, and how often the run passes over the training file."""
    config, lines = resolved.config, ["data:"]
    for name, examples in resolved.examples.items():
        tokens = sum(example.num_tokens for example in examples)
        file, digest = path_of(resolved, name), digest_of(examples)[:12]
        lines.append(f"  {name} {file}: {len(examples):,} examples, {tokens:,} tokens, digest {digest}")
    epochs = config.train.steps * config.train.batch_size / len(resolved.examples["train"])
    starts = "random weights" if config.random_init else f"the weights of {resolved.folder}"
    labels = f"labels {', '.join(resolved.task.labels)}; " if resolved.task.labels else ""
    lines.append(f"  {epochs:,.2f} epochs; {labels}begins from {starts}")
    return [*lines, *(f"  note: {note}" for note in resolved.notes)]


def memory_lines(resolved: Resolved, ranks: int, device: Device) -> list[str]:
    """The memory of a rank on the longest examples of the training file."""
    train, task, examples = resolved.config.train, resolved.task, resolved.examples["train"]
    lengths = np.array([example.num_tokens for example in examples])
    in_order = [examples[number] for number in np.argsort(-lengths, kind="stable")]
    part = task.part_of(in_order[0])
    longest = [example for example in in_order if task.part_of(example) == part][: train.micro_batch_size]
    batch = task.collate(resolved.builder, longest)
    with torch.device("meta"):
        model = with_adapters(resolved.config, Model(Transformer(resolved.arch), task.make_heads(resolved.arch)))
    found = estimate_batch(
        model=model,
        objective=objective_of(resolved),
        batch=batch,
        settings=resolved.settings,
        optimizer=train.optimizer,
        world_size=ranks,
        activation_checkpointing=train.activation_checkpointing,
        device_type=device.type,
    )
    return estimate_lines(found, f"micro-batches of {len(longest)} of the longest examples")
