"""Predictions by the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.config.arch import ArchConfig
from engine.models.model import build_model
from finetune import predict
from finetune.features.sequences import SequenceBuilder
from finetune.inference import prediction
from finetune.model_folder import load_finetuned_model, write_finetuned_model
from finetune.tasks.classification import Classification
from preprocess.tokenizer import load_tokenizer
from tests import commands
from tests.finetune import tiny

LABELS = ("0", "好", "very bad")


def classifier(folder: Path, source: Path, fields: dict[str, object], pair: bool, max_length: int = 24) -> Path:
    """A classifier with random weights that are large enough for every class to be predicted."""
    tokenizer = load_tokenizer(source)
    arch = ArchConfig(vocab_size=tokenizer.vocab_size, init_std=0.5, **fields)  # type: ignore[arg-type]
    task = Classification(LABELS, pair)
    model = build_model(arch, task.make_heads(arch), seed=4)
    builder = SequenceBuilder(tokenizer, arch, max_length)
    write_finetuned_model(folder, model.state_dict(), arch, task, builder)
    return folder


@pytest.fixture(scope="module")
def single(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that classifies single texts, as the newest model of a run folder."""
    run = tmp_path_factory.mktemp("single")
    classifier(run / "checkpoints" / "step-3" / "model", bert, tiny.BERT, pair=False)
    (run / "model").symlink_to(Path("checkpoints") / "step-3" / "model")
    (run / "config.json").write_text('{"train": {}}')
    return run


