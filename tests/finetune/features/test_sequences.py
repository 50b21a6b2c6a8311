"""Token sequences against transformers' own tokenizer."""

from __future__ import annotations

import numpy as np
import pytest

from engine.config.arch import ArchConfig
from finetune.features.sequences import SequenceBuilder, truncate_longest_first
from finetune.readers.columns import parse_columns
from finetune.readers.tables import open_table
from preprocess.tokenizer import Tokenizer, load_tokenizer
from tests.finetune import tiny


def arch(tokenizer: Tokenizer, **fields: object) -> ArchConfig:
    return ArchConfig(vocab_size=tokenizer.vocab_size, **{**tiny.BERT, "max_positions": 512, **fields})


def real_pairs(shared_data, count: int) -> tuple[list[str], list[str]]:
    path = str(shared_data / "pair_zh_afqmc" / "dev.tsv")
    rows = list(open_table(path, parse_columns("text_a,text_b,label"), ("label",)).records())[:count]
    first, second = [row.cells[0] for row in rows], [row.cells[1] for row in rows]
    first += [a * 3 for a in first[:50]] + [""] + first[:3]  # one text much longer than the other, and empty ones
    second += [*second[:50], "好", "", *[b * 9 for b in second[:2]]]
    return first, second


@pytest.mark.parametrize("max_length", [8, 15, 16, 31, 32, 128])
def test_bert_equals_transformers_on_real_pairs(shared_data, tmp_path, max_length):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(shared_data / "vocab" / "google_zh_vocab.txt")
    tokenizer.save(tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    builder = SequenceBuilder(tokenizer, arch(tokenizer), max_length)
    for texts in (real_pairs(shared_data, 300), real_pairs(shared_data, 300)[:1]):
        built, truncated = builder.build(*texts)
        expected = theirs(*texts, truncation="longest_first", max_length=max_length)
        full = theirs(*texts, truncation=False)["input_ids"]
        assert [sequence.tokens.tolist() for sequence in built] == expected["input_ids"]
        assert sum(truncated) == sum(len(ids) > max_length for ids in full)
        batch = builder.pack(built)
        assert batch.segments is not None
        assert batch.segments.tolist() == [segment for row in expected["token_type_ids"] for segment in row]
        assert batch.layout.lengths == tuple(map(len, expected["input_ids"]))


def test_lengths_by_hand():
    first, second = np.array([9, 2, 9, 9, 3, 5, 9]), np.array([9, 9, 2, 8, 3, 4, 0])
    kept = truncate_longest_first(first, second, 7)
    assert kept[0].tolist() == [3, 2, 5, 4, 3, 4, 7]
    assert kept[1].tolist() == [4, 5, 2, 3, 3, 3, 0]


def test_gpt2_ends_each_text_and_has_no_segments():
    tokenizer = load_tokenizer_of_words()
    eos = tokenizer.special_ids["eos"]
    builder = SequenceBuilder(tokenizer, arch(tokenizer, **{**tiny.GPT2, "max_positions": 64}), 8)
    apple, bread = (tokenizer.encode([word])[0].tolist() for word in ("apple", "bread"))
    (single, empty), _ = builder.build(["apple", ""])
    assert single.tokens.tolist() == [*apple, eos] and empty.tokens.tolist() == [eos]
    (pair,), _ = builder.build(["apple"], ["bread"])
    assert pair.tokens.tolist() == [*apple, eos, *bread, eos]
    assert builder.pack([pair]).segments is None
    (long,), truncated = builder.build(["apple " * 20])
    assert long.tokens.tolist() == [*(apple * 20)[:7], eos] and truncated == [True]


def test_bert_without_a_second_segment():
    tokenizer = load_tokenizer_of_words()
    builder = SequenceBuilder(tokenizer, arch(tokenizer, num_segments=1), 16)
    assert builder.pack(builder.build(["apple"], ["bread"])[0]).segments is None


def load_tokenizer_of_words() -> Tokenizer:
    from preprocess.tokenizer import train_wordpiece

    return train_wordpiece(tiny.WORDS * 3, vocab_size=150)


def test_parts_that_do_not_fit_are_listed_together():
    tokenizer = load_tokenizer_of_words()
    small = ArchConfig(vocab_size=10, **tiny.BERT)
    with pytest.raises(ValueError, match=r"(?s)tokenizer has .* vocab_size 10.*max_length is 65;.*at most .*64"):
        SequenceBuilder(tokenizer, small, 65)
    with pytest.raises(ValueError, match="max_length is 7; it must be at least 8"):
        SequenceBuilder(tokenizer, arch(tokenizer), 7)
    bare = Tokenizer([token for token in tokenizer.tokens if token != "[SEP]"], {"unk": "[UNK]", "cls": "[CLS]"},
                     tokenizer.pipeline)  # fmt: skip
    with pytest.raises(ValueError, match=r"lacks the special token\(s\) sep"):
        SequenceBuilder(bare, arch(bare), 16)
