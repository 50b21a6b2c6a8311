"""What a whole run stores, compared with other libraries on real text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from preprocess.cleaning.settings import CleaningSettings
from preprocess.manifest import read_manifest
from preprocess.shards import ShardArrays, ShardReader
from tests.preprocess.building.test_sources import run


def all_arrays(folder: Path) -> list[ShardArrays]:
    """Return the arrays of all shards, the held-out ones behind."""
    found = []
    for part in (folder, folder / "heldout"):
        if (part / "manifest.json").exists():
            found += [ShardReader(part / entry.file, entry).arrays() for entry in read_manifest(part).shards]
    return found


def test_word_starts_are_those_of_transformers_and_rjieba(shared_data: Path, tmp_path: Path) -> None:
    """A token starts a word if its first character does; characters by transformers, words by rjieba, a line each."""
    transformers = pytest.importorskip("transformers", reason="the reference is transformers")
    rjieba = pytest.importorskip("rjieba", reason="needs rjieba (the extra `zh`)")
    vocabulary = shared_data / "vocab" / "google_zh_vocab.txt"
    lines = (shared_data / "raw_zh_clue_news" / "doc_per_line.txt").read_text(encoding="utf-8").split("\n")[:150]
    lines = [line.strip() for line in lines if line.strip()]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(
        tmp_path / "out",
        vocabulary,
        [str(tmp_path / "a.txt")],
        layout=("document_per_line",),
        cleaning=CleaningSettings(split_sentences=False),
        word_segmenter="rjieba",
        shard_bytes=40_000,
        workers=2,
    )
    reference = transformers.BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True)
    expected_ids, expected_starts = [], []
    for line in lines:
        encoding = reference(line, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = {start for _, start, _ in rjieba.tokenize(line)}
        pieces = reference.convert_ids_to_tokens(encoding["input_ids"])
        expected_ids += encoding["input_ids"]
        expected_starts += [
            begin in starts and not piece.startswith("##")
            for piece, (begin, _) in zip(pieces, encoding["offset_mapping"], strict=True)
        ]
    ids, stored = [], []
    for arrays in all_arrays(tmp_path / "out"):
        ids += arrays.tokens.tolist()
        assert arrays.word_starts is not None
        stored += arrays.word_starts.tolist()
    assert len(all_arrays(tmp_path / "out")) > 2
    assert ids == expected_ids
    different = [index for index, pair in enumerate(zip(stored, expected_starts, strict=True)) if pair[0] != pair[1]]
    assert different == []
    assert 0.3 < sum(stored) / len(stored) < 0.9


def byte_level_tokenizer(folder: Path, texts: list[str]) -> Path:
    """Train byte-level BPE with the library and save its tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


TEXTS = [
    "One sentence. Two  of them!   And a third?\n\n  Indented line\twith a tab.",
    "中文句子。第二句！\u3000第三句？ mixed English text. ",
    "Emoji 🙂 and e\u0301 and \u00a0no-break, “quoted.” He said: 'Yes.' U.S. prices rose 3.5%.",
    "x",
    "<|endoftext|> is text here.   ",
    "\u2028odd\x85line\x1cends\u200b.",
]


@pytest.mark.parametrize("split_sentences", [True, False])
def test_byte_level_bpe_decodes_to_the_text(tmp_path: Path, split_sentences: bool) -> None:
    """White space between sentences stays, and sentences join to what the whole text gives."""
    import tokenizers

    texts = TEXTS * 20
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    folder = byte_level_tokenizer(tmp_path / "tokenizer", texts)
    run(
        tmp_path / "out",
        folder,
        [str(tmp_path / "a.jsonl")],
        cleaning=CleaningSettings(split_sentences=split_sentences),
        shard_bytes=3000,
    )
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    decoded = []
    num_sentences = 0
    for arrays in all_arrays(tmp_path / "out"):
        num_sentences += len(arrays.sentence_offsets) - 1
        for start, stop in itertools.pairwise(arrays.document_offsets.tolist()):
            decoded.append(reference.decode(arrays.tokens[start:stop].tolist(), skip_special_tokens=False))
    assert decoded == [text.strip() for text in texts]
    assert (num_sentences > 2 * len(texts)) == split_sentences


def test_prose_of_a_book_decodes(shared_data: Path, tmp_path: Path) -> None:
    """Lines of a paragraph are joined by a space; nothing else of a book is lost."""
    import tokenizers

    book = shared_data / "sample" / "en_northanger_abbey.txt"
    text = book.read_text(encoding="utf-8-sig")
    folder = byte_level_tokenizer(tmp_path / "tokenizer", [text[:100_000]])
    run(tmp_path / "out", folder, [str(book)], layout=("document_per_file",), shard_bytes=1 << 24)
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    [arrays] = all_arrays(tmp_path / "out")
    assert len(arrays.document_offsets) == 2
    assert reference.decode(arrays.tokens.tolist()).split() == text.split()
