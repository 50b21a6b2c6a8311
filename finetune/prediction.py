"""From a model folder and a file of texts to a file of predictions."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import torch

from engine.config.cli import UsageError, collect
from finetune.columns import TEXT_A, parse_columns
from finetune.config import PredictConfig
from finetune.model_folder import FinetunedModel, load_finetuned_model
from finetune.sequences import TokenSequence
from finetune.source import build_sequences
from finetune.tables import Row, Table, open_table
from preprocess.progress import progress_bar

CHUNK_LINES = 4096


def predict_file(config: PredictConfig) -> None:
    """Write a prediction for each line of a file; the output appears whole or not at all.

    Raises:
        ValueError: all problems of the settings at once, or a line of the input that cannot be read.
    """
    problems = config.problems() + output_problems(config)
    model = collect(problems, lambda: load_finetuned_model(config.model))
    needed = model.task.columns if model else (TEXT_A,)
    table = collect(problems, lambda: open_table(config.input, parse_columns(config.columns), needed))
    if problems or not (model and table):
        raise UsageError("\n".join(problems))
    with replaced_file(Path(config.output)) as file, progress_bar("predict", os.path.getsize(config.input)) as advance:
        num_lines, num_truncated = write_predictions(model, table, config, file, advance)
    cut = f" ({num_truncated:,} of them cut to {model.builder.max_length} tokens)" if num_truncated else ""
    print(f"{config.output}: {num_lines:,} predictions{cut}", file=sys.stderr)


def output_problems(config: PredictConfig) -> list[str]:
    """What stands in the way of the output file."""
    output = Path(config.output)
    if output.is_dir():
        return [f"--output {output} is a folder; give the name of a file"]
    if not output.parent.is_dir():
        return [f"--output {output}: the folder {output.parent} does not exist"]
    if output.exists() and Path(config.input).exists() and output.samefile(config.input):
        return [f"--output {output} is the input; give another name"]
    return []


@torch.inference_mode()
def write_predictions(
    model: FinetunedModel, table: Table, config: PredictConfig, file: TextIO, advance: Callable[[int], None]
) -> tuple[int, int]:
    """Predict chunk by chunk; returns the number of lines, and how many had too long a text."""
    num_lines = num_truncated = 0
    write_line(file, model.task.answer_header(config.probabilities))
    for rows in chunks(table.rows(advance), CHUNK_LINES):
        sequences, cut = build_sequences(model.builder, model.task, table, rows)
        for cells in answers(model, sequences, config):
            write_line(file, cells)
        num_lines, num_truncated = num_lines + len(rows), num_truncated + cut
    return num_lines, num_truncated


def answers(model: FinetunedModel, sequences: Sequence[TokenSequence], config: PredictConfig) -> list[list[str]]:
    """Predictions in the order of the sequences; like lengths share a batch, which attention likes."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].tokens))
    result: list[list[str]] = [[] for _ in sequences]
    for first in range(0, len(order), config.batch_size):
        indices = order[first : first + config.batch_size]
        batch = model.builder.pack([sequences[index] for index in indices]).to(model.device)
        for index, cells in zip(indices, model.task.answers(model.model, batch, config.probabilities), strict=True):
            result[index] = cells
    return result


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of ``size`` rows, the last one shorter."""
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk


def write_line(file: TextIO, cells: Sequence[str]) -> None:
    """Write a line of a tab-separated file."""
    file.write("\t".join(cells) + "\n")


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[TextIO]:
    """A file under a temporary name, renamed to ``path`` when all went well, removed when not.

    Raises:
        ValueError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{path} could not be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
