"""The endless order of examples."""

from __future__ import annotations

import numpy as np
import pytest

from engine.config.arch import ArchConfig
from engine.config.train import TrainConfig
from engine.train.timeline import Timeline
from finetune.labelled import LabelledFile
from finetune.sequences import SequenceBuilder
from finetune.source import Examples, ExampleSource
from finetune.tables import Row, Table
from finetune.tasks.classification import Classification
from preprocess.tokenizer import train_wordpiece
from tests.finetune import tiny

STEP = Timeline([TrainConfig().stage(seq_length=0, length_ramp={})]).at(0)


@pytest.fixture
def file() -> LabelledFile:
    """Eleven labelled texts."""
    rows = [Row(number, list(cells)) for number, cells in enumerate(tiny.single_rows(11, ("a", "b", "c")), 2)]
    table = Table("x.tsv", ("label", "text_a"), True, ("label", "text_a"))
    return LabelledFile(table, rows, np.arange(11) % 3)


def parts(file: LabelledFile) -> tuple[Classification, SequenceBuilder, Examples]:
    tokenizer = train_wordpiece(tiny.WORDS * 3, vocab_size=150)
    builder = SequenceBuilder(tokenizer, ArchConfig(vocab_size=tokenizer.vocab_size, **tiny.BERT), 40)
    task = Classification.for_training(file.table, file.rows)
    return task, builder, file.examples(task, builder)


def test_epochs_are_permutations_and_batches_depend_on_positions_alone(file):
    task, builder, examples = parts(file)
    source = ExampleSource(task, builder, examples, seed=3)
    lengths = [len(sequence.tokens) for sequence in examples.sequences]
    epochs = [source.batch(range(11 * epoch, 11 * epoch + 11), STEP) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch.layout.lengths) == sorted(lengths)
        assert sorted(epoch.targets[task.name].labels.tolist()) == sorted(examples.targets.tolist())
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
    assert batch.tokens.tolist() == np.concatenate([s.tokens for s in examples.sequences[2:6]]).tolist()
    assert batch.counts == {task.name: 4}


def test_digest_sees_labels_tokens_and_boundaries(file):
    task, builder, examples = parts(file)
    digests = {
        examples.digest(),
        Examples(examples.sequences[::-1], examples.targets, 0).digest(),
        Examples(examples.sequences, examples.targets[::-1], 0).digest(),
        Examples([s._replace(second=2) for s in examples.sequences], examples.targets, 0).digest(),
    }
    assert len(digests) == 4 and file.examples(task, builder).digest() in digests


def test_notes_name_unused_columns(file):
    names = ("id", "label", "text_a")
    rows = [Row(number, [str(number), "ab"[number % 2], "text"]) for number in range(30)]
    task = Classification(("a", "b"), pair=False)
    noted = LabelledFile(Table("x.tsv", names, True, names), rows, np.arange(30) % 2).notes(task)
    assert noted == ["x.tsv: column(s) not used: id"]
    assert file.notes(Classification(("a", "b", "c"), pair=False)) == []
