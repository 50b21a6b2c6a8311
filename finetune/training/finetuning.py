"""From a fine-tuning configuration to the parts of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.run_folder import MODEL, RunFolder, write_text
from engine.config.arch import ArchConfig
from engine.config.cli import UsageError, collect
from engine.config.deepspeed_json import (
    DeepSpeedSettings,
    complete_deepspeed_config,
)
from engine.convert.configs import read_json
from engine.convert.model_folder import find_weights
from engine.models.lora import add_adapters, merged
from engine.models.model import Model, build_model
from engine.models.transformer import Transformer
from engine.objectives.base import Objective
from engine.optim.groups import pattern_problems
from engine.train.distributed import global_rank, init_distributed
from engine.train.evaluate import Runner
from engine.train.initial import load_initial_weights
from engine.train.metrics import say
from engine.train.model_card import DataPart
from engine.train.run import RunParts, check_settings, run_training
from engine.train.run_record import run_record
from engine.train.selection import Selection
from engine.train.timeline import StepSettings, Timeline
from finetune.config.multitask import MULTITASK
from finetune.config.run import FinetuneConfig, FinetuneTrainConfig
from finetune.config.tasks import TASK_NAMES
from finetune.features.sequences import SequenceBuilder
from finetune.inference.writing import replaced_file, writer_of
from finetune.model_folder import KEY, find_model_folder, read_architecture, same_task, write_finetuned_model
from finetune.tasks.base import Example, Task
from finetune.tasks.multitask import Multitask
from finetune.training.adversarial import AdversarialObjective
from finetune.training.evaluation import evaluate, first_examples, run_outputs
from finetune.training.labelled import LabelledFile, read_labelled_files
from finetune.training.multitask_source import MultitaskSource
from finetune.training.source import ExampleSource, digest_of
from preprocess.tokenizer import load_tokenizer

RESULTS = "results.json"
PREDICTIONS = "{}_predictions.tsv"  # of a file without answers
FOLD_PREDICTIONS = "fold_predictions.jsonl"


@dataclass(frozen=True)
class Resolved:
    """A configuration whose parts were found and fit together.

    Attributes:
        config: with the run folder and what follows from the epochs filled in.
        folder: the model folder.
        files: the records of train, dev and, where there is one, test.
        examples: those of each file.
        notes: what a user should know of the files.
    """

    config: FinetuneConfig
    folder: Path
    arch: ArchConfig
    builder: SequenceBuilder
    task: Task[Any]
    files: dict[str, LabelledFile]
    examples: dict[str, list[Example]]
    settings: DeepSpeedSettings
    notes: tuple[str, ...]


def finetune(config: FinetuneConfig) -> RunFolder:
    """Fine-tune, evaluate and write results.json; returns the finished run's folder.

    Raises:
        ValueError: all problems of the configuration at once, before any work.
    """
    begun = time.perf_counter()
    resolved = resolve(config)
    device = init_distributed(config.backend)
    for note in resolved.notes:
        say(f"note: {note}")
    train, task = resolved.config.train, resolved.task
    task.key_draws(config.seed)
    sources = {name: make_source(resolved, made) for name, made in resolved.examples.items()}
    dev, dev_records = sources["dev"], resolved.files["dev"].records

    def outputs_of(runner: Runner, name: str, num_records: int = 0) -> list[Any]:
        return run_outputs(runner, sources[name], num_records, train.micro_batch_size, device)

    def evaluate_dev(runner: Runner, step: StepSettings) -> dict[str, float]:
        found = evaluate(runner, dev, dev_records, train.eval_rows, train.micro_batch_size, device)
        assert task.main_figure in found, f"{task.kind} measures {sorted(found)}, and not {task.main_figure}"
        return {f"heldout_{name}": value for name, value in found.items()}

    def conclude(runner: Runner, step: int) -> None:
        on_dev = outputs_of(runner, "dev", train.eval_rows)
        # what the evaluation of these weights chose: others may have been evaluated since, or another process ran then
        task.tune(on_dev, first_examples(dev, train.eval_rows), dev_records)
        whole = {} if train.eval_rows else {"dev": on_dev}
        figures = figures_of(resolved, lambda name: whole[name] if name in whole else outputs_of(runner, name))
        write_results(resolved, figures, step, time.perf_counter() - begun)

    return run_training(
        RunParts(
            train=train,
            timeline=Timeline([train.stage(seq_length=0, length_ramp={})]),
            settings=resolved.settings,
            arch=resolved.arch,
            seed=config.seed,
            resolved=resolved_tree(resolved),
            defaults=default_tree(),
            objective=objective_of(resolved),
            source=sources["train"],
            build=partial(initial_model, resolved),
            export=partial(export, resolved),
            num_samples=sources["train"].num_samples,
            evaluator=evaluate_dev,
            conclude=conclude,
            data=data_parts(resolved),
            profile=config.profile,
            selection=selection_of(resolved),
            restored=partial(take_up, resolved),
        )
    )


def resolve(config: FinetuneConfig) -> Resolved:
    """Find and check everything that the settings name; UsageError lists all that is wrong."""
    problems = config.problems()
    train = replace(config.train, steps=config.train.steps or 1)  # those of the epochs are not known yet
    stages = [train.stage(config.max_length, {})]
    tree, shape, device = check_settings(config.ds_config, stages, problems, config.backend, config.dry_run)
    model = collect(problems, lambda: open_model(config))
    task, files = read_labelled_files(config, problems)
    if model and task:
        names = collect(problems, lambda: names_with_adapters(config, model[1], task))
        problems += pattern_problems(config.train.optimizer, names) if names else []
    if problems or not (tree is not None and model and task):
        raise UsageError("\n".join(dict.fromkeys(problems)))
    folder, arch, builder = model
    examples = {name: file.examples(task, builder) for name, file in files.items()}
    train = config.train.for_epochs(config.run_folder(), config.epochs, len(examples["train"]))
    notes = file_notes(config, task, files, examples)
    settings = complete_deepspeed_config(tree, shape, device)
    return Resolved(replace(config, train=train), folder, arch, builder, task, files, examples, settings, notes)


def file_notes(
    config: FinetuneConfig, task: Task[Any], files: dict[str, LabelledFile], examples: dict[str, list[Example]]
) -> tuple[str, ...]:
    """What a user should know of the files of a run."""
    notes = [note for file in files.values() for note in task.notes(file.file)]
    for name, file in files.items():
        if cut := num_truncated(examples[name]):
            notes.append(
                f"{file.file.path}: {cut:,} of {len(examples[name]):,} examples cut to {config.max_length} tokens"
            )
        if file.targets is None:
            notes.append(f"{file.file.path}: without answers; predictions are written to {PREDICTIONS.format(name)}")
    if config.dev_file is None and config.fold is None and config.task != MULTITASK:
        count, total = len(files["dev"].records), sum(len(files[name].records) for name in ("train", "dev"))
        notes.append(
            f"{config.train_file}: {count:,} of {total:,} records are split off to evaluate on, and not learned "
            "(--dev_share, or give --dev_file)"
        )
    return tuple(dict.fromkeys(notes))


def selection_of(resolved: Resolved) -> Selection | None:
    """What the evaluations on the dev file decide; None: nothing."""
    train = resolved.config.train
    if not (train.early_stopping or train.keep_best):
        return None
    return Selection(f"heldout_{resolved.task.main_figure}", train.early_stopping, train.keep_best)


def objective_of(resolved: Resolved) -> Objective:
    """What is learned: the task, or the task under attack."""
    attack = resolved.config.adversarial
    return AdversarialObjective(resolved.task, attack) if attack.method else resolved.task


def names_with_adapters(config: FinetuneConfig, arch: ArchConfig, task: Task[Any]) -> list[str]:
    """Names of the model's parameters, without memory for them; ValueError where adapters do not fit."""
    with torch.device("meta"):
        model = with_adapters(config, Model(Transformer(arch), task.make_heads(arch)))
    return [name for name, _ in model.named_parameters()]


