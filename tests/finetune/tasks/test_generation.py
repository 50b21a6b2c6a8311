"""The tasks lm and seq2seq."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.data.filler import filled
from engine.models.model import build_model
from finetune import predict
from finetune.config.decoding import DecodingConfig
from finetune.config.tasks import FileConfig, LmConfig, Seq2seqConfig
from finetune.features.sequences import SequenceBuilder
from finetune.generation.decoding import generate
from finetune.metrics.texts import bleu, is_chinese, lowercases, rouge, text_of
from finetune.model_folder import load_finetuned_model, write_finetuned_model
from finetune.readers.tables import Row, Table
from finetune.tasks.base import Example
from finetune.tasks.classification import Classification
from finetune.tasks.generation import Generation, LanguageModel, Seq2seq, head_of
from finetune.tasks.multitask import Multitask
from preprocess.tokenizer import load_tokenizer, train_wordpiece
from tests import commands
from tests.finetune import tiny

TOKENIZER = train_wordpiece(tiny.WORDS * 3, vocab_size=150)
PAIRS = [(tiny.sentence(number, 2 + number), tiny.sentence(number + 9, 1 + 2 * number)) for number in range(6)]


def arch_of(fields: dict[str, object]) -> ArchConfig:
    return ArchConfig(vocab_size=TOKENIZER.vocab_size, init_std=0.3, **fields)  # type: ignore[arg-type]


def task_of(kind: str, **settings: Any) -> Generation:
    if kind == "lm":
        return LanguageModel(LmConfig(**settings), ("prompt",))
    return Seq2seq(Seq2seqConfig(**settings), ("source",))


def examples_of(
    task: Generation, fields: dict[str, object], answers: bool = True, max_length: int = 40
) -> tuple[SequenceBuilder, list[Example]]:
    builder = SequenceBuilder(TOKENIZER, arch_of(fields), max_length)
    texts = [second for _, second in PAIRS] if answers else None
    return builder, task.examples_of(builder, [first for first, _ in PAIRS], texts)


KINDS = pytest.mark.parametrize("kind", ["lm", "seq2seq"])
MODELS = pytest.mark.parametrize("fields", [tiny.BERT, tiny.GPT2], ids=["bert", "gpt2"])


@KINDS
@MODELS
def test_sequences_are_prompt_and_answer_with_special_tokens(kind: str, fields: dict[str, object]) -> None:
    causal, ids = "causal" in fields, TOKENIZER.special_ids
    begin = [ids["bos"]] if causal else [ids["cls"]]
    end = [ids["eos"]] if causal else [ids["sep"]]
    before, behind = (begin, []) if kind == "lm" else ([] if causal else begin, end)
    _, examples = examples_of(task_of(kind), fields)
    for example, (prompt, answer) in zip(examples[:4], PAIRS, strict=False):
        start = [*before, *TOKENIZER.encode([prompt])[0].tolist(), *behind]
        rest = [*TOKENIZER.encode([answer])[0].tolist(), ids["eos"]]
        (sequence,) = example.sequences
        assert sequence.second == len(start)
        assert sequence.tokens.tolist() == [*start, *rest[:-1]]
        assert np.asarray(example.target).tolist() == rest and not example.truncated


@KINDS
def test_long_texts_are_cut_and_a_cut_one_does_not_end(kind: str) -> None:
    task = task_of(kind)
    builder = SequenceBuilder(TOKENIZER, arch_of(tiny.GPT2), 12)
    prompt, answer = tiny.sentence(1, 20), tiny.sentence(2, 30)
    ids, answers = TOKENIZER.encode([prompt])[0].tolist(), TOKENIZER.encode([answer])[0].tolist()
    (example,) = task.examples_of(builder, [prompt], [answer])
    (sequence,), target = example.sequences, np.asarray(example.target).tolist()
    assert example.truncated and len(sequence.tokens) == 11  # the last of 12 is only predicted
    assert target == answers[: len(target)] and len(target) == 6
    kept = sequence.tokens[: sequence.second].tolist()
    assert kept == ([TOKENIZER.special_ids["bos"], *ids[-5:]] if kind == "lm" else [*ids[:5], kept[-1]])
    (alone,) = task.examples_of(builder, [prompt], None)
    assert alone.truncated and len(alone.sequences[0].tokens) == 12 == alone.sequences[0].second
    wide = SequenceBuilder(TOKENIZER, arch_of(tiny.GPT2), 64)  # all of the model's positions
    (alone,) = task.examples_of(wide, [tiny.sentence(1, 90)], None)
    assert len(alone.sequences[0].tokens) == 32


@KINDS
@MODELS
def test_loss_equals_one_sequence_at_a_time_by_a_written_out_softmax(kind: str, fields: dict[str, object]) -> None:
    task = task_of(kind)
    builder, examples = examples_of(task, fields)
    model = build_model(builder.arch, task.make_heads(builder.arch), seed=2).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            hidden = model(*_inputs(task, builder, example))
            target = torch.from_numpy(np.asarray(example.target))
            first = example.sequences[0].second - 1
            logits = model.heads[head_of(model)](hidden[first : first + len(target)], model.word_embedding)
            total -= float(logits.double().log_softmax(-1)[torch.arange(len(target)), target].sum())
            count += len(target)
        batch = task.collate(builder, examples)
        found = task.losses(model, batch)[task.name]
        assert found.num_targets == count == sum(len(np.asarray(example.target)) for example in examples)
        assert float(found.loss_sum) == pytest.approx(total, rel=1e-5)
        assert float(task.losses(model, filled(batch))[task.name].loss_sum) == pytest.approx(total, rel=1e-5)
        figures = task.figures(task.outputs(model, batch, examples), examples, [])
    assert figures["loss"] == pytest.approx(total / count, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert ("bleu" in figures) == (kind == "seq2seq") and 0 <= figures["accuracy"] < 0.5


def _inputs(task: Generation, builder: SequenceBuilder, example: Example) -> tuple[Any, ...]:
    batch = task.collate(builder, [example])
    return batch.tokens, batch.positions, batch.segments, batch.layout


@KINDS
@MODELS
def test_what_is_written_is_the_most_probable_of_whole_sequences(kind: str, fields: dict[str, object]) -> None:
    """Without kept keys and values: each step runs the whole sequence, laid out as in training."""
    task = task_of(kind, max_new_tokens=9)
    builder, examples = examples_of(task, fields, answers=False)
    model = build_model(builder.arch, task.make_heads(builder.arch), seed=8).eval()
    expected = []
    with torch.no_grad():
        for example in examples:
            (sequence,) = example.sequences
            tokens: list[int] = []
            while len(tokens) < 9:
                whole = sequence._replace(tokens=np.concatenate([sequence.tokens, np.array(tokens, np.uint16)]))
                hidden = model(*_inputs(task, builder, Example((whole,))))
                chosen = int(model.heads[head_of(model)](hidden[-1:], model.word_embedding).argmax())
                if chosen == TOKENIZER.special_ids["eos"]:
                    break
                tokens.append(chosen)
            expected.append(text_of(TOKENIZER, tokens))
        outputs = task.outputs(model, task.collate(builder, examples), examples)
    assert [output.text for output in outputs] == expected
    assert len(set(expected)) > 1
    assert task.answers(outputs, examples, [], False) == [{task.target_column: text} for text in expected]


def test_transformers_continues_prompts_of_a_finetuned_gpt2(tmp_path: Path) -> None:
    """In its natural call: generate(**tokenizer(prompt))."""
    transformers = pytest.importorskip("transformers")
    task, arch = task_of("lm", max_new_tokens=12), arch_of(tiny.GPT2)
    model = build_model(arch, task.make_heads(arch), seed=8)
    builder = SequenceBuilder(TOKENIZER, arch, 40)
    write_finetuned_model(tmp_path, model.state_dict(), arch, task, builder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    loaded = load_finetuned_model(str(tmp_path))
    assert isinstance(loaded.task, LanguageModel) and loaded.task.config == task.config
    examples = loaded.task.examples_of(loaded.builder, [prompt for prompt, _ in PAIRS], None)
    written = generate(
        loaded.task.generator(loaded.model, TOKENIZER),
        [example.sequences[0].tokens for example in examples],
        DecodingConfig(max_new_tokens=12),
    )
    for (prompt, _), texts in zip(PAIRS, written, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        output = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected = [token for token in output.tolist() if token != TOKENIZER.special_ids["eos"]]
        assert texts[0].tokens == expected


def run_folders(model: Path, folder: Path, kind: str, columns: list[str]) -> list[Path]:
    """The same run by one rank, and by two at ZeRO stage 3."""
    train = tiny.write_table(folder / "train.tsv", columns, PAIRS)
    stage3 = commands.write_ds_config(folder / "stage3.json", zero_optimization={"stage": 3})
    found = []
    for name, ranks, config in (("one", None, tiny.FP32), ("two", 2, stage3)):
        more = ("--ds_config", config, "--task", kind, f"--{kind}.generate", "true", f"--{kind}.max_new_tokens", "8")
        arguments = tiny.options(model, train, folder / name, *more, "--train.steps", "4", "--train.eval_every", "2")
        done = tiny.finetune(arguments, ranks)
        assert "first weights of their own" not in done.stdout  # the head is the pretrained one
        found.append(folder / name)
    return found


def test_two_ranks_at_stage_3_equal_one(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score")
    columns = ["source", "target"]
    one, two = run_folders(bert, tmp_path, "seq2seq", columns)
    assert commands.losses(two) == pytest.approx(commands.losses(one), abs=1e-5)
    mine, theirs = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    for figure in ("loss", "perplexity", "accuracy", "bleu", "rouge1", "rouge2", "rougeL"):
        assert theirs[f"dev_{figure}"] == pytest.approx(mine[f"dev_{figure}"], rel=1e-4), figure
    source = tiny.write_table(tmp_path / "in.tsv", columns[:1], [(first,) for first, _ in PAIRS])
    output = tmp_path / "out.tsv"
    assert predict.main(["--model", str(one), "--input", str(source), "--output", str(output)]) == 0
    header, *texts = output.read_text().splitlines()
    assert header == columns[1] and len(texts) == len(PAIRS) and any(texts)
    expected = bleu(texts, [second for _, second in PAIRS], lowercase=True)
    assert mine["dev_bleu"] == pytest.approx(expected, abs=1e-6)


def test_files(tmp_path: Path) -> None:
    path = tiny.write_table(tmp_path / "train.tsv", ["completion", "prompt"], [("火", "天 地"), ("水", "人")])
    table = LanguageModel.open_training(str(path), FileConfig(), LmConfig())
    task = LanguageModel.for_training(table, list(table.records()), LmConfig())
    assert task.columns == ("prompt",) and task.targets(table, list(table.records())) == ["火", "水"]
    path.write_text('{"text": "火", "title": "x"}\n{"text": "水", "title": "y"}\n')
    table = LanguageModel.open_training(str(path), FileConfig("completion=text", "jsonl"), LmConfig())
    assert LanguageModel.for_training(table, [], LmConfig()).columns == ()  # texts alone
    with pytest.raises(ValueError, match="no column source and no column target"):
        Seq2seq.open_training(str(path), FileConfig(), Seq2seqConfig())
    names = ("source", "target")
    with pytest.raises(ValueError, match=r"f\.tsv, line 4: the target is empty"):
        task_of("seq2seq").targets(Table("f.tsv", names, True, names), [Row(2, ["a", "b"]), Row(4, ["c", " "])])


def test_main_figure_and_settings() -> None:
    assert task_of("lm").main_figure == "accuracy" and task_of("lm", generate=True).main_figure == "bleu"
    task = task_of("seq2seq", num_beams=3, length_penalty=0.5)
    again = Seq2seq.from_settings([], {"task": "seq2seq", "max_length": 9, **json.loads(json.dumps(task.settings()))})
    assert again.config == task.config and again.columns == ("source",)
    assert Seq2seqConfig(num_beams=0).problems() == ["seq2seq.num_beams is 0; it must be at least 1"]
    assert LmConfig(top_k=3).problems()[0].startswith("lm.top_k without sample")


def test_texts_of_tokens() -> None:
    def again(text: str) -> str:
        return text_of(TOKENIZER, TOKENIZER.encode([text])[0])

    assert again("天地人 apple bread 山水") == "天地人apple bread山水"
    assert lowercases(TOKENIZER) and is_chinese(["天地 abc"][:1]) is False and is_chinese(["天地人x", "。"])


def test_bleu_and_rouge_of_chinese_are_by_characters() -> None:
    pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score")
    texts, references = ["我们今天去北京", "好"], ["我们明天去北京", "好"]
    # 7 and 1 characters: 7 of 8 unigrams, 4 of 6 bigrams, 2 of 5 trigrams, 1 of 4 4-grams are right, no brevity penalty
    assert bleu(texts, references) == pytest.approx(100 * (7 / 8 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    scores = rouge(texts, references)
    assert scores["rouge1"] == pytest.approx((6 / 7 + 1) / 2)
    assert scores["rouge2"] == pytest.approx((4 / 6 + 0) / 2)
    assert scores["rougeL"] == pytest.approx((6 / 7 + 1) / 2)
    assert rouge(["The Cat sat"], ["the cat ran"])["rouge1"] == pytest.approx(2 / 3)
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100.0)
    assert bleu(["The cat sat on the mat"], ["the cat sat on the mat"]) < 100
    assert bleu(["The cat sat on the mat"], ["the cat sat on the mat"], lowercase=True) == pytest.approx(100.0)


@pytest.mark.parametrize(("library", "function"), [("sacrebleu", bleu), ("rouge-score", rouge)])
def test_missing_libraries_are_named(library: str, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sacrebleu.metrics.bleu", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ValueError, match=f"pip install {library}"):
        function(["a"], ["a"])


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("lm", "gen_zh_poems/ccpc_valid.json", FileConfig("prompt=title,completion=content", "jsonl")),
        ("seq2seq", "raw_zh_modern_histories/classical_modern_pairs_10k.tsv", FileConfig("source,target")),
        ("seq2seq", "raw_zh_clue_news/news_commentary_en_zh.tsv", FileConfig("source,target")),
    ],
)
def test_public_files(kind: str, name: str, options: FileConfig, shared_data: Path) -> None:
    pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score")
    tokenizer = load_tokenizer(shared_data / "vocab" / "google_zh_vocab.txt")
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, **tiny.BERT)  # type: ignore[arg-type]
    class_: type[Generation] = LanguageModel if kind == "lm" else Seq2seq
    config = class_.config_class()
    file = class_.open_training(str(shared_data / name), options, config)
    records = list(file.records())
    task = class_.for_training(file, records, config)
    assert task.columns == (class_.known_columns[0],) and len(records) in (7979, 10000, 1000)
    builder = SequenceBuilder(tokenizer, arch, 64)
    records = records[:40]
    references = task.targets(file, records)
    examples = task.examples(builder, file, records, references)
    whole = [example for example in examples if not example.truncated]
    for example in whole:  # the text comes back from the tokens, but for spaces and what is not in the vocabulary
        text = text_of(tokenizer, np.asarray(example.target)[:-1])
        same = text.replace(" ", "") == re.sub(r"\s", "", example.details.reference.lower())
        assert same or "[UNK]" in text or "—" in example.details.reference, (text, example.details.reference)
    assert len(whole) > 5
    model = build_model(arch, task.make_heads(arch), seed=1)
    term = task.losses(model, task.collate(builder, examples))[task.name]
    assert float(term.loss_sum.detach()) / term.num_targets == pytest.approx(math.log(tokenizer.vocab_size), rel=0.02)
    assert is_chinese(references)
    assert bleu(references, references) == pytest.approx(100.0)
    assert rouge(references, references)["rougeL"] == pytest.approx(1.0)


@KINDS
@MODELS
def test_pairs_are_learned_by_heart(kind: str, fields: dict[str, object]) -> None:
    task = task_of(kind, max_new_tokens=12)
    builder = SequenceBuilder(TOKENIZER, arch_of(fields), 40)
    pairs = [(first, " ".join(second.split()[:6])) for first, second in PAIRS]
    examples = task.examples_of(builder, [first for first, _ in pairs], [second for _, second in pairs])
    model = build_model(builder.arch, task.make_heads(builder.arch), seed=2).eval()  # without dropout
    batch, optimizer = task.collate(builder, examples), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        term = task.losses(model, batch)[task.name]
        optimizer.zero_grad()
        (term.loss_sum / term.num_targets).backward()
        optimizer.step()
    alone = task.examples_of(builder, [first for first, _ in pairs], None)
    with torch.no_grad():
        texts = task.write(model, alone)
    assert texts == [text_of(TOKENIZER, TOKENIZER.encode([second])[0]) for _, second in pairs]


@MODELS
def test_beside_other_tasks_it_has_the_pretrained_head(fields: dict[str, object]) -> None:
    causal = "causal" in fields
    task = task_of("seq2seq", max_new_tokens=3)
    both = Multitask({"lm": Classification(["0", "1"], pair=False), "write": task})
    if causal:
        with pytest.raises(ValueError, match="write has the head 'lm', which another task has too"):
            both.make_heads(arch_of(fields))
        both = Multitask({"class": Classification(["0", "1"], pair=False), "write": task})
    builder, examples = examples_of(task, fields)
    model = build_model(builder.arch, both.make_heads(builder.arch), seed=2).eval()
    assert both.pretrained_heads == ("lm", "mlm") and ("lm" if causal else "mlm") in model.heads
    batch = task.collate(builder, examples)
    assert list(both.losses(model, batch)) == ["write"]
    with torch.no_grad():
        texts = [output.text for output in task.outputs(model, batch, examples)]
    assert len(texts) == len(PAIRS) and all(isinstance(text, str) for text in texts)


def test_draws_follow_the_seed_and_the_line_of_the_file() -> None:
    """And not the place in a chunk of it."""
    task = task_of("lm", sample=True, max_new_tokens=6)
    arch = arch_of(tiny.GPT2)
    model, builder = build_model(arch, task.make_heads(arch), seed=3).eval(), SequenceBuilder(TOKENIZER, arch, 40)
    table = Table("x.tsv", ("prompt",), True, ("prompt",))
    rows = [Row(line, [PAIRS[0][0]]) for line in range(2, 8)]

    def written(seed: int, rows: list[Row]) -> list[str]:
        Multitask({"own": task}).key_draws(seed)
        with torch.no_grad():
            return task.write(model, task.examples(builder, table, rows, None))

    texts = written(1, rows)
    assert len(set(texts)) > 1 and texts != written(2, rows)
    assert written(1, rows[:3]) + written(1, rows[3:]) == texts
