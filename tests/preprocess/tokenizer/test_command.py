"""The tokenizer command's function."""

from __future__ import annotations

import gzip
import io
import tempfile
from pathlib import Path

import pytest

from preprocess.corpus.corpus import CorpusSettings
from preprocess.corpus.inputs import open_corpus
from preprocess.tokenizer import TrainingSettings, load_tokenizer, train
from preprocess.tokenizer.command import TrainingTexts, train_tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusSettings:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"word{index % 7} of line {index}\n\n" for index in range(300)))
    (folder / "b.jsonl").write_text('{"text": "json words of a document"}\n' * 50)
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"packed words of a line\n" * 50))
    return CorpusSettings(arguments=[str(folder)])


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "char", "word"])
def test_trains_and_saves(corpus: CorpusSettings, tmp_path: Path, kind: str) -> None:
    said: list[str] = []
    size = {"bpe": 280, "unigram": 40}.get(kind, 60)
    output = tmp_path / "new" / "tokenizer"
    tokenizer = train_tokenizer(corpus, TrainingSettings(type=kind, vocab_size=size), output, say=said.append)
    assert load_tokenizer(output).digest == tokenizer.digest
    assert [path.name for path in output.parent.iterdir()] == ["tokenizer"]
    assert f"{tokenizer.vocab_size:,} tokens" in "\n".join(said)
    expected = [f"word{index % 7} of line {index}" for index in range(300)]
    expected += ["json words of a document"] * 50 + ["packed words of a line"] * 50
    assert tokenizer.digest == train(expected, TrainingSettings(type=kind, vocab_size=size)).digest


def test_sample_of_a_corpus(corpus: CorpusSettings, tmp_path: Path) -> None:
    opened, _ = open_corpus(corpus, tmp_path / "spool")
    read: list[int] = []
    texts = TrainingTexts(opened, opened.num_bytes // 4, read.append)
    chosen = list(texts)
    assert 0.15 < sum(map(len, chosen)) / opened.num_bytes < 0.35
    assert chosen == list(texts)
    assert {"json", "packed"} <= {text.split()[0] for text in chosen}
    assert sum(read) == 2 * opened.num_bytes


def test_too_large_a_vocabulary_is_told(corpus: CorpusSettings, tmp_path: Path) -> None:
    said: list[str] = []
    train_tokenizer(corpus, TrainingSettings(vocab_size=5000), tmp_path / "t", say=said.append)
    assert "note: 5,000 tokens were asked for, and the corpus gives" in said[-1]


def test_all_problems_are_told_together(corpus: CorpusSettings, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "file").write_text("")
    with pytest.raises(ValueError, match=r"(?s)vocab_size is 3.*--output .* is not an empty folder; give a new folder"):
        train_tokenizer(corpus, TrainingSettings(vocab_size=3), tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").write_text("")
    with pytest.raises(ValueError, match=r"--output .* holds a tokenizer already"):
        train_tokenizer(corpus, TrainingSettings(), tmp_path / "t")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--output .*/file/t: .*/file is a file; give a new folder elsewhere"):
        train_tokenizer(corpus, TrainingSettings(), tmp_path / "file" / "t")
    with pytest.raises(ValueError, match="workers is 0: at least 1 is needed"):
        train_tokenizer(corpus, TrainingSettings(), tmp_path / "new", num_workers=0)


def test_an_output_that_may_not_be_written(
    corpus: CorpusSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match=r"--output .*new/t: .* may not be written to; give a new folder elsewhere"):
        train_tokenizer(corpus, TrainingSettings(), tmp_path / "new" / "t")


def test_nothing_is_written_beside_the_output_before_it_is_saved(corpus: CorpusSettings, tmp_path: Path) -> None:
    """What stands there while the corpus is read would stay after a ``kill -9``."""
    seen = []

    def say(line: str) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))

    train_tokenizer(corpus, TrainingSettings(vocab_size=60), tmp_path / "new" / "t", say=say)
    assert seen[0] == ["corpus"]
    assert seen[-1] == ["corpus", "new"]


def test_standard_input_is_kept_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "some words of a line\n" * 50
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    spooled = []

    def say(line: str) -> None:
        spooled.extend(path.read_text() for path in tmp_path.glob("temporary/tokenizer-*/stdin"))

    settings = TrainingSettings(vocab_size=60)
    piped = train_tokenizer(CorpusSettings(arguments=["piped=-"]), settings, tmp_path / "t", say=say)
    assert spooled[0] == text
    assert not list((tmp_path / "temporary").iterdir())
    assert piped.digest == train(text.splitlines(), settings).digest
