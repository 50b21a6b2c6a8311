"""Byte-level BPE against the plain ``tokenizers`` pipeline and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, processors

from preprocess.tokenizer import LANGUAGE_MODEL, TrainingSettings, load_tokenizer, span_cache, train
from preprocess.tokenizer.byte_bpe import ByteBPEEncoder
from preprocess.tokenizer.library import LibraryEncoder
from tests.preprocess.tokenizer.odd_texts import check_positions, differing, odd_lines, offsets, real_lines, rows


def gpt2_files(shared_data: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokens = (shared_data / "vocab" / "gpt2_vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    merges = (shared_data / "vocab" / "gpt2_merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    pairs = [(first, second) for first, second in (line.split(" ") for line in merges)]
    return {token: index for index, token in enumerate(tokens)}, pairs


@pytest.fixture(scope="module")
def gpt2(shared_data: Path):
    return load_tokenizer(shared_data / "vocab" / "gpt2_vocab.txt")


@pytest.fixture(scope="module")
def lines(shared_data: Path) -> list[str]:
    words = [token.replace("Ġ", " ") for token in list(gpt2_files(shared_data)[0])[10:5000:7]]
    return odd_lines(words) + real_lines(shared_data)


def test_equals_tokenizers(shared_data: Path, gpt2, lines: list[str]) -> None:
    vocab, merges = gpt2_files(shared_data)
    plain = Library(models.BPE(vocab, merges))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert isinstance(gpt2.encoder, ByteBPEEncoder)
    assert rows(gpt2, lines) == [encoding.ids for encoding in plain.encode_batch_fast(lines)]
    for line in lines[:900]:
        assert offsets(gpt2, line) == plain.encode(line).offsets


def test_equals_transformers(shared_data: Path, gpt2, lines: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    gpt2.save(tmp_path, LANGUAGE_MODEL)
    vocab, merges = gpt2_files(shared_data)
    theirs = transformers.GPT2Tokenizer(vocab=vocab, merges=merges, unk_token="<unk>")
    for oracle in (theirs, transformers.AutoTokenizer.from_pretrained(tmp_path)):
        assert differing(gpt2, oracle, lines[:1500]) == []


def test_white_space_between_texts_does_not_meet(gpt2) -> None:
    """Texts are encoded together, so each of these stands beside each."""
    pieces = [
        "",
        " ",
        "  ",
        "\n",
        "\n\n",
        " a",
        "  a",
        "\n a",
        "\na",
        "a",
        "a ",
        "a  ",
        "a\n",
        "\u3000a",
        "\xa0",
        "'s",
        "é😀",
    ]
    pieces += ["a b", "a \n b", "a b ", "\0 a", "a \1 b", "a  b   c ", "it is  \t so"]
    texts = [piece for first in pieces for second in pieces for piece in (first, second)]
    assert rows(gpt2, texts) == [rows(gpt2, [text])[0] for text in texts]
    check_positions(gpt2, texts)
    spaced = [text + " x" * 8 for text in texts if "\0" not in text and "\1" not in text]
    spaced += [" x" * 8 + text for text in texts if "\0" not in text and "\1" not in text]
    plain = gpt2.encoder.backend.encode_batch_fast(spaced)
    assert rows(gpt2, spaced) == [encoding.ids for encoding in plain]
    assert len(gpt2.encoder.words) > 0


def test_bounded_cache_changes_nothing(gpt2, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_cache, "MAX_CACHED_SPANS", 50)
    monkeypatch.setattr(span_cache, "MAX_CACHED_SPAN_LENGTH", 4)
    texts = [line.replace("\0", "").replace("\1", "") for line in lines[-1500:]]
    plain = gpt2.encoder.backend.encode_batch_fast(texts)
    for size in (100, 1500):
        for first in range(0, 1500, size):
            found = rows(gpt2, texts[first : first + size])
            assert found == [encoding.ids for encoding in plain[first : first + size]]


def test_positions(gpt2, lines: list[str]) -> None:
    check_positions(gpt2, lines[:600])
    ids, _, positions = gpt2.encode_with_positions(["Hello  world", " 中😀"])
    assert [gpt2.tokens[index] for index in ids] == ["Hello", "Ġ", "Ġworld", "Ġ", "ä¸Ń", "ðŁĺ", "Ģ"]
    assert positions.tolist() == [0, -1, 7, -1, 14, 15, -1]


def test_what_it_says_of_itself(gpt2) -> None:
    assert gpt2.type == "bpe"
    assert gpt2.keeps_whitespace
    assert gpt2.files == ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    assert gpt2.special_ids == {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 50264, "bos": 0, "eos": 2}
    assert gpt2.decode(gpt2.encode(["naïve 中文 \n text"])[0]) == "naïve 中文 \n text"
    flags = dict(zip(gpt2.tokens, gpt2.continuation.tolist(), strict=True))
    continuing = ["ing", "s", "'t", "Ã©", "Ģ", "200"]
    not_continuing = ["Ġthe", ".", ",", "Ċ", "Ġ", "ä¸Ń", "<mask>", "<s>", "ðŁĺ", "-", "ä", "é"]
    assert [flags[token] for token in continuing] == [True] * len(continuing)
    assert [flags[token] for token in not_continuing] == [False] * len(not_continuing)


def test_all_ways_to_the_same_files(shared_data: Path, tmp_path: Path, gpt2) -> None:
    vocab = shared_data / "vocab"
    assert load_tokenizer(vocab / "gpt2_merges.txt").digest == gpt2.digest
    gpt2.save(tmp_path / "a")
    assert load_tokenizer(tmp_path / "a" / "vocab.json").special_ids == gpt2.special_ids
    assert load_tokenizer(tmp_path / "a" / "tokenizer.json").digest == gpt2.digest
    (tmp_path / "a" / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path / "a").digest == gpt2.digest
    (tmp_path / "b").mkdir()
    for name in ("vocab.txt", "merges.txt"):
        (tmp_path / "b" / name).write_bytes((vocab / f"gpt2_{name}").read_bytes())
    assert load_tokenizer(tmp_path / "b").digest == gpt2.digest


def test_openai_files_have_one_special_token(shared_data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocab, merges = gpt2_files(shared_data)
    own = [token for token in vocab if token not in ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "madeupword0000")]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(own)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = load_tokenizer(tmp_path)
    end = own.index("<|endoftext|>")
    assert tokenizer.special_ids == dict.fromkeys(("unk", "cls", "sep", "bos", "eos"), end)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert differing(tokenizer, theirs, ["It's <|endoftext|> 12 Café\n\n  x"]) == []


def test_merges_that_no_training_gives_are_left_to_the_library(tmp_path: Path) -> None:
    """ "abc" is merged from "ab" and "c" only, and "bc" comes first: tiktoken would merge "a" and "bc" too."""
    tokenizer = train(["ab"] * 3, TrainingSettings(type="bpe", vocab_size=262))
    tokenizer.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    data["model"]["merges"] = [["b", "c"], ["a", "b"], ["ab", "c"]]
    for token in ("bc", "abc"):
        vocab[token] = len(vocab)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    found = load_tokenizer(tmp_path)
    assert isinstance(found.encoder, LibraryEncoder)
    assert [found.tokens[index] for index in found.encode(["abc"])[0]] == ["a", "bc"]


def test_trained_alike(shared_data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    lines = real_lines(shared_data, 60_000)
    tokenizer = train(lines, TrainingSettings(type="bpe", vocab_size=1500, special_tokens=["<sep>", "<ent>"]))
    assert tokenizer.vocab_size == 1500 and tokenizer.tokens[-2:] == ("<sep>", "<ent>")
    assert tokenizer.tokens[:5] == ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    assert isinstance(tokenizer.encoder, ByteBPEEncoder)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).digest == tokenizer.digest
    odd = odd_lines(["the ", "<sep>", "中国"], 100)[:1000]
    assert differing(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path), odd + lines[:300]) == []
    assert not np.isin(tokenizer.encode(["the <sep> <mask> </s>"])[0], np.flatnonzero(tokenizer.all_special)).any()


@pytest.mark.parametrize("prefixed", [True, False])
def test_offsets_trimmed_as_the_file_says(tmp_path: Path, gpt2, prefixed: bool) -> None:
    transformers = pytest.importorskip("transformers")
    gpt2.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    library = Library.from_file(str(path))
    library.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=prefixed
    )
    library.save(str(path))
    trimmed = load_tokenizer(tmp_path)
    assert offsets(trimmed, "a  the") == [(0, 1), (2, 2), (3, 6)]
    trimmed.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").digest == trimmed.digest
    texts = ["  Hello  world , \n 中文 ", " one", " "]
    for text in texts:
        assert offsets(trimmed, text) == library.encode(text, add_special_tokens=False).offsets
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert differing(trimmed, theirs, texts) == []


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("#version: 0.2\na b c\n", "is no list of merges: line 2 is 'a b c', not two tokens"),
        ("a q\n", r"do not belong together: .*'aq' is not in the vocabulary"),
        (b"\xff\n", "is no list of merges: byte 0 is not UTF-8"),
    ],
)
def test_merges_that_do_not_fit(tmp_path: Path, merges, message: str) -> None:
    tokenizer = train(["ab"] * 3, TrainingSettings(type="bpe", vocab_size=262))
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").write_bytes(merges.encode() if isinstance(merges, str) else merges)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)
