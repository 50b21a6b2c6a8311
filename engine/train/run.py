"""Begin a run or go on with one: the part that pretraining and fine-tuning share."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.files import CheckpointManifest, write_text
from engine.checkpoint.run_folder import RunFolder
from engine.checkpoint.save import CheckpointWriter, ModelExporter
from engine.checkpoint.state import model_shapes, refuse_other_model, restore
from engine.config.arch import ArchConfig
from engine.config.backend import backend_problems
from engine.config.cli import collect
from engine.config.deepspeed_json import (
    DeepSpeedSettings,
    Device,
    complete_deepspeed_config,
    deepspeed_problems,
    read_deepspeed_json,
)
from engine.config.stages import Stage
from engine.config.train import BatchShape, TrainConfig
from engine.data.source import BatchSource
from engine.downstream.plan import DownstreamPlan
from engine.downstream.runs import DownstreamRuns
from engine.models.attention import name_of, slow_dropout
from engine.models.compiled import compile_layers
from engine.models.model import Model
from engine.objectives.base import Objective
from engine.optim.build import bind_optimizer, build_optimizer, describe, optimizer_problems
from engine.train.build_locks import build_root, clear_stale_locks
from engine.train.distributed import (
    barrier,
    describe_device,
    from_rank_zero,
    global_rank,
    local_rank,
    raise_together,
    refuse_disagreement,
    world_size,
)
from engine.train.evaluate import Runner
from engine.train.metrics import say
from engine.train.model_card import CARD, DataPart, figures_until, model_card
from engine.train.selection import Selection, return_to_best
from engine.train.signals import StopRequest
from engine.train.sinks import require_login
from engine.train.timeline import StepSettings, Timeline
from engine.train.trainer import Trainer, TrainerParts, TrainerState
from engine.train.watchdog import Watchdog
from engine.train.zero import ZeroEngine
from kernels import overview

ASSUMED_GPU = Device("cuda", has_bf16=True)  # what a dry run on a host without GPUs takes those of the others for
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of activations, by precision


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a run is made of.

    Attributes:
        train: settings of the loop.
        timeline: what each step computes with.
        settings: checked DeepSpeed configuration.
        arch: the architecture.
        seed: seed of dropout.
        resolved: all settings as a JSON tree, compared with those of an earlier start.
        defaults: what each setting is where it is not given, for starts of a version that did not know it.
        objective: what is learned.
        source: training samples.
        build: makes the model with its first weights; called where the run begins and where it goes on.
        export: writes weights as a model folder.
        num_samples: training samples of an epoch, at the first step.
        evaluator: figures of an evaluation line after a step; None without held-out data.
        progress: figures of each log line that follow from the number of steps taken.
        conclude: called by all ranks after the last step, before the run counts as finished, with the step whose
            weights are in place.
        data: what is learned from, for the model card.
        profile: whether to write a trace of some steps.
        downstream: which checkpoints are fine-tuned, on what, as rank 0 knows it; None where none are.
        selection: what evaluations decide: when the run ends, which checkpoint is its result; None: nothing.
        restored: called by all ranks with the folder of the checkpoint that the run goes on from.
    """

    train: TrainConfig
    timeline: Timeline
    settings: DeepSpeedSettings
    arch: ArchConfig
    seed: int
    resolved: dict[str, Any]
    defaults: dict[str, Any]
    objective: Objective
    source: BatchSource
    build: Callable[[bool], Model]
    export: ModelExporter
    num_samples: int
    evaluator: Callable[[Runner, StepSettings], dict[str, float]] | None = None
    progress: Callable[[int], Mapping[str, int]] | None = None
    conclude: Callable[[Runner, int], None] | None = None
    data: Sequence[DataPart] = ()
    profile: bool = False
    downstream: DownstreamPlan | None = None
    selection: Selection | None = None
    restored: Callable[[Path], None] | None = None


def run_training(parts: RunParts) -> RunFolder:
    """Train from the newest checkpoint in the run folder, or from the beginning, to the last step.

    Every run, a new one too, starts by loading a checkpoint: a new one writes its own of step 0 first. So there is one
    path for start and resume, and DeepSpeed's own start-up cannot leave a trace in weights or optimizer.

    Raises:
        ValueError: if the folder holds another run, or no checkpoint in it is whole.
        RunStopped: after saving, if a signal asked the run to stop.
        RankLostError: if another rank is gone, frozen or hung.
    """
    run = RunFolder(parts.train.output)
    if (selection := parts.selection) is not None and selection.keep_best:
        run.spared = lambda: selection.best(run.metrics, run.steps())
    with Watchdog(parts.train.rank_timeout) as watchdog:
        resuming = from_rank_zero(lambda: _enter(run, parts))
        if resuming is None:
            return run
        model = parts.build(not resuming)
        for note in clear_stale_locks(build_root()) if local_rank() == 0 else ():
            say(f"note: {note}")
        kernels = _agree_on_kernels(torch.device(describe_device().type), parts)
        optimizer = build_optimizer(model, parts.timeline.at(0).optimizer, parts.settings, describe_device().type)
        say(describe(optimizer))
        for line in kernels:
            say(line)
        writer = CheckpointWriter(run, parts.export, parts.train.keep_checkpoints, partial(_describe, run, parts))
        folder, manifest = _first_checkpoint(parts, model, writer, resuming)
        engine = _engine(parts, model, optimizer)
        restore(engine.deepspeed, model, folder, manifest)
        if parts.restored is not None:
            parts.restored(folder)
        if resuming:
            say(f"going on from step {manifest.step} of {parts.timeline.steps} ({folder})")
        state = TrainerState.from_manifest(manifest)
        _train(parts, engine, writer, state, watchdog)
        step = return_to_best(run, engine, state.step)
        if parts.conclude is not None:
            parts.conclude(engine, step)
        barrier()
        if global_rank() == 0:
            run.link_model(step)
            run.finish()
    say(f"finished: {run.model} is the model of step {step}")
    return run


