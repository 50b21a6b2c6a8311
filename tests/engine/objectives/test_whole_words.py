"""Whole words from text to masks: what rjieba calls a word is masked together or not at all."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from engine.config.masking import MaskingConfig
from engine.data.rows import RowReader
from engine.objectives.mlm import MaskedLM
from engine.train.resolve import vocabulary_of
from preprocess.manifest import read_manifest
from preprocess.tokenizer import load_tokenizer
from tests import commands

SEQ_LENGTH = 512


@pytest.fixture(scope="module")
def poems(repository: Path) -> Path:
    """Chinese poems, one line a sentence."""
    return repository / "examples" / "corpus" / "zh_poems.txt"


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, poems: Path) -> Path:
    """Shards of the poems with the words of rjieba."""
    pytest.importorskip("rjieba", reason="needs the word segmenter rjieba")
    folder = tmp_path_factory.mktemp("segmented") / "shards"
    options = ["--tokenizer", tokenizer, "--output", folder, "--heldout", "0", "--shard_bytes", "40000"]
    done = commands.preprocess("shards", "--corpus", poems, *options, "--word_segmenter", "rjieba")
    assert done.returncode == 0, done.stdout
    return folder


def words_of(poem: str) -> list[int]:
    """Characters of each word of a poem, line after line; white space is no word."""
    import rjieba

    words = [word for line in poem.split("\n") for word in rjieba.cut(line)]
    return [len(word) for word in words if word.strip()]


def test_words_of_several_characters_are_masked_together(segmented: Path, poems: Path) -> None:
    tokenizer = load_tokenizer(segmented / "tokenizer")
    special = tokenizer.all_special
    expected = {}
    for poem in poems.read_text(encoding="utf-8").split("\n\n"):
        tokens = tuple(tokenizer.encode(poem.strip().split("\n"))[0].tolist())
        lengths = words_of(poem.strip())
        if tokens and len(tokens) == sum(lengths):  # a token for each character
            borders = [0, *accumulate(lengths)]
            expected[tokens] = np.searchsorted(borders, np.arange(len(tokens)), side="right")  # word of each token
    objective = MaskedLM(MaskingConfig(whole_word=True, rate=0.3), vocabulary_of(tokenizer), 5)
    reader = RowReader(read_manifest(segmented), SEQ_LENGTH, objective.sequence_layout, 5, ())
    compared = together = 0
    for row in reader.in_order(range(reader.num_rows)):
        batch = objective.collate([row])
        masked = np.zeros(batch.num_tokens, bool)
        masked[batch.targets["mlm"].index.numpy()] = True
        place = 0
        for piece in row.pieces:
            own = masked[place + 1 : place + 1 + len(piece.tokens)]
            place += len(piece.tokens) + 2
            words = expected.get(tuple(piece.tokens.tolist()))
            if words is None:
                continue
            # A word with an unknown character is cut there: unknown tokens are never targets.
            run = words * len(words) + np.cumsum(special[piece.tokens])
            for number in np.unique(run[~special[piece.tokens]]):
                inside = own[(run == number) & ~special[piece.tokens]]
                assert inside.all() or not inside.any()
                together += len(inside) > 1 and bool(inside.all())
            compared += 1
    assert compared > 300 and together > 500
