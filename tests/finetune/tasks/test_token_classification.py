"""Features, loss, CRF, decoding and figures of token classification; folders that transformers loads."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.data.filler import filled
from engine.models.model import build_model
from finetune import predict
from finetune.config.tasks import FileConfig, TokenClassificationConfig
from finetune.features.sequences import SequenceBuilder
from finetune.features.units import UnitScores
from finetune.model_folder import load_finetuned_model, write_finetuned_model
from finetune.readers.sentences import Sentence, join_units
from finetune.readers.tagged import open_tagged
from finetune.tasks.base import Example
from finetune.tasks.crf import Transitions, most_probable
from finetune.tasks.token_classification import TokenClassification
from preprocess.tokenizer import load_tokenizer
from tests.finetune import tiny

LABELS = ("O", "B-A", "I-A", "B-B", "I-B")


def sentences(count: int, longest: int) -> list[Sentence]:
    """Words, some of several tokens, with labels that follow from them."""
    made = []
    for number in range(count):
        size = 1 + number * 5 % longest
        units = [tiny.sentence(number + place, 1) * (1 + place % 3 // 2) for place in range(size)]
        text, places = join_units(units, False)
        labels = tuple(LABELS[len(unit) % 5] for unit in units)
        made.append(Sentence(number + 1, text, places, labels))
    return made


def parts(folder: Path, fields: dict[str, object], crf: bool, length: int = 16, long_texts: str = "window"):
    tokenizer = load_tokenizer(folder)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.5, **fields)  # type: ignore[arg-type]
    config = TokenClassificationConfig(crf=crf, long_texts=long_texts)
    task = TokenClassification(LABELS, True, config, characters=False)
    model = build_model(arch, task.make_heads(arch), seed=3).eval()
    return task, model, SequenceBuilder(tokenizer, arch, length), arch


@pytest.mark.parametrize("given", ["balanced", {"B-A": 5.0, "O": 0.5}])
def test_class_weights(bert, given):
    records = sentences(12, 6)
    undropped = {**tiny.BERT, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    task, model, builder, _ = parts(bert, undropped, crf=False)
    examples = examples_of(task, builder, records)
    targets = task.targets(File(), records)
    task.weigh_classes(given, targets)
    labels = np.concatenate(targets)
    counts = np.array([(labels == number).sum() for number in range(len(LABELS))])
    own = counts.sum() / np.maximum(counts, 1) if given == "balanced" else np.array([0.5, 5, 1, 1, 1])
    own = np.where(counts > 0, own, 1.0) if given == "balanced" else own
    weights = torch.from_numpy(own / (own @ counts / counts.sum()))
    batch = task.collate(builder, examples)
    plain = task.losses(model, batch)[task.name].loss_sum.detach()  # in evaluation they count alike
    model.train()
    logits = task.logits(model, batch, batch.targets[task.name].index).double()
    expected = torch.nn.functional.cross_entropy(logits, batch.targets[task.name].labels, weights, reduction="sum")
    found = task.losses(model, filled(batch))[task.name]
    assert float(found.loss_sum.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(plain) != pytest.approx(float(expected), rel=1e-2) and found.num_targets == len(labels)


def test_a_crf_has_no_class_weights(bert):
    task, *_ = parts(bert, tiny.BERT, crf=True)
    task.weigh_classes("none", [])
    with pytest.raises(ValueError, match=r"class_weights are given with token_classification\.crf, whose loss is of a"):
        task.weigh_classes("balanced", [])


class File:
    path = "file"


def examples_of(task, builder, records):
    return task.examples(builder, File(), records, task.targets(File(), records))


@pytest.mark.parametrize(("kind", "fields"), [("bert", tiny.BERT), ("gpt2", tiny.GPT2)])
@pytest.mark.parametrize("crf", [False, True])
def test_loss_is_that_of_single_sequences_with_filler_too(kind, fields, crf, request):
    task, model, builder, _ = parts(request.getfixturevalue(kind), fields, crf)
    records = sentences(9, 12)
    examples = examples_of(task, builder, records)
    assert len(examples) > len(records)  # some are longer than the model takes
    examples[2].target[0] = -100  # a label that training does not have
    batch = task.collate(builder, examples)
    losses = [task.losses(model, task.collate(builder, [example])) for example in examples]
    expected = sum(float(term[task.name].loss_sum.detach()) for term in losses)
    for one in (batch, filled(batch), filled(batch, most_tokens=500, longest=40)):
        term = task.losses(model, one, with_accuracy=True)[task.name]
        assert float(term.loss_sum.detach()) == pytest.approx(expected, rel=1e-5)
        assert term.num_targets == sum(len(record.places) for record in records) - 1
        assert int(term.correct) == int(task.losses(model, batch, with_accuracy=True)[task.name].correct)
    with torch.no_grad():
        outputs = task.outputs(model, filled(batch, most_tokens=500), examples)
    figures = task.figures(outputs, examples, records)
    if not crf:
        flat = torch.from_numpy(np.concatenate([output.logits for output in outputs])).double()
        gold = torch.tensor([LABELS.index(label) for record in records for label in task.normal(record.labels)])
        assert figures["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(flat, gold)), rel=1e-5)
        best = flat.argmax(-1)
        assert figures["accuracy"] == pytest.approx(float((best == gold).double().mean()))
    term = task.losses(model, filled(batch))[task.name].loss_sum
    term.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_crf_against_all_labellings(bert):
    """The loss is minus the logarithm of the labelling's share of all, the decoded one has the largest."""
    task, model, builder, _ = parts(bert, tiny.BERT, True)
    record = sentences(2, 6)[-1]
    record = Sentence(1, record.text, record.places[:4], ("O", "B-A", "I-A", "B-B"))
    examples = examples_of(task, builder, [record])
    with torch.no_grad():
        loss = float(task.losses(model, task.collate(builder, examples))[task.name].loss_sum)
        (output,) = task.outputs(model, task.collate(builder, examples), examples)
    start, end, between = (np.asarray(array, np.float64) for array in output.transitions)
    scores = {}
    for labels in itertools.product(range(5), repeat=4):
        score = start[labels[0]] + end[labels[-1]] + sum(output.logits[k, label] for k, label in enumerate(labels))
        scores[labels] = score + sum(between[a, b] for a, b in itertools.pairwise(labels))
    total = np.log(np.sum(np.exp(list(scores.values()))))
    gold = tuple(examples[0].target.tolist())
    assert loss == pytest.approx(total - scores[gold], rel=1e-5)
    assert task.figures([output], examples, [record])["loss"] == pytest.approx((total - scores[gold]) / 4, rel=1e-5)
    assert most_probable(output.transitions, [output.logits]) == [list(max(scores, key=lambda key: scores[key]))]
    forbids = Transitions(np.zeros(2), np.zeros(2), np.array([[0.0, -9.0], [-9.0, 0.0]]))
    steps = np.array([[3.0, 0.0], [0.0, 1.0], [3.0, 0.0]], np.float32)
    assert most_probable(forbids, [steps, steps[:0], steps[1:2]]) == [[0, 0, 0], [], [1]]


