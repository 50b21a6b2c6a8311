"""The settings of fine-tuning and of prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

from engine.config.cli import nearest
from engine.config.optimizer import OptimizerConfig
from engine.config.train import TrainConfig
from finetune.config.multitask import MULTITASK, MultitaskConfig, TaskEntry
from finetune.config.tasks import TASK_NAMES, FileConfig, TasksConfig, changed, usual
from finetune.config.techniques import AdversarialConfig, LoraConfig
from finetune.training.class_weights import class_weight_problems

DEFAULT_OUTPUT = "runs/finetune"


@dataclass(frozen=True, kw_only=True)
class FinetuneTrainConfig(TrainConfig):
    """The training loop, with fine-tuning's own defaults.

    Args:
        output: run folder, the same as --output; the same command goes on where an earlier one stopped.
        steps: optimizer steps of the whole run; 0 follows from --epochs.
        fixed_shapes: fill batches up, so that few differ in shape, which saves time and memory on a CPU too; not given:
            everywhere.
        save_every: steps between checkpoints; 0 saves after every epoch. The last step is always saved.
        eval_every: steps between evaluations on the dev file; 0 evaluates after every epoch.
        eval_rows: first records of the dev file used in an evaluation on the way; 0 uses all, as the last one does.
        early_stopping: end the run after so many evaluations without a better main figure of the task; 0: never.
        keep_best: the run's results and model are those of its best evaluation, and not of its last step.
    """

    output: str = ""
    steps: int = 0
    batch_size: int = 32
    save_every: int = 0
    keep_checkpoints: int = 2
    eval_every: int = 0
    eval_rows: int = 0
    early_stopping: int = 0
    keep_best: bool = False
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=5e-5))

    def fills_batches(self, device_type: str) -> bool:
        """Whether batches are filled up to few shapes; each new shape costs a CPU's matrix library time and memory."""
        return self.fixed_shapes is None or self.fixed_shapes

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        if self.evaluate_with is not None:
            text = "train.evaluate_with is given, and fine-tunes checkpoints of a pretraining; remove it"
            return [text, *replace(self, evaluate_with=None).problems()]
        if self.early_stopping < 0:
            text = f"train.early_stopping is {self.early_stopping}; it must be at least 1, or 0 to go on to the end"
            return [text, *replace(self, early_stopping=0).problems()]
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
class FinetuneConfig(TasksConfig):
    """Fine-tune a model on a labelled file, and measure it on others.

    Args:
        ds_config: DeepSpeed JSON file: precision, ZeRO, clipping, communication (see ds_configs/README.md).
        model: model folder or run folder: architecture, tokenizer and weights.
        train_file: labelled examples, laid out as the task reads them (docs/finetuning.md); not of multitask.
        dev_file: file to evaluate on during the run and at its end; where not given, a part of the training file.
        dev_share: the part of the training file that is evaluated on and not learned, where there is no dev file.
        test_file: file to evaluate on at the end; one without answers is predicted into the run folder.
        task: what is learned: classification, regression, ranking, token_classification, question_answering,
            multiple_choice, similarity, lm, seq2seq or multitask (docs/finetuning.md).
        multitask: several tasks at once, each with its files (docs/multitask.md).
        random_init: start from random weights in the model's architecture, to compare.
        columns: names of the columns, for files whose first line does not name them: label,text_a,text_b; or, where it
            has other names, which is which: label=sentiment,text_a=review.
        format: of tables: tsv, csv or jsonl; by the file's name and first line where not given.
        bad_lines: what happens to malformed lines of tables: error, or skip, which counts and reports them.
        class_weights: none; balanced, inverse to how often a class is; or weights by label, such as
            {"no": 1, "yes": 3.5}, and 1 for others. They are scaled to a mean of 1 over the training examples.
        max_length: tokens of an example, special tokens included; longer ones are cut and counted.
        epochs: passes over the training file; train.steps, where given, decides instead.
        output: run folder, the same as --train.output.
        train: the training loop.
        adversarial: training on moved vectors as well (docs/techniques.md).
        lora: low-rank adapters in place of the encoder's own weights (docs/techniques.md).
        profile: write a trace of a few steps of this start into the run folder, for ui.perfetto.dev.
        backend: what moves tensors between ranks: nccl or gloo; nccl on GPUs and gloo on CPUs where not given.
        seeds: several runs one after the other, each with its seed: OUTPUT/seed-1 and so on, and OUTPUT/summary.json.
        folds: divide the training file in so many parts, and do a run for each, which does not learn it and is
            evaluated on it: OUTPUT/fold-0 and so on, OUTPUT/summary.json and OUTPUT/out_of_fold.tsv; 0: no folds.
        fold: of --folds, do the run of this one alone, from 0, in OUTPUT itself.
        dry_run: check everything, print what would run and where, and end; no file is written.
        seed: seed of new weights, data order and dropout.
        local_rank: set by the deepspeed launcher; ignored, the environment decides.
    """

    ds_config: str
    model: str
    train_file: str = ""
    dev_file: str | None = None
    dev_share: float = 0.1
    test_file: str | None = None
    task: str = TASK_NAMES[0]
    multitask: MultitaskConfig = field(default_factory=MultitaskConfig)
    random_init: bool = False
    columns: str | None = None
    format: str | None = None
    bad_lines: str = "error"
    class_weights: dict[str, float] | str = "none"
    max_length: int = 128
    epochs: int = 3
    output: str | None = None
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    profile: bool = False
    backend: str | None = None
    seeds: list[int] = field(default_factory=list)
    folds: int = 0
    fold: int | None = None
    dry_run: bool = False
    seed: int = 1
    local_rank: int = -1

    @property
    def files(self) -> FileConfig:
        """How the labelled files are read."""
        return FileConfig(self.columns, self.format, self.bad_lines)

    def of_entry(self, entry: TaskEntry) -> FinetuneConfig:
        """The settings with which one of several tasks would be learned alone."""
        own = {item.name: getattr(entry, item.name) for item in fields(TaskEntry) if item.name != "name"}
        return replace(self, **own)

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
        else:
            found += self.of_task().problems()
        found += self._training_file_problems()
        found += self.files.problems() + class_weight_problems(self.class_weights)
        if not 0 < self.dev_share < 1:
            found.append(f"dev_share is {self.dev_share}; it must be above 0 and below 1")
        elif self.dev_share != usual(self, "dev_share") and (self.dev_file is not None or self.folds):
            other = "--folds" if self.folds else f"--dev_file {self.dev_file}"
            found.append(f"dev_share is given with {other}, which says what is evaluated on; remove one of them")
        if not 0 <= self.seed < 2**63:
            found.append(f"seed is {self.seed}; it must be in [0, 2^63)")
        if self.epochs < 1:
            found.append(f"epochs is {self.epochs}; it must be at least 1")
        if self.output and self.train.output and self.output != self.train.output:
            found.append(f"--output {self.output} and --train.output {self.train.output} differ; give one of them")
        found += self._repeat_problems()
        return found + self.adversarial.problems() + self.lora.problems() + self.train.problems()

    def _training_file_problems(self) -> list[str]:
        """A training file is needed, but for several tasks, which name their own."""
        if self.task != MULTITASK:
            return [] if self.train_file else ["train_file is missing: the file of labelled examples"]
        given = [name for name in ("train_file", "dev_file", "test_file", "columns", "format") if getattr(self, name)]
        given += changed(self, ("bad_lines", "class_weights"))
        found = [f"{name} is given with --task multitask; give it for each of multitask.tasks" for name in given]
        if self.folds:
            found.append("folds is given with --task multitask; only a task by itself is divided into folds")
        if self.train.batch_ramp:
            found.append("train.batch_ramp is given with --task multitask, whose steps are all of train.batch_size")
        return found

    @property
    def is_repeated(self) -> bool:
        """Whether the command means several runs."""
        return bool(self.seeds) or (self.folds != 0 and self.fold is None)

    def _repeat_problems(self) -> list[str]:
        """What is wrong with the settings of several runs."""
        found = [f"seeds has {seed}; each must be in [0, 2^63)" for seed in self.seeds if not 0 <= seed < 2**63]
        if len(set(self.seeds)) < len(self.seeds):
            found.append(f"seeds are {self.seeds}; each may stand there once")
        if self.folds < 0 or self.folds == 1:
            found.append(f"folds is {self.folds}; it must be at least 2, or 0 for none")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            found.append(f"fold is {self.fold}; it must be at least 0 and below --folds, which is {self.folds}")
        if self.seeds and self.seed != usual(self, "seed"):
            found.append(f"seed is {self.seed} and seeds are {self.seeds}; each run has its own of these: remove seed")
        if self.seeds and self.folds:
            found.append("seeds and folds are both given; give one of them, and --seed for the seed of all folds")
        if self.folds and self.task == MULTITASK:
            found.append("folds is given with --task multitask; divide the files of its tasks one by one")
        elif self.folds and self.dev_file is not None:
            found.append(f"--dev_file {self.dev_file} is given with --folds, which evaluate on the fold; remove it")
        return found