def make_source(resolved: Resolved, examples: Sequence[Example]) -> ExampleSource:
    """Examples as batches of the task, or of the tasks."""
    config, task, builder = resolved.config, resolved.task, resolved.builder
    if isinstance(task, Multitask):
        power = config.multitask.size_power
        return MultitaskSource(task, builder, examples, config.seed, config.train.batch_size, power)
    return ExampleSource(task, builder, examples, config.seed)


def num_truncated(examples: Sequence[Example]) -> int:
    """How many examples had a text that was cut."""
    return sum(example.truncated for example in examples)


def open_model(config: FinetuneConfig) -> tuple[Path, ArchConfig, SequenceBuilder]:
    """Find the model folder and check that its parts fit together."""
    folder = find_model_folder(config.model)
    if not config.random_init:
        find_weights(folder)
    arch = read_architecture(folder)
    return folder, arch, SequenceBuilder(load_tokenizer(folder), arch, config.max_length)


def data_parts(resolved: Resolved) -> list[DataPart]:
    """What the run reads, for the model card."""
    return [
        DataPart(f"{name}: {Path(path_of(resolved, name)).name}", digest_of(examples), {"examples": len(examples)})
        for name, examples in resolved.examples.items()
    ]


def path_of(resolved: Resolved, name: str) -> str:
    """The path of train, dev or test."""
    return resolved.files[name].file.path


def initial_model(resolved: Resolved, fresh: bool) -> Model:
    """The model with its first weights: the folder's, and the head's own where the folder has none for these labels."""
    arch, task = resolved.arch, resolved.task
    model = build_model(arch, task.make_heads(arch), resolved.config.seed)
    if fresh and not resolved.config.random_init:
        kept = tuple(f"{name}." for name in task.pretrained_heads)
        own = [name for name, _ in model.heads.named_parameters() if not name.startswith(kept)]
        head = [f"heads.{name}" for name in own]
        same = same_task(read_json(resolved.folder / "config.json"), task)
        new = [] if same else [name for name in head if ".pooler." not in name]
        poolers = {name: f"heads.classification.{name.split('.', 2)[2]}" for name in head if ".pooler." in name}
        load_initial_weights(model, arch, resolved.folder, without=new, named_otherwise=poolers)
    return with_adapters(resolved.config, model)


