"""The training loop: one for pretraining and fine-tuning, one for any number of ranks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.files import CheckpointManifest
from engine.checkpoint.save import CheckpointWriter
from engine.config.arch import ArchConfig
from engine.config.cli import RunStopped, SharedError
from engine.config.train import TrainConfig
from engine.data.draws import Draw, stable_seed
from engine.data.feed import DeviceFeed
from engine.data.source import BatchSource, Prefetcher, StepBatches, positions_of
from engine.downstream.runs import DownstreamRuns
from engine.train.distributed import (
    all_reduce_sum,
    from_rank_zero,
    gather_objects,
    global_rank,
    raise_together,
    world_size,
)
from engine.train.flops import batch_flops, peak_flops
from engine.train.lagging import LaggingFlag
from engine.train.metrics import MetricsLog, Window, memory_bytes, say
from engine.train.profiling import StepProfiler, part, profiled
from engine.train.selection import Selection
from engine.train.signals import StopRequest
from engine.train.timeline import StepSettings, Timeline
from engine.train.watchdog import Watchdog
from engine.train.zero import ZeroEngine


@dataclass
class TrainerState:
    """All that advances, beside weights and optimizer: where the run is."""

    step: int = 0
    rows_consumed: int = 0
    tokens: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint's manifest."""
        return dict(vars(self))

    @classmethod
    def from_manifest(cls, manifest: CheckpointManifest) -> TrainerState:
        """The state that a checkpoint was saved with."""
        return cls(**manifest.trainer)


@dataclass(frozen=True, kw_only=True)
class TrainerParts:
    """What a trainer works with.

    Attributes:
        config: the loop's settings.
        timeline: what each step computes with.
        arch: for counting operations.
        engine: the DeepSpeed engine with weights in place.
        source: training samples.
        writer: saves checkpoints.
        seed: of dropout.
        stop: whether a signal asked the run to stop.
        watchdog: told of every step.
        progress: figures of each log line that follow from the number of steps taken.
        evaluate: figures for an evaluation line after a step, called by all ranks; None without held-out data.
        profile: whether to write a trace of some steps.
        downstream: fine-tunings of checkpoints, on rank 0; None where there are none.
        selection: what evaluations decide; None: nothing.
    """

    config: TrainConfig
    timeline: Timeline
    arch: ArchConfig
    engine: ZeroEngine
    source: BatchSource
    writer: CheckpointWriter
    seed: int
    stop: StopRequest
    watchdog: Watchdog
    progress: Callable[[int], Mapping[str, int]] | None = None
    evaluate: Callable[[StepSettings], dict[str, float]] | None = None
    profile: bool = False
    downstream: DownstreamRuns | None = None
    selection: Selection | None = None