def test_long_sentences(bert):
    """Windows answer each unit once; a cut sentence is counted, and its end is O."""
    records = sentences(6, 30)
    task, _, builder, _ = parts(bert, tiny.BERT, False)
    examples = examples_of(task, builder, records)
    assert not any(example.truncated for example in examples)
    for number, record in enumerate(records):
        own = [example for example in examples if example.record == number]
        assert sum(len(example.details) for example in own) == len(record.places)
        found = [
            builder.tokenizer.tokens[example.sequences[0].tokens[place]] for example in own for place in example.details
        ]
        first = [builder.tokenizer.tokens[builder.tokenizer.encode([unit])[0][0]] for unit in record.units]
        assert found == first
        assert all(len(example.sequences[0].tokens) <= 16 for example in own)
    task, _, builder, _ = parts(bert, tiny.BERT, False, long_texts="cut")
    cut = examples_of(task, builder, records)
    assert len(cut) == len(records) and [e.truncated for e in cut] == [
        sum(e.record == number for e in examples) > 1 for number in range(len(records))
    ]
    outputs = [UnitScores(np.tile(np.float32([0, 9, 0, 0, 0]), (len(e.details), 1)), None) for e in cut]
    answers = task.answers(outputs, cut, records, probabilities=True)
    last = answers[-1]["spans"]
    assert len(last) == len(cut[-1].details) < len(records[-1].places)
    assert all(
        span["probability"] > 0.99 and records[-1].text[span["start"] : span["end"]] == span["text"] for span in last
    )