def with_adapters(config: FinetuneConfig, model: Model) -> Model:
    """The same model, with the adapters of the settings where they ask for some."""
    if config.lora.rank:
        add_adapters(model, config.lora.targets, config.lora.rank, config.lora.scale, config.seed)
    return model


def export(resolved: Resolved, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as a model folder; adapters become part of the maps that they belong to."""
    weights = merged(weights, resolved.config.lora.scale)
    write_finetuned_model(folder, weights, resolved.arch, resolved.task, resolved.builder)


def default_tree() -> dict[str, Any]:
    """What each setting is where it is not given, for runs of a version that did not know it."""
    train = FinetuneTrainConfig().completed()
    return asdict(FinetuneConfig(ds_config="", model="", train_file="", dev_file="", train=train))


def resolved_tree(resolved: Resolved) -> dict[str, Any]:
    """All settings of a run as a JSON tree; what identifies data and tokenizer is in it by digest."""
    tree = asdict(resolved.config)
    del tree["output"], tree["epochs"], tree["dry_run"], tree["seeds"]  # train.output and train.steps say the first two
    for kind in TASK_NAMES:
        if kind != resolved.config.task:
            del tree[kind]
    tree["arch"] = asdict(resolved.arch)
    tree["labels"] = list(resolved.task.labels)
    tree["data"] = {
        "train_digest": digest_of(resolved.examples["train"]),
        "tokenizer_digest": resolved.builder.tokenizer.digest,
    }
    return {**tree, **run_record(resolved.settings)}


def figures_of(resolved: Resolved, outputs_of: Callable[[str], list[Any]]) -> dict[str, float]:
    """The figures of dev and test by FILE_FIGURE; the predictions of a fold and of files without answers are written.

    Args:
        resolved: of the run.
        outputs_of: the outputs of a file, by name; called in the same order on all ranks.
    """
    task, figures = resolved.task, dict[str, float]()
    for name in [name for name in resolved.files if name != "train"]:
        outputs, part = outputs_of(name), resolved.files[name]
        if part.targets is None:
            write_predictions(resolved, name, outputs)
            continue
        found = task.figures(outputs, resolved.examples[name], part.records)
        figures |= {f"{name}_{figure}": value for figure, value in found.items()}
        if name == "dev" and resolved.config.fold is not None:
            write_fold(resolved, outputs)
    return figures


def take_up(resolved: Resolved, checkpoint: Path) -> None:
    """Let the task go on with what it had chosen when a checkpoint was written."""
    written = checkpoint / MODEL / "config.json"
    if written.is_file():
        resolved.task.take_up(read_json(written).get(KEY, {}))


def write_predictions(resolved: Resolved, name: str, outputs: Sequence[Any]) -> None:
    """Write the predictions of a file without answers into the run folder, from rank 0."""
    path, task = Path(resolved.config.train.output) / PREDICTIONS.format(name), resolved.task
    if global_rank() == 0:
        examples, records = resolved.examples[name], resolved.files[name].records
        answers = task.answers(outputs, examples, records, probabilities=False)
        for written in (path, *([path.with_suffix(".json")] if task.official_columns else [])):
            with replaced_file(written) as file:
                writer = writer_of(str(written), task.answer_columns(False), file, task.official_columns)
                for answer in answers:
                    writer.write(answer)
                writer.finish()
    say(f"{path}: the predictions for {path_of(resolved, name)}")


def write_fold(resolved: Resolved, outputs: Sequence[Any]) -> None:
    """Write the predictions of the fold that was not learned, each with its record's number, from rank 0."""
    if global_rank() != 0:
        return
    task, part = resolved.task, resolved.files["dev"]
    answers = task.answers(outputs, resolved.examples["dev"], part.records, probabilities=True)
    path = Path(resolved.config.train.output) / FOLD_PREDICTIONS
    with replaced_file(path) as file:
        writer = writer_of(str(path), ["record", *task.answer_columns(True)], file)
        for number, answer in zip(part.numbers or (), answers, strict=True):
            writer.write({"record": number, **answer})


def write_results(resolved: Resolved, figures: dict[str, float], step: int, seconds: float) -> None:
    """Write results.json into the run folder and the log, from rank 0."""
    say(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    if global_rank() != 0:
        return
    config = resolved.config
    results = {
        **figures,
        "num_examples": {name: len(examples) for name, examples in resolved.examples.items()},
        "num_truncated": {name: num_truncated(examples) for name, examples in resolved.examples.items()},
        "labels": list(resolved.task.labels),
        "task": config.task,
        "main_figure": resolved.task.main_figure,
        "model": config.model,
        "random_init": config.random_init,
        "steps": config.train.steps,
        "step": step,
        "precision": resolved.settings.precision,
        "seconds": round(seconds, 1),
    }
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_text(Path(config.train.output) / RESULTS, text)