def _agree_on_kernels(device: torch.device, parts: RunParts) -> list[str]:
    """The log's lines on whose code computes, which must be the same on all ranks: dropout masks depend on it.

    Raises:
        SharedError: on every rank, if one would compute by other code than rank 0, or not at all.
    """
    problems: list[str] = []
    found = collect(problems, lambda: overview.runs(device)) or {}
    attention = collect(problems, lambda: _attention_of(device, parts)) or ""
    raise_together("\n".join(problems) or None)
    refuse_disagreement(
        {**{name: runs for name, (runs, _) in found.items()}, "attention of this model": attention},
        "compute by other kernels",
        "give all hosts the same GPUs, compilers and KERNELS_BACKEND, or set KERNELS_BACKEND=reference on all",
        {name: why for name, (_, why) in found.items()},
    )
    dropout = parts.arch.attention_dropout
    lines = [
        overview.describe(device),
        f"attention: {attention}, {f'dropout {dropout:g}' if dropout else 'no dropout'}",
    ]
    note = slow_dropout(device, attention, dropout)
    return lines if note is None else [*lines, f"note: {note}"]


def _attention_of(device: torch.device, parts: RunParts) -> str:
    """Whose code attends in the longest rows of a run."""
    arch, longest = parts.arch, max(parts.timeline.lengths()) or parts.arch.max_positions
    head_size = arch.hidden_size // arch.num_heads
    return name_of(device, TYPES[parts.settings.precision], head_size, longest, arch.attention_dropout)


def _describe(run: RunFolder, parts: RunParts, folder: Path, manifest: CheckpointManifest) -> None:
    """Write the model card of an exported folder."""
    figures = figures_until(run.metrics, manifest.step)
    write_text(folder / CARD, model_card(parts.resolved, folder, manifest, figures, parts.data))


def _first_checkpoint(
    parts: RunParts, model: Model, writer: CheckpointWriter, resuming: bool
) -> tuple[Path, CheckpointManifest]:
    """The checkpoint to begin with: the newest that is whole, or one of the model's first weights."""
    run = writer.run
    if not resuming:
        writer.save_initial(model, TrainerState().state_dict())
    folder, manifest, complaints = from_rank_zero(lambda: _find_checkpoint(run, model))
    seen = folder.is_dir()
    raise_together(None if seen else f"{folder} is not on {platform.node()}: all hosts must share the run folder")
    for complaint in complaints:
        say(f"passed over: {complaint}")

    def take_over() -> None:  # nothing refuses this start any more
        run.write_config(parts.resolved)
        run.reopen()
        run.return_to(manifest.step)

    from_rank_zero(take_over)
    return folder, manifest


def _engine(parts: RunParts, model: Model, optimizer: torch.optim.Optimizer) -> ZeroEngine:
    """DeepSpeed round a model with whole weights."""
    engine = ZeroEngine(model, parts.objective, optimizer, parts.settings, lags=_may_lag(parts.train))
    bind_optimizer(engine.deepspeed, model)
    model.encoder.checkpoint_layers = parts.train.activation_checkpointing
    if parts.train.compile:
        compile_layers(model)
    return engine


def _may_lag(train: TrainConfig) -> bool:
    """Whether a step with a gradient that is not finite may spoil the weights: the run ends, and nothing is kept."""
    return train.nonfinite == "stop" and describe_device().type == "cuda"


def _train(
    parts: RunParts, engine: ZeroEngine, writer: CheckpointWriter, state: TrainerState, watchdog: Watchdog
) -> None:
    """Take the steps that are left; a signal ends them after a checkpoint."""
    stop, evaluator = StopRequest(writer.run.path), parts.evaluator
    downstream = None
    if parts.downstream is not None:
        downstream = DownstreamRuns(writer.run, parts.downstream, parts.timeline.steps)
        writer.published = downstream.checkpoint
    trainer = Trainer(
        TrainerParts(
            config=parts.train,
            timeline=parts.timeline,
            arch=parts.arch,
            engine=engine,
            source=parts.source,
            writer=writer,
            seed=parts.seed,
            stop=stop,
            watchdog=watchdog,
            progress=parts.progress,
            evaluate=None if evaluator is None else lambda step: evaluator(engine, step),
            profile=parts.profile,
            downstream=downstream,
            selection=parts.selection,
        ),
        state,
    )
    stop.install()
    try:
        if parts.train.evaluate_with is not None:
            from_rank_zero(lambda: downstream.start(state.step) if downstream else None)
        trainer.train()
    finally:
        stop.restore()
        if downstream is not None:
            downstream.close()


