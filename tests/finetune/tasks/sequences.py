"""A tiny model for a task, its examples, and its loss and outputs on them with and without filler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.config.arch import ArchConfig
from engine.data.filler import filled
from engine.models.model import Model, build_model
from finetune.features.sequences import SequenceBuilder
from finetune.model_folder import load_finetuned_model, write_finetuned_model
from finetune.readers.tables import Row, Table
from finetune.tasks.base import Example, Task
from preprocess.tokenizer import train_wordpiece
from tests.finetune import tiny

KINDS = {"bert": tiny.BERT, "gpt2": tiny.GPT2, "pre-norm-bert": tiny.PRE_NORM_BERT}


def table(names: Sequence[str], *rows: Sequence[str]) -> tuple[Table, list[Row]]:
    """A file with a header, and its rows."""
    lines = [Row(number, list(cells)) for number, cells in enumerate(rows, 2)]
    return Table("file.tsv", tuple(names), True, tuple(names)), lines


def parts(task: Task[Any], fields: dict[str, Any], length: int = 40) -> tuple[Model, SequenceBuilder, ArchConfig]:
    """A model with random weights and without dropout."""
    tokenizer = train_wordpiece(tiny.WORDS * 3, vocab_size=150)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.3, hidden_dropout=0.0, **fields)
    return build_model(arch, task.make_heads(arch), seed=2), SequenceBuilder(tokenizer, arch, length), arch


def examples_of(task: Task[Any], builder: SequenceBuilder, file: Any, records: Sequence[Any]) -> list[Example]:
    """Examples with their targets."""
    return task.examples(builder, file, records, task.targets(file, records))


def measured(
    task: Task[Any], model: Model, builder: SequenceBuilder, examples: Sequence[Example], records: Sequence[Any] = ()
) -> tuple[float, list[Any], dict[str, float]]:
    """The sum of the losses in training, the outputs and the figures; filler must change none of them."""
    batch = task.collate(builder, examples)
    gradients = []
    for given in (batch, filled(batch)):
        model.zero_grad()
        term = task.losses(model.train(), given, with_accuracy=True)[task.name]
        term.loss_sum.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert term.num_targets == len(examples) and all(gradient.isfinite().all() for gradient in gradients[-1])
        loss, correct = float(term.loss_sum.detach()), term.correct
        if given is batch:
            plain, plain_correct = loss, correct
    assert abs(loss - plain) < 1e-4 and correct == plain_correct
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        outputs = task.outputs(model.eval(), batch, examples)
    return plain, outputs, task.figures(outputs, examples, records)


def written(task: Task[Any], fields: dict[str, Any], folder: Path, length: int = 24) -> Any:
    """The task's model as a folder, loaded again for prediction."""
    model, builder, arch = parts(task, fields, length)
    write_finetuned_model(folder, model.state_dict(), arch, task, builder)
    return load_finetuned_model(str(folder))
