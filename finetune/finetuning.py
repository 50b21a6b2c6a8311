"""From a fine-tuning configuration to the parts of a run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.checkpoint.run_folder import RunFolder, write_text
from engine.config.arch import ArchConfig
from engine.config.cli import UsageError, collect
from engine.config.deepspeed_json import (
    DeepSpeedSettings,
    complete_deepspeed_config,
)
from engine.convert.configs import read_json
from engine.convert.model_folder import find_weights
from engine.models.model import Model, build_model, parameter_names
from engine.optim.groups import pattern_problems
from engine.train.distributed import global_rank, init_distributed
from engine.train.evaluate import Runner
from engine.train.initial import load_initial_weights
from engine.train.metrics import say
from engine.train.model_card import DataPart
from engine.train.run import RunParts, check_settings, run_record, run_training
from engine.train.timeline import StepSettings, Timeline
from finetune.config import FinetuneConfig, FinetuneTrainConfig
from finetune.evaluation import evaluate
from finetune.labelled import read_labelled_files
from finetune.model_folder import find_model_folder, labels_of, read_architecture, write_finetuned_model
from finetune.sequences import SequenceBuilder
from finetune.source import Examples, ExampleSource
from finetune.tasks.base import Task
from preprocess.tokenizer import load_tokenizer

RESULTS = "results.json"


@dataclass(frozen=True)
class Resolved:
    """A configuration whose parts were found and fit together.

    Attributes:
        config: with the run folder and what follows from the epochs filled in.
        folder: the model folder.
        files: the examples of train, dev and, where there is one, test.
        notes: what a user should know of the files.
    """

    config: FinetuneConfig
    folder: Path
    arch: ArchConfig
    builder: SequenceBuilder
    task: Task
    files: dict[str, Examples]
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
    train, task, builder = resolved.config.train, resolved.task, resolved.builder
    sources = {name: ExampleSource(task, builder, file, config.seed) for name, file in resolved.files.items()}

    def evaluate_dev(runner: Runner, step: StepSettings) -> dict[str, float]:
        figures = evaluate(runner, sources["dev"], train.eval_rows, train.micro_batch_size, device)
        return {f"heldout_{name}": value for name, value in figures.items()}

    def conclude(runner: Runner) -> None:
        figures: dict[str, float] = {}
        for name in [name for name in sources if name != "train"]:  # in the same order on all ranks
            found = evaluate(runner, sources[name], 0, train.micro_batch_size, device)
            figures |= {f"{name}_{figure}": value for figure, value in found.items()}
        write_results(resolved, figures, time.perf_counter() - begun)

    return run_training(
        RunParts(
            train=train,
            timeline=Timeline([train.stage(seq_length=0, length_ramp={})]),
            settings=resolved.settings,
            arch=resolved.arch,
            seed=config.seed,
            resolved=resolved_tree(resolved),
            defaults=default_tree(),
            objective=task,
            source=sources["train"],
            build=partial(initial_model, resolved),
            export=lambda folder, weights: write_finetuned_model(folder, weights, resolved.arch, task, builder),
            num_samples=sources["train"].num_samples,
            evaluator=evaluate_dev,
            conclude=conclude,
            data=data_parts(resolved),
            profile=config.profile,
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
        learned = task
        names = parameter_names(model[1], lambda arch: {learned.name: learned.make_head(arch)})
        problems += pattern_problems(config.train.optimizer, names)
    if problems or not (tree is not None and model and task):
        raise UsageError("\n".join(dict.fromkeys(problems)))
    folder, arch, builder = model
    examples = {name: file.examples(task, builder) for name, file in files.items()}
    train = config.train.for_epochs(config.run_folder(), config.epochs, len(files["train"].rows))
    notes = [note for file in files.values() for note in file.notes(task)]
    for name, file in files.items():
        if num_truncated := examples[name].num_truncated:
            notes.append(
                f"{file.table.path}: {num_truncated:,} of {len(file.rows):,} examples cut to {config.max_length} tokens"
            )
    settings = complete_deepspeed_config(tree, shape, device)
    return Resolved(replace(config, train=train), folder, arch, builder, task, examples, settings, tuple(notes))


def open_model(config: FinetuneConfig) -> tuple[Path, ArchConfig, SequenceBuilder]:
    """Find the model folder and check that its parts fit together."""
    folder = find_model_folder(config.model)
    if not config.random_init:
        find_weights(folder)
    arch = read_architecture(folder)
    return folder, arch, SequenceBuilder(load_tokenizer(folder), arch, config.max_length)


def data_parts(resolved: Resolved) -> list[DataPart]:
    """What the run reads, for the model card."""
    config = resolved.config
    paths = {"train": config.train_file, "dev": config.dev_file, "test": config.test_file}
    return [
        DataPart(f"{name}: {Path(str(paths[name])).name}", file.digest(), {"examples": len(file.sequences)})
        for name, file in resolved.files.items()
    ]


def initial_model(resolved: Resolved, fresh: bool) -> Model:
    """The model with its first weights: the folder's, and the head's own where the folder has none for these labels."""
    arch, task = resolved.arch, resolved.task
    model = build_model(arch, {task.name: task.make_head(arch)}, resolved.config.seed)
    if fresh and not resolved.config.random_init:
        same_labels = labels_of(read_json(resolved.folder / "config.json")) == list(task.labels)
        head = [f"heads.{task.name}.{name}" for name, _ in model.heads[task.name].named_parameters()]
        new = [] if same_labels else [name for name in head if ".pooler." not in name]
        load_initial_weights(model, arch, resolved.folder, without=new)
    return model


def default_tree() -> dict[str, Any]:
    """What each setting is where it is not given, for runs of a version that did not know it."""
    train = FinetuneTrainConfig().completed()
    return asdict(FinetuneConfig(ds_config="", model="", train_file="", dev_file="", train=train))


def resolved_tree(resolved: Resolved) -> dict[str, Any]:
    """All settings of a run as a JSON tree; what identifies data and tokenizer is in it by digest."""
    tree = asdict(resolved.config)
    del tree["output"], tree["epochs"], tree["dry_run"]  # train.output and train.steps say the first two
    tree["arch"] = asdict(resolved.arch)
    tree["labels"] = list(resolved.task.labels)
    tree["data"] = {
        "train_digest": resolved.files["train"].digest(),
        "tokenizer_digest": resolved.builder.tokenizer.digest,
    }
    return {**tree, **run_record(resolved.settings)}


def write_results(resolved: Resolved, figures: dict[str, float], seconds: float) -> None:
    """Write results.json into the run folder and the log, from rank 0."""
    say(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    if global_rank() != 0:
        return
    config = resolved.config
    results = {
        **figures,
        "num_examples": {name: len(file.sequences) for name, file in resolved.files.items()},
        "num_truncated": {name: file.num_truncated for name, file in resolved.files.items()},
        "labels": list(resolved.task.labels),
        "task": config.task,
        "model": config.model,
        "random_init": config.random_init,
        "steps": config.train.steps,
        "precision": resolved.settings.precision,
        "seconds": round(seconds, 1),
    }
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_text(Path(config.train.output) / RESULTS, text)