class Trainer:
    """Takes optimizer steps, logs, evaluates and saves."""

    def __init__(self, parts: TrainerParts, state: TrainerState) -> None:
        self.parts, self.state = parts, state
        self._device = parts.engine.device
        self._fills = parts.config.fills_batches(self._device.type)
        self._peak = peak_flops(parts.config.peak_tflops)
        self._window = Window()
        self._feed = DeviceFeed(self._device)
        self._stop = LaggingFlag(self._device)
        self._before: tuple[StepBatches, list[Tensor]] | None = None  # the last step and its losses
        self._log: MetricsLog | None = None
        self._profile: StepProfiler | None = None
        self._over = False  # whether evaluations ended the run before its last step

    def train(self) -> None:
        """Train to the timeline's end, or until evaluations end the run; returns when the last checkpoint is on disk.

        Raises:
            RunStopped: after saving, if a signal asked for it.
            ValueError: if the loss is not finite, too many steps were skipped, or a checkpoint could not be written.
        """
        parts, state = self.parts, self.state
        self._over, _ = self._judge()
        self._log = MetricsLog(parts.writer.run.metrics, parts.config, parts.timeline.steps, state.step)
        batches = Prefetcher(
            parts.source, parts.timeline, state.step, global_rank(), world_size(), self._fills, self._device
        )
        try:
            self._profile = self._profiler()
            with profiled(self._profile) as step_ended:
                self._window = Window()
                while state.step < parts.timeline.steps and not self._over:
                    with part("data"):
                        work = next(batches)
                    self._take_step(work)
                    self._log.advance()
                    self._after_step()
                    with self._uncounted():
                        step_ended()
            parts.writer.wait()
            if parts.config.evaluate_with is not None:
                self._wait_for_scores()
        except SharedError:  # on all ranks: a checkpoint that is being written is still worth having
            parts.writer.wait()
            raise
        finally:
            batches.close()
            self._log.close()

    def _write_scores(self, runs: DownstreamRuns) -> None:
        """Lines of the checkpoints that were scored since the last call."""
        assert self._log is not None
        for step, figures in runs.lines():
            self._log.write(step, figures)

    def _wait_for_scores(self) -> None:
        """At the end of the run: rank 0 waits for the fine-tunings that are left, the others for rank 0."""
        log, runs, stop = self._log, self.parts.downstream, self.parts.stop
        assert log is not None
        reason = from_rank_zero(
            lambda: runs.wait(log.write, stop.requested_on_any) if runs else None, meanwhile=stop.tell_rank_zero
        )
        if reason is not None:
            raise RunStopped(reason, self.state.step)

    def _profiler(self) -> StepProfiler | None:
        if not self.parts.profile:
            return None
        step, run = self.state.step, self.parts.writer.run
        return StepProfiler(run.path, global_rank(), step, self.parts.timeline.steps - step, say)

    @contextlib.contextmanager
    def _uncounted(self) -> Iterator[None]:
        """What happens here is no part of the speed of training."""
        begun = time.perf_counter()
        yield
        self._window.begun += time.perf_counter() - begun

    def _after_step(self) -> None:
        """Log, evaluate, save and stop as the settings and signals ask for after a step."""
        config, step = self.parts.config, self.state.step
        if self.parts.downstream is not None:
            self._write_scores(self.parts.downstream)
        last = step == self.parts.timeline.steps
        stopping = self._stop.is_set() and not last
        intervals = config.log_every, config.eval_every, config.save_every
        if self.parts.engine.lags and (last or stopping or any(every and step % every == 0 for every in intervals)):
            self._look_back(newest=True)  # nothing is told or kept of a step that went wrong
        if last or stopping or step % config.log_every == 0:
            self._log_window()
        if self.parts.evaluate and (last or (config.eval_every and step % config.eval_every == 0)):
            self._log_evaluation(self.parts.evaluate)
            self._over, best = self._judge()
        else:
            best = False
        if last or stopping or self._over or best or (config.save_every and step % config.save_every == 0):
            self._save()
        if stopping:
            self.parts.writer.wait()
            reasons = [reason for reason in gather_objects(self.parts.stop.requested) if reason]
            raise RunStopped(reasons[0], step)

    def _judge(self) -> tuple[bool, bool]:
        """What the evaluations so far decide: whether the run is over, and whether this step is one to keep."""
        selection, run, step = self.parts.selection, self.parts.writer.run, self.state.step
        if selection is None:
            return False, False
        over, best = from_rank_zero(lambda: (selection.is_over(run.metrics), selection.best(run.metrics)))
        if over:
            say(f"{selection.figure} was best at step {best}, {selection.patience} evaluations before: the run ends")
        return over, selection.keep_best and best == step

    def _take_step(self, work: StepBatches) -> None:
        """One optimizer step over the micro-batches of this rank."""
        parts, window, step = self.parts, self._window, work.step
        parts.watchdog.progress(step.step)
        with part("counts"):
            counts = self._count_targets(work)
        parts.engine.apply(step.optimizer, step.lr)
        losses = []
        for place, (number, batch) in enumerate(zip(work.numbers, self._feed.batches(work.batches), strict=True)):
            if self._profile is not None:
                self._profile.micro_batch(place, len(work.numbers))
            torch.manual_seed(stable_seed(Draw.DROPOUT, parts.seed, step.step, number))
            terms = parts.engine.micro_step(batch, counts, last=number == work.numbers[-1])
            for name, term in terms.items():
                window.add(name, term)
            losses.append(torch.stack([term.loss_sum.detach() for term in terms.values()]).sum())
            window.tokens += batch.num_tokens
            window.filler += batch.layout.num_filler
            window.flops += batch_flops(parts.arch, batch)
        window.steps += 1
        window.waited += work.waited
        if parts.engine.consecutive_skips:
            self._look_at_skipped(work, losses)
        if parts.engine.lags:
            self._look_back()
            self._before = work, losses
        self.state.step += 1
        self.state.rows_consumed += step.batch_size

    def _look_back(self, newest: bool = False) -> None:
        """Stop all ranks where the gradient of the step before the last, or of the last, was not finite."""
        if self.parts.engine.was_not_finite(newest):
            assert self._before is not None
            self._look_at_skipped(*self._before)

    def _count_targets(self, work: StepBatches) -> dict[str, Tensor]:
        """Targets of each term in the whole step, over all ranks, as tensors on the device; whether to stop as well."""
        names = sorted(work.batches[0].counts)
        local = [sum(batch.counts[name] for batch in work.batches) for name in names]
        *total, stop = all_reduce_sum([*local, self.parts.stop.requested is not None], self._device)
        self._stop.update(stop)
        self._window.count(dict(zip(names, total, strict=True)))
        return {name: count.clamp(min=1.0).float() for name, count in zip(names, total, strict=True)}

    def _look_at_skipped(self, work: StepBatches, losses: list[Tensor]) -> None:
        """After a step without a finite gradient, which changed nothing: stop all ranks, or go on for a while."""
        skipped, limit = self.parts.engine.consecutive_skips, self.parts.config.max_skipped_steps
        scaled, run = self.parts.engine.loss_scale is not None, self.parts.writer.run
        way_out = (
            f"Begin another run from {run.model} (--init_from; in fine-tuning --model) in another --train.output, with "
            "a lower --train.optimizer.lr, a longer warmup or gradient_clipping in its ds_config"
        )
        if self.parts.config.nonfinite == "stop" and not scaled:
            first = work.step.first_row
            gradient = f"the gradient is not finite, though the losses are (positions {first} to "
            gradient += f"{first + work.step.batch_size - 1} in the order of rows)"
            what = next((text for text in gather_objects(self._nonfinite_loss(work, losses)) if text), gradient)
            raise SharedError(
                f"step {work.step.step + 1}: {what}. Nothing was changed by it. To pass over such steps, give the same "
                f"command with --train.nonfinite skip. {way_out}"
            )
        if skipped >= limit:
            why = "overflowed in fp16" if scaled else "had no finite gradient"
            raise SharedError(
                f"step {work.step.step + 1}: the last {skipped} steps {why} and were skipped (train.max_skipped_steps "
                f"is {limit}). {way_out}" + (", or in bf16" if scaled else "")
            )

    def _nonfinite_loss(self, work: StepBatches, losses: list[Tensor]) -> str | None:
        """The first micro-batch of this rank whose loss is not finite, and its rows."""
        finite = torch.stack(losses).isfinite().tolist()
        if all(finite):
            return None
        number = work.numbers[finite.index(False)]
        where = self.parts.source.describe(positions_of(work.step, number), work.step)
        return f"the loss of micro-batch {number} is not finite ({where})"

    def _log_window(self) -> None:
        """Write the line of the window that ends here and begin the next."""
        window, state, engine = self._window, self.state, self.parts.engine
        sums = window.sums()
        names = sorted(sums)
        local = [float(sums[name]) for name in names]
        *summed, tokens, filler, flops = all_reduce_sum(
            [*local, window.tokens, window.filler, window.flops], self._device
        ).tolist()
        raise_together(self.parts.writer.problem())  # a checkpoint that failed on one rank stops all
        now = self.parts.timeline.at(state.step - 1)
        seconds = time.perf_counter() - window.begun
        state.tokens += int(tokens)
        figures: dict[str, float | int | None] = {
            **window.means(dict(zip(names, summed, strict=True))),
            "lr": now.lr,
            "grad_norm": engine.gradient_norm(),
            "tokens": state.tokens,
            "tokens_per_second": tokens / seconds,
            "mfu": flops / seconds / (self._peak * world_size()) if self._peak else None,
            "memory_bytes": max(gather_objects(memory_bytes(self._device))),
            "data_wait": window.waited / seconds,
            "eta": seconds / window.steps * (self.parts.timeline.steps - state.step),
            **({"filler": filler / (tokens + filler)} if self._fills else {}),
            **self.parts.timeline.varying(now),
            **(self.parts.progress(state.step) if self.parts.progress else {}),
        }
        if engine.loss_scale is not None or engine.skipped_steps:
            figures |= {"loss_scale": engine.loss_scale, "skipped_steps": engine.skipped_steps}
        assert self._log is not None
        self._log.write(state.step, figures)
        self._window = Window()

    def _log_evaluation(self, evaluate: Callable[[StepSettings], dict[str, float]]) -> None:
        assert self._log is not None
        with self._uncounted(), part("evaluation"):
            self._log.write(self.state.step, dict(evaluate(self.parts.timeline.at(self.state.step - 1))))

    def _save(self) -> None:
        with self._uncounted(), part("checkpoint"):
            if self._window.steps:  # the window so far would be lost with a resume
                self._log_window()
            engine = self.parts.engine
            self.parts.writer.save(engine.deepspeed, engine.model, self.state.step, self.state.state_dict())
