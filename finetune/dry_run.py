"""What a fine-tuning would do, found out and printed without doing it; nothing is written."""

from __future__ import annotations

import numpy as np
import torch

from engine.config.deepspeed_json import Device
from engine.launch.dry_run import batch_lines, computation_lines, estimate_lines, folder_state, model_lines, tell
from engine.models.model import Model
from engine.models.transformer import Transformer
from engine.plan.memory import estimate_batch
from engine.train.distributed import local_rank, world_size
from engine.train.run import device_to_check
from engine.train.timeline import Timeline
from finetune.config import FinetuneConfig
from finetune.finetuning import Resolved, default_tree, resolve, resolved_tree


def dry_run(config: FinetuneConfig) -> None:
    """Check all that a start checks, and print the plan: rank 0 all of it, the first rank of another host its part.

    Raises:
        UsageError: everything that would refuse the start.
    """
    if local_rank() != 0:
        return
    resolved = resolve(config)
    device = device_to_check(config.backend, dry_run=True)
    train = resolved.config.train
    state = folder_state(train, resolved_tree(resolved), default_tree(), train.steps)
    tell(lambda: plan_text(resolved, world_size(), device, state))


def plan_text(resolved: Resolved, ranks: int, device: Device, state: str) -> str:
    """All that rank 0 tells of a fine-tuning."""
    config, task = resolved.config, resolved.task
    timeline = Timeline([config.train.stage(seq_length=0, length_ramp={})])
    lines = model_lines(resolved.arch, task.name, lambda arch: {task.name: task.make_head(arch)})
    lines += batch_lines(timeline, ranks, unit="examples")
    lines += data_lines(resolved)
    lines += computation_lines(resolved.settings, config.ds_config, config.backend, device)
    lines += memory_lines(resolved, ranks, device)
    lines.append(f"run folder: {state}")
    return "\n".join(lines) + "\n"


def data_lines(resolved: Resolved) -> list[str]:
    """The files, and how often the run passes over the training file."""
    config, lines = resolved.config, ["data:"]
    paths = {"train": config.train_file, "dev": config.dev_file, "test": config.test_file}
    for name, examples in resolved.files.items():
        tokens = sum(len(sequence.tokens) for sequence in examples.sequences)
        lines.append(
            f"  {name} {paths[name]}: {len(examples.sequences):,} examples, {tokens:,} tokens, "
            f"digest {examples.digest()[:12]}"
        )
    epochs = config.train.steps * config.train.batch_size / len(resolved.files["train"].sequences)
    starts = "random weights" if config.random_init else f"the weights of {resolved.folder}"
    lines.append(f"  {epochs:,.2f} epochs; labels {', '.join(resolved.task.labels)}; begins from {starts}")
    return [*lines, *(f"  note: {note}" for note in resolved.notes)]


def memory_lines(resolved: Resolved, ranks: int, device: Device) -> list[str]:
    """The memory of a rank on the longest examples of the training file."""
    train, task, examples = resolved.config.train, resolved.task, resolved.files["train"]
    lengths = np.array([len(sequence.tokens) for sequence in examples.sequences])
    longest = np.argsort(-lengths, kind="stable")[: train.micro_batch_size]
    batch = resolved.builder.pack([examples.sequences[number] for number in longest])
    with torch.device("meta"):
        model = Model(Transformer(resolved.arch), {task.name: task.make_head(resolved.arch)})
    found = estimate_batch(
        model=model,
        objective=task,
        batch=task.with_targets(batch, examples.targets[longest]),
        settings=resolved.settings,
        optimizer=train.optimizer,
        world_size=ranks,
        activation_checkpointing=train.activation_checkpointing,
        device_type=device.type,
    )
    return estimate_lines(found, f"micro-batches of {len(longest)} of the longest examples")
