"""Windows, loss, search, threshold and folders of question answering."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.data.filler import filled
from engine.models.model import build_model
from finetune import predict
from finetune.config.tasks import FileConfig, QuestionAnsweringConfig
from finetune.features.answer_search import AnswerWindow, best_answers, no_answer_score
from finetune.features.sequences import SequenceBuilder
from finetune.model_folder import load_finetuned_model, write_finetuned_model
from finetune.readers.questions import NOWHERE, Gold, Question
from finetune.tasks.multitask import Multitask
from finetune.tasks.question_answering import QuestionAnswering
from finetune.training.finetuning import take_up
from preprocess.tokenizer import load_tokenizer
from tests import commands
from tests.finetune import tiny


class File:
    path = "file"

    def notes(self) -> list[str]:
        return []


def questions(count: int) -> list[Question]:
    """Texts of different lengths with an answer of two words, none, or one at no known place."""
    made = []
    for number in range(count):
        words = tiny.sentence(number, 3 + number * 7 % 40).split()
        text, answer = " ".join(words), " ".join(words[len(words) // 2 :][:2])
        golds = {0: (), 1: (Gold("missing", NOWHERE),)}.get(number % 6, (Gold(answer, text.index(answer)),))
        made.append(Question("", f"q{number}", tiny.sentence(number + 3, 4), text, golds))
    return made


def parts(folder: Path, fields: dict[str, object], length: int = 24, no_answers: bool = True, **config: int):
    tokenizer = load_tokenizer(folder)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.5, **fields)  # type: ignore[arg-type]
    task = QuestionAnswering(QuestionAnsweringConfig(**config), "en", no_answers)  # type: ignore[arg-type]
    model = build_model(arch, task.make_heads(arch), seed=3).eval()
    return task, model, SequenceBuilder(tokenizer, arch, length), arch


def examples_of(task, builder, records):
    return task.examples(builder, File(), records, task.targets(File(), records))


@pytest.mark.parametrize(("kind", "fields"), [("bert", tiny.BERT), ("gpt2", tiny.GPT2)])
def test_loss_is_that_of_single_sequences_with_filler_too(kind, fields, request):
    task, model, builder, _ = parts(request.getfixturevalue(kind), fields)
    records = questions(9)
    examples = examples_of(task, builder, records)
    assert len(examples) > len(records)
    known = [example for example in examples if example.target[0] >= 0]
    assert len(known) < len(examples)
    expected, right = 0.0, 0
    with torch.no_grad():
        for example in known:
            scores = task.logits(model, builder.pack(example.sequences)).double().log_softmax(0)
            expected -= float(scores[example.target[0], 0] + scores[example.target[1], 1])
            right += int(scores[:, 0].argmax() == example.target[0]) + int(scores[:, 1].argmax() == example.target[1])
        batch = task.collate(builder, examples)
        for one in (batch, filled(batch), filled(batch, most_tokens=900, longest=40)):
            term = task.losses(model, one, with_accuracy=True)[task.name]
            assert float(term.loss_sum) == pytest.approx(expected, rel=1e-5)
            assert term.num_targets == 2 * len(known) and int(term.correct) == right
        outputs = task.outputs(model, filled(batch, most_tokens=900), examples)
    assert task.figures(outputs, examples, records)["loss"] == pytest.approx(expected / 2 / len(known), rel=1e-5)
    term = task.losses(model, filled(batch, most_tokens=900))[task.name].loss_sum
    term.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("kind", "fields"), [("bert", tiny.BERT), ("gpt2", tiny.GPT2)])
@pytest.mark.parametrize("doc_stride", [0, 3])
def test_windows_show_all_of_the_text_and_the_answer(kind, fields, doc_stride, request):
    task, _, builder, _ = parts(request.getfixturevalue(kind), fields, doc_stride=doc_stride)
    records = questions(30)
    examples = examples_of(task, builder, records)
    for number, record in enumerate(records):
        own = [example for example in examples if example.record == number]
        ids, starts, _ = builder.tokenizer.encode_with_offsets(record.context)
        begun = [int(e.details.starts[k]) for e in own for k in range(e.details.own_begin, e.details.own_end)]
        assert begun == starts.tolist()  # each token is the own one of one window
        for example in own:
            tokens, window = example.sequences[0].tokens, example.details
            assert len(tokens) <= 24 and not example.truncated
            first = int(np.flatnonzero(starts == window.starts[0])[0])
            inside = tokens[window.first : window.first + len(window.starts)]
            assert inside.tolist() == ids[first : first + len(inside)].tolist()
            begin = int(example.target[0])
            if record.answers and record.answers[0].start != NOWHERE and begin != window.none:
                assert shown(record.context, window, example.target).strip() == record.answers[0].text
            assert window.none == (0 if kind == "bert" else len(tokens) - 1)
        found = [example.target[0] != example.details.none for example in own]
        assert any(found) == bool(record.answers)
    wide = records[5]._replace(answers=(Gold(records[5].context, 0),))
    assert len(wide.context.split()) > 24
    assert all(example.target.tolist() == [-100, -100] for example in examples_of(task, builder, [wide]))
    assert "1 question(s) have an answer that no window holds whole" in task.notes(File())[-1]
    long = records[0]._replace(question=tiny.sentence(1, 40))
    assert all(example.truncated for example in examples_of(task, builder, [long]))


def shown(text: str, window: AnswerWindow, target: np.ndarray) -> str:
    """From the first to the last token of an answer."""
    begin, end = (target - window.first).tolist()
    return text[window.starts[begin] : window.ends[end]]


def test_answers_of_real_files_are_found_in_their_tokens(bert, shared_data):
    """The characters between first and last token hold the answer, with a real vocabulary."""
    (vocabulary,) = sorted((shared_data / "vocab").glob("google_zh_vocab.txt")) or [None]
    if vocabulary is None:
        pytest.skip("no Chinese vocabulary in the data folder")
    arch = ArchConfig(vocab_size=30000, **tiny.BERT | {"max_positions": 512})  # type: ignore[arg-type]
    builder = SequenceBuilder(load_tokenizer(vocabulary), arch, 384)
    task = QuestionAnswering(QuestionAnsweringConfig(), "zh", False)
    file = QuestionAnswering.open_training(str(shared_data / "qa_zh_cmrc2018" / "trial.json"), FileConfig(), None)
    records = list(file.records())[:300]
    examples = task.examples(builder, file, records, task.targets(file, records))
    exact = divided = 0
    for number, record in enumerate(records):
        own = [e for e in examples if e.record == number and e.target[0] not in (e.details.none, -100)]
        assert own or len(record.answers[0].text) > 150
        divided += not own
        spans = [shown(record.context, e.details, e.target) for e in own]
        assert all(record.answers[0].text in span for span in spans)
        exact += any(span == record.answers[0].text for span in spans)
    assert exact >= 0.97 * len(records)
    assert f"{divided} question(s) have an answer that no window holds whole" in task.notes(file)[-1]


def test_search_is_that_of_all_pairs():
    generator = np.random.default_rng(5)
    text = "aa bb cc dd ee ff gg"
    places = np.array([0, 3, 6, 9, 12, 15, 18])
    for _ in range(50):
        windows = [
            AnswerWindow(4, places[:5], places[:5] + 2, 0, 4, 0),
            AnswerWindow(4, places[3:], places[3:] + 2, 1, 4, 0),
        ]
        logits = [generator.normal(size=(10, 2)).astype(np.float32), generator.normal(size=(9, 2)).astype(np.float32)]
        expected = {}
        for window, scores in zip(windows, logits, strict=True):
            for a in range(window.own_begin, window.own_end):
                for b in range(a, min(a + 3, len(window.starts))):
                    span = text[window.starts[a] : window.ends[b]]
                    expected[span] = max(expected.get(span, -9e9), float(scores[4 + a, 0]) + float(scores[4 + b, 1]))
        best = sorted(expected, key=lambda span: -expected[span])[:5]
        found = best_answers(windows, logits, text, 5, 3)
        assert [text[one.start : one.end] for one in found] == best
        assert [one.score for one in found] == pytest.approx([expected[span] for span in best])
        assert no_answer_score(windows, logits) == pytest.approx(min(float(scores[0].sum()) for scores in logits))


@pytest.mark.parametrize(("kind", "fields"), [("bert", tiny.BERT), ("gpt2", tiny.GPT2)])
def test_folders_and_predictions(kind, fields, request, tmp_path, capsys):
    """transformers gives the same logits; predictions in the official layout and with the next best answers."""
    transformers = pytest.importorskip("transformers")
    task, model, builder, arch = parts(request.getfixturevalue(kind), fields, length=40, n_best=4, max_answer_length=6)
    records = questions(13)
    examples = examples_of(task, builder, records)
    with torch.no_grad():
        outputs = task.outputs(model, task.collate(builder, examples), examples)
    before = task.figures(outputs, examples, records)
    task.tune(outputs, examples, records)
    after = task.figures(outputs, examples, records)
    assert after["f1"] >= before["f1"] and after["threshold"] == task.threshold != 0.0
    task.threshold = float(np.median([none for _, none, _ in task._found(outputs, examples, records, 1)]))
    assert {"f1_answerable", "f1_unanswerable", "exact_match"} <= set(after)
    write_finetuned_model(tmp_path / "model", model.state_dict(), arch, task, builder)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    loaded = load_finetuned_model(str(tmp_path / "model"))
    assert loaded.task.settings() == task.settings()
    for output, example in list(zip(outputs, examples, strict=True))[:6]:
        tokens, second = example.sequences[0]
        inputs = {"input_ids": torch.from_numpy(tokens.astype(np.int64))[None]}
        if kind == "bert":
            inputs["token_type_ids"] = (torch.arange(len(tokens)) >= second).long()[None]
        with torch.no_grad():
            found = theirs(**inputs)
        logits = torch.stack([found.start_logits[0], found.end_logits[0]], -1)
        torch.testing.assert_close(torch.from_numpy(output), logits, atol=1e-4, rtol=1e-4)
    lines = [{"id": record.id, "question": record.question, "context": record.context} for record in records]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    arguments = ["--model", str(tmp_path / "model"), "--input", str(tmp_path / "in.jsonl"), "--probabilities"]
    for name in ("out.json", "out.jsonl"):
        assert predict.main([*arguments, "--output", str(tmp_path / name)]) == 0
    official = json.loads((tmp_path / "out.json").read_text())
    assert "left out" not in capsys.readouterr().err
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line | {'id': 'a'})}\n" for line in lines[:3]))
    assert predict.main([*arguments, "--output", str(tmp_path / "once.json")]) == 0
    assert list(json.loads((tmp_path / "once.json").read_text())) == ["a"]
    assert "note: 2 answer(s) left out, whose id an earlier one has" in capsys.readouterr().err
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert list(official) == [record.id for record in records]
    assert list(official.values()) == [answer["answer"] for answer in answers]
    for answer, record in zip(answers, records, strict=True):
        shares = [one["probability"] for one in answer["n_best"]]
        assert len(shares) == 4 and sum(shares) == pytest.approx(1, abs=1e-4)
        assert all(record.context[one["start"] : one["end"]] == one["text"] for one in answer["n_best"])
        given = answer["no_answer_score"] <= task.threshold
        assert answer["answer"] == (answer["n_best"][0]["text"] if given else "")
    assert {answer["answer"] == "" for answer in answers} == {True, False}


def test_what_a_training_file_sets(tmp_path):
    def task_of(context: str, **qa: object) -> QuestionAnswering:
        one = {"question": "?", "answers": [{"text": context[:2], "answer_start": 0}]} | qa
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [one]}]}]}))
        file = QuestionAnswering.open_training(str(path), FileConfig(), None)
        return QuestionAnswering.for_training(file, list(file.records()), QuestionAnsweringConfig())

    assert (task_of("天地人").language, task_of("heaven").language) == ("zh", "en")
    assert task_of("heaven", is_impossible=True).no_answers and not task_of("heaven").no_answers
    with pytest.raises(ValueError, match="no question has an answer at a known place"):
        task_of("heaven", answers=["x"])
    found = QuestionAnsweringConfig(metric="de", doc_stride=-1, n_best=0).problems()
    assert [problem.split(" is ")[0] for problem in found] == [
        "question_answering.metric", "question_answering.doc_stride", "question_answering.n_best",
    ]  # fmt: skip


def squad_file(path: Path) -> Path:
    """Questions of which every third has no answer."""
    entries = []
    for number in range(18):
        words = tiny.sentence(number, 8).split()
        text, answer = " ".join(words), " ".join(words[3:5])
        answers = [{"text": answer, "answer_start": text.index(answer)}] if number % 3 else []
        qa = {
            "id": f"q{number}",
            "question": tiny.sentence(number + 3, 3),
            "answers": answers,
            "is_impossible": not answers,
        }
        entries.append({"paragraphs": [{"context": text, "qas": [qa]}]})
    path.write_text(json.dumps({"data": entries}))
    return path


def test_the_threshold_belongs_to_the_weights(bert, tmp_path):
    """Those of the best evaluation; a run that ends anew finds the same."""
    run = tmp_path / "run"
    arguments = tiny.options(
        bert, squad_file(tmp_path / "a.json"), run, "--task", "question_answering", "--epochs", "4",
        "--train.keep_best", "true", "--train.optimizer.lr", "5e-2", "--train.schedule.name", "constant",
    )  # fmt: skip
    tiny.finetune(arguments)
    lines = {line["step"]: line for line in commands.metrics(run) if "heldout_f1" in line}
    first = json.loads((run / "results.json").read_text())
    best, last = lines[first["step"]], lines[max(lines)]
    assert best is not last and best["heldout_threshold"] != last["heldout_threshold"]
    for name in ("f1", "exact_match", "threshold"):
        assert first[f"dev_{name}"] == pytest.approx(best[f"heldout_{name}"], rel=1e-6)
    written = json.loads((run / "model" / "config.json").read_text())["finetuning"]["threshold"]
    assert written == pytest.approx(first["dev_threshold"], rel=1e-6)
    (run / "FINISHED").unlink()
    (run / "results.json").unlink()
    tiny.finetune(arguments)
    second = json.loads((run / "results.json").read_text())
    assert {**second, "seconds": 0} == {**first, "seconds": 0}


def test_what_was_chosen_is_taken_up_from_a_checkpoint(bert, tmp_path):
    """Alone, and as one of several tasks."""
    task, model, builder, arch = parts(bert, tiny.BERT)
    task.threshold = -1.25
    write_finetuned_model(tmp_path / "model", model.state_dict(), arch, task, builder)
    again = QuestionAnswering(QuestionAnsweringConfig(), "en", True)
    take_up(SimpleNamespace(task=again), tmp_path)  # type: ignore[arg-type]
    assert again.threshold == -1.25
    both = Multitask({"qa": QuestionAnswering(QuestionAnsweringConfig(), "en", True)})
    both.take_up(Multitask({"qa": again}).settings())
    assert both.tasks["qa"].threshold == -1.25  # type: ignore[attr-defined]