def test_a_unit_of_which_the_tokenizer_makes_nothing_has_a_token(bert):
    task, _, builder, _ = parts(bert, tiny.BERT, False)
    units = ["apple", "\u200d", "水"]
    text, places = join_units(units, False)
    (example,) = task.examples(builder, File(), [Sentence(1, text, places, None)], None)
    tokens = [builder.tokenizer.tokens[token] for token in example.sequences[0].tokens[example.details]]
    assert tokens == ["apple", "[UNK]", "水"]


def test_spans_by_seqeval_and_labels_that_training_lacks(tmp_path, capsys):
    metrics = pytest.importorskip("seqeval.metrics")
    file = tmp_path / "train.conll"
    file.write_text("a S-X\nb O\n\nc B-Y\nd E-Y\n")
    config = TokenClassificationConfig()
    opened = TokenClassification.open_training(str(file), FileConfig(), config)
    task = TokenClassification.for_training(opened, list(opened.records()), config)
    assert task.labels == ("O", "B-X", "I-X", "B-Y", "I-Y") and task.main_figure == "f1"
    assert TokenClassification.from_settings(task.labels, task.settings()).settings() == task.settings()
    dev = tmp_path / "dev.conll"
    dev.write_text("a B-Z\nb I-X\nc I-X\n\nd I-Y\n")
    opened = task.open(str(dev), FileConfig(), labelled=True)
    records = list(opened.records())
    assert [target.tolist() for target in task.targets(opened, records)] == [[-100, 1, 2], [3]]
    notes = task.notes(opened)
    assert f"{dev}: labels that training does not have count as missed: B-Z (1)" in notes
    gold = [["B-Z", "B-X", "I-X"], ["B-Y"]]
    predicted = [["O", "B-X", "B-X"], ["B-Y"]]
    outputs = [UnitScores(np.eye(5, dtype=np.float32)[[task.labels.index(x) for x in row]], None) for row in predicted]
    examples = [Example((), record=number, details=np.arange(len(row))) for number, row in enumerate(predicted)]
    figures = task.figures(outputs, examples, records)
    assert figures["f1"] == pytest.approx(metrics.f1_score(gold, predicted)) == pytest.approx(1 / 3)
    assert figures["precision"] == pytest.approx(1 / 3) and figures["recall"] == pytest.approx(1 / 3)
    dev.write_text("a B-Q\n")
    opened = task.open(str(dev), FileConfig(), labelled=True)
    with pytest.raises(ValueError, match=r"training has none of its labels B-Q; it has O, B-X"):
        task.targets(opened, list(opened.records()))


def test_parts_of_speech(tmp_path):
    file = tmp_path / "train.conll"
    file.write_text("a DT\nb NN\n\nc NN\nd VB\n")
    config = TokenClassificationConfig()
    opened = TokenClassification.open_training(str(file), FileConfig(), config)
    records = list(opened.records())
    task = TokenClassification.for_training(opened, records, config)
    assert task.labels == ("DT", "NN", "VB") and not task.spans and task.main_figure == "accuracy"
    outputs = [
        UnitScores(np.eye(3, dtype=np.float32)[[0, 1]], None),
        UnitScores(np.eye(3, dtype=np.float32)[[1, 1]], None),
    ]
    examples = [Example((), record=number, details=np.arange(2)) for number in range(2)]
    figures = task.figures(outputs, examples, records)
    assert figures["accuracy"] == 0.75 and figures["macro_f1"] == pytest.approx((1 + 4 / 5 + 0) / 3)
    answer = task.answers(outputs, examples, records, probabilities=True)[1]
    assert answer["tokens"] == ["c", "d"] and answer["labels"] == ["NN", "NN"] and len(answer["probabilities"]) == 2
    file.write_text("a NN\n")
    opened = TokenClassification.open_training(str(file), FileConfig(), config)
    with pytest.raises(ValueError, match="1 different label"):
        TokenClassification.for_training(opened, list(opened.records()), config)


