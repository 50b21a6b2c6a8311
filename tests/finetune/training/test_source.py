"""The endless order of examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.config.arch import ArchConfig
from engine.config.train import TrainConfig
from engine.train.timeline import Timeline
from finetune.config.tasks import ClassificationConfig
from finetune.features.sequences import SequenceBuilder
from finetune.readers.tables import Row, Table
from finetune.tasks.base import Example
from finetune.tasks.classification import Classification
from finetune.training.evaluation import first_examples
from finetune.training.labelled import LabelledFile
from finetune.training.source import ExampleSource, digest_of
from preprocess.tokenizer import train_wordpiece
from tests.finetune import tiny

STEP = Timeline([TrainConfig().stage(seq_length=0, length_ramp={})]).at(0)


@pytest.fixture
def file() -> LabelledFile:
    """Eleven labelled texts."""
    rows = [Row(number, list(cells)) for number, cells in enumerate(tiny.single_rows(11, ("a", "b", "c")), 2)]
    table = Table("x.tsv", ("label", "text_a"), True, ("label", "text_a"))
    return LabelledFile(table, rows, list(np.arange(11) % 3))


def parts(file: LabelledFile) -> tuple[Classification, SequenceBuilder, list[Example]]:
    tokenizer = train_wordpiece(tiny.WORDS * 3, vocab_size=150)
    builder = SequenceBuilder(tokenizer, ArchConfig(vocab_size=tokenizer.vocab_size, **tiny.BERT), 40)
    task = Classification.for_training(file.file, file.records, ClassificationConfig())
    return task, builder, file.examples(task, builder)


def test_epochs_are_permutations_and_batches_depend_on_positions_alone(file):
    task, builder, examples = parts(file)
    source = ExampleSource(task, builder, examples, seed=3)
    lengths = [example.num_tokens for example in examples]
    epochs = [source.batch(range(11 * epoch, 11 * epoch + 11), STEP) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch.layout.lengths) == sorted(lengths)
        assert sorted(epoch.targets[task.name].labels.tolist()) == sorted(example.target for example in examples)
    assert epochs[0].tokens.tolist() != epochs[1].tokens.tolist() != epochs[2].tokens.tolist()
    fresh = ExampleSource(task, builder, examples, seed=3)
    across = fresh.batch(range(9, 14), STEP)  # across two epochs, on a source that has read nothing before
    assert across.layout.lengths == epochs[0].layout.lengths[9:] + epochs[1].layout.lengths[:3]
    assert fresh.describe(range(9, 14), STEP).startswith("examples ")
    told = [int(number) for number in fresh.describe(range(9, 14), STEP).removeprefix("examples ").split(",")]
    assert [lengths[number] for number in told] == list(across.layout.lengths)
    other = ExampleSource(task, builder, examples, seed=4)
    assert other.batch(range(11), STEP).tokens.tolist() != epochs[0].tokens.tolist()


def test_held_out_keeps_the_order_of_the_file(file):
    task, builder, examples = parts(file)
    batch = ExampleSource(task, builder, examples, seed=3).held_out(range(2, 6))
    assert batch.targets[task.name].labels.tolist() == [2, 0, 1, 2]
    assert batch.tokens.tolist() == np.concatenate([example.sequences[0].tokens for example in examples[2:6]]).tolist()
    assert batch.counts == {task.name: 4}


def test_digest_sees_labels_tokens_and_boundaries(file):
    task, builder, examples = parts(file)
    targets = [example.target for example in examples]
    moved = [replace(e, sequences=(e.sequences[0]._replace(second=2),)) for e in examples]
    digests = {
        digest_of(examples),
        digest_of([replace(e, sequences=o.sequences) for e, o in zip(examples, examples[::-1], strict=True)]),
        digest_of([replace(e, target=target) for e, target in zip(examples, targets[::-1], strict=True)]),
        digest_of(moved),
    }
    assert len(digests) == 4 and digest_of(file.examples(task, builder)) in digests


def test_notes_name_unused_columns(file):
    names = ("id", "label", "text_a")
    task = Classification(("a", "b"), pair=False)
    assert task.notes(Table("x.tsv", names, True, names)) == ["x.tsv: column(s) not used: id"]
    assert task.notes(file.file) == []


def test_the_first_records_are_whole(file):
    task, builder, examples = parts(file)
    examples = [replace(examples[number], record=record) for number, record in enumerate([0, 0, 0, 2, 3, 3, 7])]
    source = ExampleSource(task, builder, examples, seed=1)
    assert [len(source.first(count)) for count in (0, 1, 2, 3, 4, 9)] == [7, 3, 4, 6, 7, 7]
    assert [len(each) for each in (first_examples(source, 1), first_examples(source, 0))] == [3, 7]
