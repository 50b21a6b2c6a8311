"""From a model folder and a file of records to a file of predictions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from engine.config.cli import UsageError, collect, nearest
from finetune.config.predict import PredictConfig
from finetune.inference.writing import AnswerWriter, output_problems, replaced_file, writer_of
from finetune.model_folder import FinetunedModel, load_finetuned_model
from finetune.readers.columns import TEXT_A, parse_columns
from finetune.readers.tables import open_table
from finetune.tasks.base import Answer, Example, RecordFile
from finetune.tasks.multitask import Multitask
from preprocess.progress import progress_bar

CHUNK_RECORDS = 4096
T = TypeVar("T")


def predict_file(config: PredictConfig) -> None:
    """Write a prediction for each line of a file; the output appears whole or not at all.

    Raises:
        ValueError: all problems of the settings at once, or a line of the input that cannot be read.
    """
    problems = config.problems() + output_problems(config.output, config.input)
    model = collect(problems, lambda: choose_task(load_finetuned_model(config.model), config.task_name))
    records = collect(problems, lambda: _open_input(model, config))
    if problems or not (model and records):
        raise UsageError("\n".join(problems))
    model.task.key_draws(config.seed)
    columns = model.task.answer_columns(config.probabilities)
    with replaced_file(Path(config.output)) as file, progress_bar("predict", os.path.getsize(config.input)) as advance:
        writer = writer_of(config.output, columns, file, model.task.official_columns)
        count, cut = write_predictions(model, records, config, writer, advance)
    note = f" ({cut:,} of them cut to {model.builder.max_length} tokens)" if cut else ""
    print(f"{config.output}: {count:,} predictions{note}", file=sys.stderr)
    for told in [*records.notes(), *writer.notes()]:
        print(f"note: {told}", file=sys.stderr)


def _open_input(model: FinetunedModel | None, config: PredictConfig) -> RecordFile[Any]:
    if model is not None:
        return model.task.open(config.input, config.files, labelled=False)
    return open_table(
        config.input, parse_columns(config.columns), (TEXT_A,), config.files
    )  # for what is wrong with the file


def choose_task(model: FinetunedModel, name: str | None) -> FinetunedModel:
    """The model as one of its tasks, where it has learned several.

    Raises:
        ValueError: if the name is none of theirs, or missing, or given for a model of one task.
    """
    if not isinstance(model.task, Multitask):
        if name is not None:
            raise ValueError(f"--task_name {name}: the model has learned one task, {model.task.kind}; leave it out")
        return model
    tasks = model.task.tasks
    if name not in tasks:
        given = f"--task_name {name} is none of its tasks" if name else "it has learned several tasks"
        raise ValueError(f"{given}; give --task_name {' or '.join(tasks)}{nearest(name or '', tasks)}")
    return replace(model, task=tasks[name])


@torch.inference_mode()
def write_predictions(
    model: FinetunedModel,
    file: RecordFile[Any],
    config: PredictConfig,
    writer: AnswerWriter,
    advance: Callable[[int], None],
) -> tuple[int, int]:
    """Predict chunk by chunk; returns the number of records, and how many had too long a text."""
    num_records = num_truncated = 0
    for records in chunks(file.records(advance), CHUNK_RECORDS):
        examples = model.task.examples(model.builder, file, records, None)
        for answer in answers(model, records, examples, config.batch_size, config.probabilities):
            writer.write(answer)
        num_records += len(records)
        num_truncated += len({example.record for example in examples if example.truncated})
    writer.finish()
    return num_records, num_truncated


def answers(
    model: FinetunedModel, records: Sequence[Any], examples: Sequence[Example], batch_size: int, probabilities: bool
) -> list[Answer]:
    """Predictions in the order of the records."""
    outputs = run_examples(model, examples, batch_size)
    return model.task.answers(outputs, examples, records, probabilities)


def run_examples(model: FinetunedModel, examples: Sequence[Example], batch_size: int) -> list[Any]:
    """The outputs of examples in their order; like lengths share a batch, which attention likes."""
    order = sorted(range(len(examples)), key=lambda index: examples[index].num_tokens)
    outputs: list[Any] = [None] * len(examples)
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        chosen = [examples[index] for index in indices]
        batch = model.task.collate(model.builder, chosen).to(model.device)
        for index, output in zip(indices, model.task.outputs(model.model, batch, chosen), strict=True):
            outputs[index] = output
    return outputs


def chunks(records: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` records, the last one shorter."""
    records = iter(records)
    while chunk := list(islice(records, size)):
        yield chunk
