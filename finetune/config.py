"""The settings of fine-tuning and of prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from engine.config.cli import nearest
from engine.config.optimizer import OptimizerConfig
from engine.config.train import TrainConfig

TASK_NAMES = ("classification",)
DEFAULT_OUTPUT = "runs/finetune"


@dataclass(frozen=True, kw_only=True)
class FinetuneTrainConfig(TrainConfig):
    """The training loop, with fine-tuning's own defaults.

    Args:
        output: run folder, the same as --output; the same command goes on where an earlier one stopped.
        steps: optimizer steps of the whole run; 0 follows from --epochs.
        save_every: steps between checkpoints; 0 saves after every epoch. The last step is always saved.
        eval_every: steps between evaluations on the dev file; 0 evaluates after every epoch.
        eval_rows: first examples of the dev file used in an evaluation on the way; 0 uses all, as the last one does.
    """

    output: str = ""
    steps: int = 0
    batch_size: int = 32
    save_every: int = 0
    keep_checkpoints: int = 2
    eval_every: int = 0
    eval_rows: int = 0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=5e-5))

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        if self.evaluate_with is not None:
            text = "train.evaluate_with is given, and fine-tunes checkpoints of a pretraining; remove it"
            return [text, *replace(self, evaluate_with=None).problems()]
        if self.steps:
            return super().problems()
        found = replace(self, steps=1, batch_ramp={}).problems()
        if self.batch_ramp:
            found.append(
                "train.batch_ramp is given with epochs, whose steps are counted for train.batch_size; give train.steps"
            )
        return found

    def for_epochs(self, output: str, epochs: int, num_examples: int) -> FinetuneTrainConfig:
        """Fill in the output, the defaults of optimizer and schedule, and what follows from the epochs.

        An epoch is ceil(num_examples / batch_size) steps.
        """
        epoch = math.ceil(num_examples / self.batch_size)
        return replace(
            self.completed(),
            output=output,
            steps=self.steps or epochs * epoch,
            save_every=self.save_every or epoch,
            eval_every=self.eval_every or epoch,
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tune a model on a labelled file, and measure it on others.

    Args:
        ds_config: DeepSpeed JSON file: precision, ZeRO, clipping, communication (see ds_configs/README.md).
        model: model folder or run folder: architecture, tokenizer and weights.
        train_file: tab-separated file with columns label, text_a and, for pairs, text_b.
        dev_file: file to evaluate on during the run and at its end.
        test_file: file to evaluate on at the end.
        task: what is learned: classification.
        random_init: start from random weights in the model's architecture, to compare.
        columns: names of the columns, for files whose first line does not name them: label,text_a,text_b; or, where it
            has other names, which is which: label=sentiment,text_a=review.
        max_length: tokens of an example, special tokens included; longer ones are cut and counted.
        epochs: passes over the training file; train.steps, where given, decides instead.
        output: run folder, the same as --train.output.
        train: the training loop.
        profile: write a trace of a few steps of this start into the run folder, for ui.perfetto.dev.
        backend: what moves tensors between ranks: nccl or gloo; nccl on GPUs and gloo on CPUs where not given.
        dry_run: check everything, print what would run and where, and end; no file is written.
        seed: seed of new weights, data order and dropout.
        local_rank: set by the deepspeed launcher; ignored, the environment decides.
    """

    ds_config: str
    model: str
    train_file: str
    dev_file: str
    test_file: str | None = None
    task: str = TASK_NAMES[0]
    random_init: bool = False
    columns: str | None = None
    max_length: int = 128
    epochs: int = 3
    output: str | None = None
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    profile: bool = False
    backend: str | None = None
    dry_run: bool = False
    seed: int = 1
    local_rank: int = -1

    def run_folder(self) -> str:
        """Where the run is written, whichever option named it."""
        return self.output or self.train.output or DEFAULT_OUTPUT

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        found = []
        if self.task not in TASK_NAMES:
            found.append(
                f"unknown task {self.task!r}; there are {', '.join(TASK_NAMES)}{nearest(self.task, TASK_NAMES)}"
            )
        if not 0 <= self.seed < 2**63:
            found.append(f"seed is {self.seed}; it must be in [0, 2^63)")
        if self.epochs < 1:
            found.append(f"epochs is {self.epochs}; it must be at least 1")
        if self.output and self.train.output and self.output != self.train.output:
            found.append(f"--output {self.output} and --train.output {self.train.output} differ; give one of them")
        return found + self.train.problems()


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Label the lines of a file.

    Args:
        model: folder of a fine-tuned model, or run folder of a fine-tuning.
        input: tab-separated file with the column text_a and, for a model of pairs, text_b; others are left alone.
        output: file to write: a first line with the names of the columns, then a line for each line of the input.
        columns: names of the columns, for a file whose first line does not name them, such as text_a,text_b; or, where
            it has other names, which is which: text_a=review.
        probabilities: write a column probability_LABEL for each class too.
        batch_size: lines per forward pass.
    """

    model: str
    input: str
    output: str
    columns: str | None = None
    probabilities: bool = False
    batch_size: int = 32

    def problems(self) -> list[str]:
        """Everything wrong with these settings that can be seen without reading a file."""
        return [f"batch_size is {self.batch_size}; it must be at least 1"] if self.batch_size < 1 else []
