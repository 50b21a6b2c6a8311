"""The training loop: one for pretraining and fine-tuning, one for any number of ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.checkpoint.files import CheckpointManifest
from engine.checkpoint.save import CheckpointWriter
from engine.config.arch import ArchConfig
from engine.config.train import BatchShape, TrainConfig
from engine.data.draws import Draw, stable_seed
from engine.data.source import BatchSource, Prefetcher, StepBatches
from engine.optim.schedule import rate_factor
from engine.train.distributed import all_reduce_sum, gather_objects, global_rank
from engine.train.flops import batch_flops, peak_flops
from engine.train.metrics import MetricsLog, Window, memory_bytes
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


class Trainer:
    """Takes optimizer steps, logs, evaluates and saves."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        shape: BatchShape,
        arch: ArchConfig,
        engine: ZeroEngine,
        source: BatchSource,
        writer: CheckpointWriter,
        state: TrainerState,
        seed: int,
        evaluate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            config: the loop's settings.
            shape: the batch of a step.
            arch: for counting operations.
            engine: the DeepSpeed engine with weights in place.
            source: training samples.
            writer: saves checkpoints.
            state: where the run is.
            seed: of dropout.
            evaluate: figures for an evaluation line, called by all ranks; None where there is no held-out data.
        """
        self.config, self.shape, self.arch, self.seed = config, shape, arch, seed
        self.engine, self.source, self.writer, self.state = engine, source, writer, state
        self.evaluate = evaluate
        self._peak = peak_flops(config.peak_tflops)
        self._window = Window()
        self._log: MetricsLog | None = None

    def train(self) -> None:
        """Train to ``config.steps``; returns when the last checkpoint is saved."""
        config, state = self.config, self.state
        self._log = MetricsLog(self.writer.run.metrics, config, state.step)
        steps = config.steps - state.step
        batches = Prefetcher(self.source, state.rows_consumed, steps, self.shape, global_rank())
        try:
            self._window = Window()
            for _ in range(steps):
                self._take_step(next(batches))
                self._log.advance()
                last = state.step == config.steps
                if last or state.step % config.log_every == 0:
                    self._log_step()
                if self.evaluate and (last or (config.eval_every and state.step % config.eval_every == 0)):
                    self._log_evaluation(self.evaluate)
                if last or (config.save_every and state.step % config.save_every == 0):
                    self._save()
        finally:
            batches.close()
            self._log.close()

    def _take_step(self, work: StepBatches) -> None:
        """One optimizer step over the micro-batches of this rank."""
        state, window = self.state, self._window
        counts = self._count_targets(work)
        self.engine.set_learning_rate(
            self.config.optimizer.lr * rate_factor(self.config.schedule, state.step, self.config.steps)
        )
        for number, batch in zip(work.numbers, work.batches, strict=True):
            torch.manual_seed(stable_seed(Draw.DROPOUT, self.seed, state.step, number))
            terms = self.engine.micro_step(batch.to(self.engine.device), counts)
            for name, term in terms.items():
                loss = term.loss_sum.detach().double()
                window.loss_sums[name] = window.loss_sums[name] + loss if name in window.loss_sums else loss
                window.weights[name] = term.weight
            window.tokens += batch.num_tokens
            window.flops += batch_flops(self.arch, batch)
        window.waited += work.waited
        window.steps += 1
        state.step += 1
        state.rows_consumed += self.shape.batch_size

    def _count_targets(self, work: StepBatches) -> dict[str, torch.Tensor]:
        """Targets of each term in the whole step, over all ranks, as tensors on the device."""
        names = sorted(work.batches[0].counts)
        local = [sum(batch.counts[name] for batch in work.batches) for name in names]
        total = all_reduce_sum(local, self.engine.device)
        for name, count in zip(names, total, strict=True):
            window = self._window.counts
            window[name] = window[name] + count if name in window else count
        return {name: count.clamp(min=1.0).float() for name, count in zip(names, total, strict=True)}

    def _log_step(self) -> None:
        """Write the line of the window that ends here and begin the next."""
        window, state = self._window, self.state
        names = sorted(window.loss_sums)
        local = [float(window.loss_sums[name]) for name in names]
        summed = all_reduce_sum([*local, window.tokens, window.flops], self.engine.device).tolist()
        seconds = time.perf_counter() - window.begun
        state.tokens += int(summed[-2])
        figures: dict[str, float | int | None] = {
            **window.mean_losses(dict(zip(names, summed, strict=False))),
            "lr": self.engine.optimizer.param_groups[0]["lr"],
            "grad_norm": self.engine.gradient_norm(),
            "tokens": state.tokens,
            "tokens_per_second": summed[-2] / seconds,
            "mfu": summed[-1] / seconds / (self._peak * self.shape.world_size) if self._peak else None,
            "memory_bytes": max(gather_objects(memory_bytes(self.engine.device))),
            "data_wait": window.waited / seconds,
            "eta": seconds / window.steps * (self.config.steps - state.step),
        }
        assert self._log is not None
        self._log.write(state.step, figures)
        self._window = Window()

    def _log_evaluation(self, evaluate: Callable[[], dict[str, float]]) -> None:
        assert self._log is not None
        begun = time.perf_counter()
        self._log.write(self.state.step, dict(evaluate()))
        self._window.begun += time.perf_counter() - begun  # the speed of training does not count evaluations

    def _save(self) -> None:
        begun = time.perf_counter()
        if self._window.steps:  # the window so far would be lost with a resume
            self._log_step()
        self.writer.save(self.engine.deepspeed, self.engine.model, self.state.step, self.state.state_dict())
        self._window.begun += time.perf_counter() - begun