@pytest.fixture(scope="module")
def pairs(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that classifies pairs."""
    return classifier(tmp_path_factory.mktemp("pairs"), gpt2, tiny.GPT2, pair=True)


@pytest.mark.parametrize("fields", [tiny.GPT2, tiny.PRE_NORM_BERT], ids=["gpt2", "pre-norm-bert"])
@pytest.mark.parametrize("pair", [False, True])
def test_transformers_computes_the_logits(pair: bool, fields: dict[str, object], gpt2: Path, tmp_path: Path) -> None:
    """In its natural call: AutoModel(**AutoTokenizer(text))."""
    transformers = pytest.importorskip("transformers")
    folder = classifier(tmp_path / "model", gpt2, fields, pair)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    loaded = load_finetuned_model(str(folder))
    assert loaded.builder.tokenizer.digest == load_tokenizer(gpt2).digest
    for number in range(12):  # up to lengths that are cut
        texts = [tiny.sentence(number, 3 * number), *([tiny.sentence(number + 40, 1 + number)] if pair else [])]
        inputs = tokenizer(*texts, return_tensors="pt", truncation=True, max_length=24)
        segments = [] if "causal" in fields else ["token_type_ids"]
        assert list(inputs) == ["input_ids", *segments, "attention_mask"]
        sequences, _ = loaded.builder.build(texts[:1], texts[1:] or None)
        assert inputs["input_ids"][0].tolist() == sequences[0].tokens.tolist()
        with torch.no_grad():
            ours = loaded.task.logits(loaded.model, loaded.builder.pack(sequences))  # type: ignore[attr-defined]
            torch.testing.assert_close(ours.cpu(), theirs(**inputs).logits, atol=1e-5, rtol=1e-5)


def run(*arguments: str | Path) -> int:
    return predict.main([str(argument) for argument in arguments])


def expected(model: Path, *texts: list[str]) -> torch.Tensor:
    """Probabilities, one line at a time."""
    loaded = load_finetuned_model(str(model))
    rows = []
    for line in zip(*texts, strict=True):
        sequences, _ = loaded.builder.build(*([text] for text in line))
        with torch.no_grad():
            rows.append(loaded.task.logits(loaded.model, loaded.builder.pack(sequences))[0])  # type: ignore[attr-defined]
    return torch.stack(rows).double().softmax(-1)


def test_lines_keep_their_order_across_chunks(single, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prediction, "CHUNK_RECORDS", 7)
    texts = [tiny.sentence(number, number * 5 % 31) for number in range(40)]
    assert "" in texts
    file = tiny.write_table(
        tmp_path / "in.tsv", ["id", "label", "text_a"], [(str(n), "?", t) for n, t in enumerate(texts)]
    )
    assert (
        run("--model", single, "--input", file, "--output", tmp_path / "out.tsv", "--probabilities", "--batch_size", 3)
        == 0
    )
    header, *lines = (tmp_path / "out.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    assert header.split("\t") == ["label", "probability_0", "probability_好", "probability_very bad"]
    found = [line.split("\t") for line in lines]
    shares = expected(single, texts)
    assert [cells[0] for cells in found] == [LABELS[index] for index in shares.argmax(-1).tolist()]
    assert len({cells[0] for cells in found}) == 3
    numbers = torch.tensor([[float(cell) for cell in cells[1:]] for cells in found], dtype=torch.float64)
    torch.testing.assert_close(numbers, shares, atol=2e-6, rtol=0)
    assert "out.tsv: 40 predictions (" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tsv", "out.tsv"]


def test_pairs_without_a_header(pairs, tmp_path):
    rows = tiny.pair_rows(9)
    file = tiny.write_table(tmp_path / "in.tsv", None, [(b, a) for _, a, b in rows])
    assert run("--model", pairs, "--input", file, "--output", tmp_path / "out.tsv", "--columns", "text_b,text_a") == 0
    shares = expected(pairs, [a for _, a, _ in rows], [b for _, _, b in rows])
    lines = (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == ["label", *(LABELS[index] for index in shares.argmax(-1).tolist())]


def test_one_column_of_texts_may_have_empty_lines(single, tmp_path):
    (tmp_path / "in.tsv").write_bytes("text\r\napple\r\n\r\n水\r\n".encode())
    assert run("--model", single / "model", "--input", tmp_path / "in.tsv", "--output", tmp_path / "out.tsv") == 0
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 4


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_a_classifier_of_transformers(problem_type, bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(
        bert, num_labels=3, initializer_range=0.5, problem_type=problem_type
    )
    config.architectures = ["BertForSequenceClassification"]
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    load_tokenizer(bert).save(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [tiny.sentence(number, 1 + number) for number in range(6)]
    file = tiny.write_table(tmp_path / "in.tsv", ["text"], [(text,) for text in texts])
    assert run("--model", tmp_path / "model", "--input", file, "--output", tmp_path / "out.tsv") == 0
    with torch.no_grad():
        best = [theirs(**tokenizer(text, return_tensors="pt")).logits[0].argmax() for text in texts]
    assert (tmp_path / "out.tsv").read_text().splitlines() == ["label", *(f"LABEL_{index}" for index in best)]


def test_needs_neither_deepspeed_nor_transformers(single, tmp_path):
    file = tiny.write_table(tmp_path / "in.tsv", ["text_a"], [("apple",)])
    code = (
        "import sys; from finetune.predict import main; code = main(sys.argv[1:]);"
        "assert not {'deepspeed', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    arguments = ["--model", single, "--input", file, "--output", tmp_path / "out.tsv"]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = commands.environment({"PYTHONPATH": str(commands.REPOSITORY)})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.tsv").is_file()


def test_problems_are_listed_at_once(tmp_path, capsys):
    options = ("--model", tmp_path / "a", "--input", tmp_path / "b", "--output", tmp_path / "c" / "d")
    assert run(*options, "--batch_size", "0") == 2
    text = capsys.readouterr().err
    for expected_text in (
        f"--model {tmp_path / 'a'} does not exist",
        f"{tmp_path / 'b'}: no such file",
        f"--output {tmp_path / 'c' / 'd'}: the folder {tmp_path / 'c'} does not exist",
        "batch_size is 0; it must be at least 1",
    ):
        assert expected_text in text
    assert run(*options, "--probability") == 2
    assert "unknown option --probability; did you mean --probabilities?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "in.tsv is empty"),
        (b"text_a\n", "in.tsv holds no examples"),
        (b"apple\nbread\n", "no column text_a in its first line"),
        (b"text_a\napple\nbread\tx\n", "in.tsv, line 3: 2 column(s), but there must be 1"),
        (b"text_a\n\xff\n", "in.tsv is not UTF-8"),
    ],
)
def test_inputs(content, message, single, tmp_path, capsys):
    (tmp_path / "in.tsv").write_bytes(content)
    assert run("--model", single, "--input", tmp_path / "in.tsv", "--output", tmp_path / "out.tsv") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.tsv"]  # nothing half-written is left


def test_models_and_outputs(bert, single, pairs, tmp_path, capsys):
    file = tiny.write_table(tmp_path / "in.tsv", ["text_a"], [("apple",)])

    def says(model: Path, output: Path = tmp_path / "out.tsv") -> str:
        assert run("--model", model, "--input", file, "--output", output) == 2
        return capsys.readouterr().err

    assert f"--model {bert} is no classifier (BertForMaskedLM); finetune/run.py trains one from it" in says(bert)
    assert "in.tsv: no column text_b in its first line" in says(pairs)
    assert f"--output {tmp_path} is a folder" in says(single, tmp_path)
    assert f"--output {file} is the input" in says(single, file)
    assert "out.xlsx; its name must end in .tsv, .txt, .csv, .jsonl, .json" in says(single, tmp_path / "out.xlsx")
    for name, change, message in (
        ("regression", {"problem_type": "regression"}, "is no classifier (regression)"),
        ("labels", {"id2label": {"0": "a", "1": "b"}}, "should have the shape [2"),
        ("task", {"finetuning": {"task": "ner"}}, "its task is 'ner'; this version has classification"),
    ):
        shutil.copytree(single / "model", tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | change))
        assert message in says(tmp_path / name)