@pytest.mark.parametrize(("kind", "fields"), [("bert", tiny.BERT), ("gpt2", tiny.GPT2)])
@pytest.mark.parametrize("crf", [False, True])
def test_folders_and_predictions(kind, fields, crf, request, tmp_path):
    """transformers gives the same logits; a CRF comes back from the folder; predictions keep their order."""
    transformers = pytest.importorskip("transformers")
    task, model, builder, arch = parts(request.getfixturevalue(kind), fields, crf, length=40)
    write_finetuned_model(tmp_path / "model", model.state_dict(), arch, task, builder)
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    assert theirs.config.id2label == dict(enumerate(LABELS))
    loaded = load_finetuned_model(str(tmp_path / "model"))
    records = sentences(6, 9)
    examples = task.examples(builder, File(), records, None)
    with torch.no_grad():
        outputs = loaded.task.outputs(loaded.model, task.collate(builder, examples), examples)
        for output, example in zip(outputs, examples, strict=True):
            ids = torch.from_numpy(example.sequences[0].tokens.astype(np.int64))[None]
            logits = theirs(ids).logits[0][torch.from_numpy(example.details)]
            torch.testing.assert_close(torch.from_numpy(output.logits), logits, atol=1e-5, rtol=1e-5)
    lines = [json.dumps({"tokens": record.units}) for record in records]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["--model", tmp_path / "model", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    assert predict.main([str(argument) for argument in (*arguments, "--batch_size", "2")]) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == task.answers(outputs, examples, records, probabilities=False)
    assert any(answer["spans"] for answer in found)


def labelled(path: Path, text: str, labelled: bool = True):
    path.write_text(text)
    file = open_tagged(str(path), FileConfig(), labelled)
    return file, list(file.records())


CONFIG = TokenClassificationConfig()
GOOD = "ann B-PER\nsat O\n\nbob B-PER\nlee I-PER\n"


@pytest.mark.parametrize("odd", ["-X-", "o", "B+PER"])
def test_an_odd_label_among_those_of_spans_is_refused(odd, tmp_path):
    """In training, and in a file that is measured."""
    bad = labelled(tmp_path / "a.txt", f"{GOOD}ran {odd}\n")
    message = rf"a\.txt: some labels mark spans, as in B-PER, and 1 do not: '{re.escape(odd)}' \(line 6\)"
    with pytest.raises(ValueError, match=message):
        TokenClassification.for_training(*bad, CONFIG)
    task = TokenClassification.for_training(*labelled(tmp_path / "b.txt", GOOD), CONFIG)
    assert task.spans and task.main_figure == "f1"
    with pytest.raises(ValueError, match=message):
        task.targets(*bad)


def test_other_separators_and_labels_of_no_scheme(tmp_path):
    task = TokenClassification.for_training(*labelled(tmp_path / "a.txt", GOOD.replace("-", "_")), CONFIG)
    assert task.spans and task.labels == ("O", "B-PER", "I-PER")
    tags = labelled(tmp_path / "b.txt", "ann N\nsat V\nI I\n.\tM\n")
    assert not TokenClassification.for_training(*tags, CONFIG).spans


@pytest.mark.parametrize("header", ["token\tlabel", "Word Tag", "token pos ner"])
def test_a_header_is_refused(header, tmp_path):
    text = GOOD.replace(" ", " x ") if header.count(" ") == 2 else GOOD
    with pytest.raises(ValueError, match=r"a\.txt: its first line, '.*', names the columns, .* take it away"):
        labelled(tmp_path / "a.txt", f"{header}\n{text}")