def _find_checkpoint(run: RunFolder, model: Model) -> tuple[Path, CheckpointManifest, list[str]]:
    """The newest whole checkpoint, which must be of this model; and what is wrong with newer ones."""
    folder, manifest, complaints = run.newest_checkpoint()
    refuse_other_model(model_shapes(model), manifest.shapes, f"checkpoint {folder}")
    return folder, manifest, complaints


def _enter(run: RunFolder, parts: RunParts) -> bool | None:
    """Claim the folder; whether it holds this run, which goes on, or None where there is nothing left to do.

    A start that is refused leaves the folder as it was.
    """
    require_login(parts.train.wandb)
    steps = parts.timeline.steps
    resuming = look_into(run, parts.resolved, parts.defaults, steps, parts.selection)
    if resuming is not None:
        run.claim()
        # until now another run may have been at work there
        resuming = look_into(run, parts.resolved, parts.defaults, steps, parts.selection)
    if resuming is None:
        newest = run.steps()[-1]
        if newest < steps:
            say(
                f"{run.path} ended early at step {newest} of {steps}: its evaluations became no better; a larger "
                "--train.early_stopping, or 0, goes on from there"
            )
        else:
            say(f"{run.path} is finished at step {newest}; a larger --train.steps goes on from there")
        return None
    if not resuming:
        run.write_config(parts.resolved)
    _announce(run, parts)
    return resuming


def look_into(
    run: RunFolder,
    resolved: dict[str, Any],
    defaults: dict[str, Any],
    steps: int,
    selection: Selection | None = None,
) -> bool | None:
    """Whether the folder holds this run, or None where the run in it is finished; changes nothing.

    Raises:
        ValueError: if it holds another run, or this one beyond ``steps``.
    """
    resuming = run.open(resolved, defaults)
    if resuming and (newest := run.steps()[-1]) >= steps:
        if newest > steps:
            raise ValueError(f"{run.path} is at step {newest} already, beyond train.steps ({steps})")
        if run.is_finished():
            return None
    if resuming and run.is_finished() and selection is not None and selection.is_over(run.metrics):
        return None
    return resuming


def _announce(run: RunFolder, parts: RunParts) -> None:
    """Say what matters of the settings of this start."""
    for note in parts.settings.notes:
        say(f"note: {note}")
    first, *others = parts.timeline.shapes(world_size())
    more = "".join(f", then {shape.batch_size} in micro-batches of {shape.micro_batch_size}" for shape in others)
    say(
        f"{parts.settings.precision}, ZeRO stage {parts.settings.stage}; a step is {first.batch_size} rows = "
        f"{first.world_size} rank(s) x {first.accumulation} micro-batch(es) x {first.micro_batch_size} rows{more}; "
        f"{parts.num_samples:,} rows in an epoch; run folder {run.path}"
    )


def check_settings(
    ds_config: str, stages: Sequence[Stage], problems: list[str], backend: str | None = None, dry_run: bool = False
) -> tuple[dict[str, Any] | None, BatchShape, Device]:
    """Read the DeepSpeed file and check it against the batches and this machine; what is wrong goes to ``problems``.

    Returns:
        The file's content where it could be read, the batch of the last step, and what this process computes on; in a
        dry run for nccl that is a GPU, also where none is here.
    """
    device, last = device_to_check(backend, dry_run), stages[-1]
    shape = BatchShape(last.batch_size, last.micro_batch_size, world_size())
    if all(stage.steps >= 1 for stage in stages):
        problems += [text for shape in Timeline(stages).shapes(world_size()) for text in shape.problems()]
    tree: dict[str, Any] | None = collect(problems, lambda: read_deepspeed_json(ds_config))
    if tree is not None:
        problems += deepspeed_problems(tree, ds_config, shape, device)
    zero = (tree or {}).get("zero_optimization")
    problems += backend_problems(backend, device, zero.get("stage", 0) if isinstance(zero, dict) else 0)
    if tree is not None and not problems:
        settings = complete_deepspeed_config(tree, shape, device)
        problems += optimizer_problems(last.optimizer, settings, device.type)
    return tree, shape, device


def device_to_check(backend: str | None, dry_run: bool) -> Device:
    """What this process computes on; a GPU in a dry run for nccl on a host that has none."""
    device = describe_device()
    return ASSUMED_GPU if dry_run and backend == "nccl" and device.type == "cpu" else device
