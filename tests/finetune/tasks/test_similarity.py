"""Sentence vectors: losses against a loop over the pairs, folders against sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from engine.config.arch import ArchConfig
from engine.data.filler import filled
from engine.models.model import Model, build_model
from finetune.config.tasks import POOLINGS, SIMILARITY_LOSSES, FileConfig, SimilarityConfig
from finetune.features.sequences import SequenceBuilder
from finetune.model_folder import load_finetuned_model, write_finetuned_model
from finetune.readers.tables import Row, Table
from finetune.tasks.similarity import Similarity
from finetune.tasks.similarity_loss import SentenceHead
from preprocess.tokenizer import load_tokenizer
from tests import commands
from tests.finetune import tiny

FIELDS = {"bert": tiny.BERT, "gpt2": tiny.GPT2, "pre-norm": tiny.PRE_NORM_BERT}
SCORES = ("0.0", "5.0", "2.5", "1.25", "4.0", "3.0", "0.5")
TEXTS = [(tiny.sentence(number, 1 + number), tiny.sentence(number + 30, 7 - number)) for number in range(7)]
BATCH = ("--train.batch_size", "8", "--train.micro_batch_size", "4")


def scored(path: Path, labels: tuple[str, ...] = SCORES) -> Path:
    return tiny.write_table(path, ["label", "text_a", "text_b"], [(x, *t) for x, t in zip(labels, TEXTS, strict=True)])


def made(source: Path, kind: str, config: SimilarityConfig, labels: tuple[str, ...] = ()) -> tuple[Any, ...]:
    """A task, a model with random weights, and what makes its sequences."""
    tokenizer = load_tokenizer(source)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.3, **FIELDS[kind])  # type: ignore[arg-type]
    task = Similarity(config, labels)
    return task, build_model(arch, task.make_heads(arch), seed=2).eval(), SequenceBuilder(tokenizer, arch, 24), arch


def vector(task: Similarity, model: Model, builder: SequenceBuilder, text: str) -> torch.Tensor:
    """One text alone."""
    (sequence,), _ = builder.build([text])
    hidden = model(*_inputs(builder.pack([sequence])))
    pooled = {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(0), "max": hidden.max(0).values}
    return pooled[task.config.pooling]


def _inputs(batch: Any) -> tuple[Any, ...]:
    return batch.tokens, batch.positions, batch.segments, batch.layout


def expected_losses(task: Similarity, model: Model, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    cosines = torch.stack([torch.stack([u @ v / (u.norm() * v.norm()) for _, v in pairs]) for u, _ in pairs])
    if task.config.loss == "cosine":
        return (cosines.diagonal() - torch.tensor([float(score) / 5 for score in SCORES])) ** 2
    if task.config.loss == "softmax":
        head = model.heads["similarity"].classifier
        logits = torch.stack([head(torch.cat([u, v, (u - v).abs()])) for u, v in pairs])
        return -logits.log_softmax(-1)[torch.arange(7), torch.tensor([0, 1, 2, 0, 1, 2, 0])]
    return -(cosines / task.config.temperature).log_softmax(-1).diagonal()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("loss", SIMILARITY_LOSSES)
def test_losses_and_figures(loss, kind, bert, tmp_path):
    """Of pairs one by one; filler changes nothing; the figures of the same pairs say the same."""
    labels = ("0", "1", "2") if loss == "softmax" else ()
    config = SimilarityConfig(loss=loss, pooling="max" if kind == "gpt2" else "mean", best_score=5.0)
    task, model, builder, _ = made(bert, kind, config, labels)
    path = scored(tmp_path / "f.tsv", ("0", "1", "2", "0", "1", "2", "0") if loss == "softmax" else SCORES)
    file = task.open(str(path), FileConfig(), labelled=True)
    records = list(file.records())
    examples = task.examples(builder, file, records, task.targets(file, records))
    batch = task.collate(builder, examples)
    pairs = [tuple(vector(task, model, builder, text) for text in texts) for texts in TEXTS]
    expected = expected_losses(task, model, pairs)
    for given in (batch, filled(batch)):
        term = task.losses(model, given, with_accuracy=True)["similarity"]
        assert term.num_targets == 7
        torch.testing.assert_close(term.loss_sum, expected.sum(), rtol=1e-4, atol=1e-5)
        gradients = torch.autograd.grad(term.loss_sum, [model.word_embedding])[0]
        wanted = torch.autograd.grad(expected.sum(), [model.word_embedding], retain_graph=True)[0]
        torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        outputs = task.outputs(model, batch, examples)
    figures, expected = task.figures(outputs, examples, records), expected.detach()
    cosines = [float(F.cosine_similarity(u, v, dim=0).detach()) for u, v in pairs]
    assert [answer["similarity"] for answer in task.answers(outputs, examples, records, False)] == pytest.approx(
        cosines, abs=1e-5
    )
    if loss == "softmax":
        assert figures["loss"] == pytest.approx(float(expected.mean()), rel=1e-4)
        assert task.answer_columns(True) == ["similarity", "label", *(f"probability_{x}" for x in "012")]
        answers = task.answers(outputs, examples, records, True)
        assert figures["accuracy"] == np.mean([a["label"] == r.cells[0] for a, r in zip(answers, records, strict=True)])
        assert sum(list(answers[0].values())[2:]) == pytest.approx(1)
    else:
        scores = np.array(SCORES, float)
        assert figures["pearson"] == pytest.approx(np.corrcoef(cosines, scores)[0, 1], abs=1e-4)
        ranks = np.argsort(np.argsort([cosines, scores], axis=1), axis=1)
        assert figures["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
        assert figures["loss"] == pytest.approx(np.mean((np.array(cosines) - scores / 5) ** 2), abs=1e-5)
    assert task.main_figure in figures


def test_unscored_pairs_are_told_apart(bert, tmp_path):
    task, model, builder, _ = made(bert, "bert", SimilarityConfig(loss="contrastive"))
    path = tiny.write_table(tmp_path / "f.tsv", ["text_a", "text_b"], [*TEXTS[:3], (TEXTS[3][0], TEXTS[3][0])])
    file = task.open(str(path), FileConfig(), labelled=True)
    records = list(file.records())
    examples = task.examples(builder, file, records, task.targets(file, records))
    with torch.no_grad():
        outputs = task.outputs(model, task.collate(builder, examples), examples)
        figures = task.figures(outputs, examples, records)
        vectors = [[vector(task, model, builder, cell) for cell in row.cells] for row in records]
    cosines = np.array([[float(F.cosine_similarity(u, v, dim=0)) for _, v in vectors] for u, _ in vectors])
    nearest = cosines.argmax(1)
    assert nearest[3] == 3 and figures["accuracy"] == np.mean(nearest == np.arange(4))
    shares = np.exp(cosines / 0.05)
    assert figures["loss"] == pytest.approx(-np.log(shares.diagonal() / shares.sum(1)).mean(), rel=1e-4)
    assert task.main_figure == "accuracy"


def test_an_empty_column_of_labels_is_none(tmp_path):
    task = Similarity(SimilarityConfig(loss="contrastive"))
    file = task.open(str(scored(tmp_path / "f.tsv", ("",) * 7)), FileConfig(), labelled=True)
    assert np.isnan(task.targets(file, list(file.records()))).all() and task.main_figure == "accuracy"
    file = task.open(str(scored(tmp_path / "g.tsv", (*SCORES[:6], ""))), FileConfig(), labelled=True)
    with pytest.raises(ValueError, match="line 8: the label is ''; it must be a number"):
        task.targets(file, list(file.records()))


def test_the_dropout_passes_of_one_text_differ(bert, tmp_path):
    """In the training file, and nowhere else; its other columns are not read."""
    task, model, builder, _ = made(bert, "bert", SimilarityConfig(loss="unsupervised"))
    path = tiny.write_table(tmp_path / "f.tsv", ["label", "text_a", "text_b"], [("good", *texts) for texts in TEXTS])
    file = Similarity.open_training(str(path), FileConfig(), task.config)
    records = list(file.records())
    training = Similarity.for_training(file, records, task.config)
    examples = training.examples(builder, file, records, training.targets(file, records))
    assert all(first is second for first, second in (example.sequences for example in examples))
    assert training.notes(file) == [f"{path}: column(s) not used: label, text_b"]
    model.train()
    u, v = training.pair_vectors(model, training.collate(builder, examples), torch.arange(7))
    assert not torch.isclose(u, v).all(1).any()
    dev = training.open(str(scored(tmp_path / "dev.tsv")), FileConfig(), labelled=True)
    rows = list(dev.records())
    pairs = [example.sequences for example in training.examples(builder, dev, rows, None)]
    assert all(len(u.tokens) != len(v.tokens) or (u.tokens != v.tokens).any() for u, v in pairs)


@pytest.mark.parametrize(
    ("kind", "pooling", "normalize"),
    [("bert", "mean", True), ("bert", "max", False), ("bert", "first", False), ("gpt2", "last", True),
     ("gpt2", "mean", False), ("pre-norm", "mean", False)],
)  # fmt: skip
def test_sentence_transformers_computes_the_same_vectors(kind, pooling, normalize, request, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    config = SimilarityConfig(pooling=pooling, normalize=normalize)
    task, model, builder, arch = made(request.getfixturevalue("bert"), kind, config)
    write_finetuned_model(tmp_path / "model", model.state_dict(), arch, task, builder)
    theirs = library.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.max_seq_length == 24
    texts = [tiny.sentence(number, number * 4) for number in range(10)]  # the last ones are cut
    loaded = load_finetuned_model(str(tmp_path / "model"))
    assert loaded.task.settings() == task.settings() and loaded.builder.max_length == 24
    sequences, cut = loaded.builder.build(texts)
    assert any(cut) and not all(cut)
    with torch.no_grad():
        batch = loaded.builder.pack(sequences)
        ours = loaded.model.heads["similarity"](loaded.model(*_inputs(batch)), batch.layout)
    np.testing.assert_allclose(theirs.encode(texts, batch_size=3), ours, atol=1e-5)


def test_folders_that_sentence_transformers_saved(bert, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    config = SimilarityConfig(pooling="max", normalize=True)
    task, model, builder, arch = made(bert, "bert", config)
    write_finetuned_model(tmp_path / "ours", model.state_dict(), arch, task, builder)
    theirs = library.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    settings.pop("finetuning")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(settings))
    loaded = load_finetuned_model(str(tmp_path / "theirs"))
    assert loaded.task.kind == "similarity"
    assert loaded.task.settings()["pooling"] == "max" and loaded.task.settings()["normalize"] is True
    kept = Similarity.settings_for(SimilarityConfig(pooling="first"), tmp_path / "theirs")
    assert (kept.pooling, kept.normalize) == ("first", True)
    assert Similarity.settings_for(SimilarityConfig(normalize=False), tmp_path / "theirs").pooling == "max"
    assert Similarity.settings_for(SimilarityConfig(), bert) == Similarity(SimilarityConfig()).config
    old = tmp_path / "old"  # as version 1 laid it out
    (old / "0_Transformer").mkdir(parents=True)
    for path in (tmp_path / "theirs").iterdir():
        path.rename((old if path.is_dir() or path.name == "modules.json" else old / "0_Transformer") / path.name)
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    assert load_finetuned_model(str(old)).task.settings() == loaded.task.settings()


def test_folders_that_are_refused(bert, tmp_path):
    task, model, builder, arch = made(bert, "bert", SimilarityConfig())
    write_finetuned_model(tmp_path, model.state_dict(), arch, task, builder)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("finetuning")
    (tmp_path / "config.json").write_text(json.dumps(config))

    def refused(name: str, change: Any, match: str) -> None:
        before = (tmp_path / name).read_text()
        content = json.loads(before)
        change(content)
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=match):
            load_finetuned_model(str(tmp_path))
        (tmp_path / name).write_text(before)

    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    refused("modules.json", lambda modules: modules.append(dense), "the parts are Transformer, Pooling, Dense; they")
    both = {"pooling_mode_max_tokens": True}
    refused("1_Pooling/config.json", lambda pooling: pooling.update(both), r"pooling is max and mean; it must be one")
    refused("sentence_bert_config.json", lambda c: c.update(do_lower_case=True), "do_lower_case is True, .* to false")
    prompt = {"default_prompt_name": "query"}
    refused("config_sentence_transformers.json", lambda c: c.update(prompt), "prompt_name is 'query'.*to null")
    assert load_finetuned_model(str(tmp_path)).task.settings()["pooling"] == "mean"


@pytest.mark.parametrize(
    ("config", "labels", "match"),
    [
        (SimilarityConfig(), ("x", *SCORES[1:]), r"f\.tsv, line 2: the label is 'x'; it must be a number"),
        (
            SimilarityConfig(),
            ("0", "-1", "0", "0", "0", "0", "0"),
            r"largest score is 0; give --similarity\.best_score",
        ),
        (SimilarityConfig(best_score=4.0), SCORES, r"line 3: the score is 5\.0; it must lie within \+-4, the best"),
        (SimilarityConfig(loss="contrastive"), SCORES, r"all pairs mean the same, but there are the labels 0\.0, 0\.5"),
        (SimilarityConfig(loss="softmax"), ("a",) * 7, r"all 7 pairs have the label 'a'; two are needed"),
    ],
)
def test_refusals(config, labels, match, tmp_path):
    path = scored(tmp_path / "f.tsv", labels)
    file = Similarity.open_training(str(path), FileConfig(), config)
    records = list(file.records())
    with pytest.raises(ValueError, match=match):
        Similarity.for_training(file, records, config).targets(file, records)


def test_labels_unseen_in_training_and_settings():
    task = Similarity(SimilarityConfig(loss="softmax"), ("no", "yes"))
    file = Table("f.tsv", ("label", "text_a", "text_b"), True, ())
    row = Row(3, ["maybe", "a", "b"])
    with pytest.raises(
        ValueError, match=r"f\.tsv, line 3: the label 'maybe' is not in the training file, which has no"
    ):
        task.targets(file, [row])
    wrong = SimilarityConfig(loss="cos", pooling="sum", temperature=0.0, best_score=0.0).problems()
    assert len(wrong) == 4 and wrong[0].startswith("similarity.loss is 'cos'; it must be one of cosine, softmax")


def test_every_pooling_has_its_head():
    arch = ArchConfig(vocab_size=64, **tiny.BERT)  # type: ignore[arg-type]
    assert not list(SentenceHead(arch, "mean", normalize=True).parameters())
    assert [SentenceHead(arch, pooling, False, 3).classifier.out_features for pooling in POOLINGS] == [3] * 4


def test_two_ranks_equal_one(bert, tmp_path):
    """With dropout, at ZeRO stage 3, whose weights are whole only inside a forward call."""
    texts = tiny.write_table(tmp_path / "t.tsv", ["text_a"], [(tiny.sentence(n, 2 + n % 6),) for n in range(24)])
    dev, file = (
        scored(tmp_path / "dev.tsv"),
        commands.write_ds_config(tmp_path / "3.json", zero_optimization={"stage": 3}),
    )
    more = ("--task", "similarity", "--similarity.loss", "unsupervised", "--train.steps", "4", "--epochs", "1", *BATCH)
    for name, ranks in (("one", None), ("two", 2)):
        config = ("--ds_config", file) if ranks else ()
        tiny.finetune(tiny.options(bert, texts, tmp_path / name, *more, *config, dev=dev), ranks)
    assert commands.losses(tmp_path / "two") == pytest.approx(commands.losses(tmp_path / "one"), abs=1e-5)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[1]["dev_spearman"] == pytest.approx(results[0]["dev_spearman"], abs=1e-6)
    assert (tmp_path / "one" / "model" / "modules.json").is_file()
