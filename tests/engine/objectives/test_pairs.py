"""Sentence pairs against the documents they are made of, and what may not tell right pairs from wrong ones."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest

from engine.config.masking import MaskingConfig
from engine.data.batch import PackedBatch
from engine.data.rows import Piece, PieceSentences, Row, RowReader, Sentences, TokenRange
from engine.objectives.base import Vocabulary
from engine.objectives.other_text import CANDIDATES, Wanted, find_other_text
from engine.objectives.pairs import PairedMaskedLM
from tests.engine.data.conftest import SentenceShards, write_sentence_shards

PAD, UNK, CLS, SEP, MASK = range(5)
IDS = {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK}
SIZE = 1 << 19
VOCABULARY = Vocabulary(SIZE, IDS, np.arange(SIZE) < 5, np.zeros(SIZE, np.bool_))
PAIRS = ("nsp", "sop")
KEEP = MaskingConfig(mask_share=0.0, random_share=0.0)  # targets stay as they are, so that batches can be read


class Found(NamedTuple):
    """A sequence of a batch; ``wrong`` is None where it is no pair."""

    a: list[int]
    b: list[int]
    wrong: bool | None


def objective_of(pair: str, config: MaskingConfig = KEEP, seed: int = 3, short: float = 0.1) -> PairedMaskedLM:
    return PairedMaskedLM(pair, config, VOCABULARY, seed, short)


def sequences_of(batch: PackedBatch, pair: str) -> list[Found]:
    """A batch read back: [CLS] A [SEP] B [SEP] with segments 0 and 1."""
    labels = dict(zip(*(t.tolist() for t in (batch.targets[pair].index, batch.targets[pair].labels)), strict=True))
    assert batch.counts[pair] == len(labels)
    found = []
    cu_seqlens = batch.layout.cu_seqlens.tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
        tokens, segments = batch.tokens[begin:end].tolist(), batch.segments[begin:end].tolist()
        assert tokens[0] == CLS and tokens[-1] == SEP
        middle = tokens.index(SEP)
        assert segments == [0] * (middle + 1) + [1] * (len(tokens) - middle - 1)
        assert all(token >= 5 for token in tokens[1:middle] + tokens[middle + 1 : -1])
        a, b = tokens[1:middle], tokens[middle + 1 : -1]
        assert bool(b) == (number in labels)
        found.append(Found(a, b, bool(labels[number]) if number in labels else None))
    return found


class Corpus:
    """Where each token stands."""

    def __init__(self, shards: SentenceShards) -> None:
        self.shards = shards
        self.document = {t: n for n, document in enumerate(shards.documents) for s in document for t in s}
        self.begins = {s[0] for document in shards.documents for s in document}
        self.ends = {s[-1] for document in shards.documents for s in document}
        self.document_begins = {document[0][0] for document in shards.documents}
        self.document_ends = {document[-1][-1] for document in shards.documents}

    def reader(self, pair: str, length: int = 64, short: float = 0.1) -> RowReader:
        return RowReader(self.shards.manifest, length, objective_of(pair, short=short).sequence_layout, 3, ())

    def contiguous(self, tokens: list[int]) -> bool:
        """Whether tokens follow each other in one document."""
        return tokens == list(range(tokens[0], tokens[0] + len(tokens))) and (
            self.document[tokens[0]] == self.document[tokens[-1]]
        )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Documents from one token to long ones, in three shards; some sentences are longer than a row."""
    rng = np.random.default_rng(0)

    def document() -> list[int]:
        sizes = rng.geometric(0.08, int(rng.geometric(0.06)))
        return [*sizes.tolist(), *([90] if rng.random() < 0.1 else [])]

    shards = [[document() for _ in range(60)] for _ in range(3)]
    shards[1][7:9] = [[1], [2]]
    return Corpus(write_sentence_shards(tmp_path_factory.mktemp("pairs") / "shards", shards))


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Many documents of sentences of one kind: nothing in them tells their order."""
    rng = np.random.default_rng(1)
    shard = [np.minimum(rng.geometric(0.06, int(rng.integers(2, 60))), 50).tolist() for _ in range(800)]
    return Corpus(write_sentence_shards(tmp_path_factory.mktemp("prose") / "shards", [shard]))


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("pair", PAIRS)
def test_right_pairs_are_neighbours_and_wrong_ones_are_not(pair: str, epoch: int, corpus: Corpus) -> None:
    rows, objective = corpus.reader(pair), objective_of(pair)
    windows = {}
    seen: list[int] = []
    for row in rows.in_order(range(epoch * rows.num_rows, (epoch + 1) * rows.num_rows)):
        windows.update({int(piece.tokens[0]): piece.tokens.tolist() for piece in row.pieces})
        batch = objective.collate([row])
        assert batch.num_tokens <= 64
        for a, b, wrong in sequences_of(batch, pair):
            if wrong is None:
                assert windows[a[0]] == a and len(a) == 1
                seen += a
            elif not wrong:
                assert windows[a[0]] == a + b
                seen += a + b
            elif pair == "sop":
                assert windows[b[0]] == b + a
                seen += a + b
            else:
                window = windows[a[0]]
                assert window[: len(a)] == a and corpus.contiguous(b)
                assert corpus.document[b[0]] != corpus.document[a[0]]
                assert len(b) <= len(window) - len(a)
    if pair == "sop":
        assert sorted(seen) == sorted(corpus.document)  # no token is lost


@pytest.mark.parametrize("pair", PAIRS)
def test_windows_are_split_where_a_sentence_begins_if_one_does(pair: str, corpus: Corpus) -> None:
    rows, objective = corpus.reader(pair), objective_of(pair)
    splits: dict[int, set[int]] = {}
    inner: dict[int, list[int]] = {}
    for row in rows.in_order(range(6 * rows.num_rows)):
        inner.update({int(p.tokens[0]): p.sentences.starts.tolist() for p in row.pieces})
        for a, b, wrong in sequences_of(objective.collate([row]), pair):
            if wrong is False:
                splits.setdefault(a[0], set()).add(len(a))
                if not inner[a[0]]:
                    assert len(a + b) // 4 <= len(a) <= len(a + b) - len(a + b) // 4
            elif wrong and pair == "sop":
                splits.setdefault(b[0], set()).add(len(b))
    for window, found in splits.items():
        assert not inner[window] or found <= set(inner[window])
    many = [window for window in splits if len(inner[window]) == 2]
    assert np.mean([len(splits[window]) for window in many]) > 1.6  # every sentence has its turn


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_are_balanced_and_drawn_anew_in_each_epoch(pair: str, corpus: Corpus) -> None:
    rows, objective = corpus.reader(pair), objective_of(pair)
    labels = []
    for epoch in range(6):
        of_row = {}
        for row in rows.in_order(range(epoch * rows.num_rows, (epoch + 1) * rows.num_rows)):
            of_row[row.index] = [found.wrong for found in sequences_of(objective.collate([row]), pair)]
        labels.append([label for index in sorted(of_row) for label in of_row[index] if label is not None])
    flat = np.array(labels)
    assert abs(flat.mean() - 0.5) < 4 * 0.5 / flat.size**0.5
    for one, other in itertools.pairwise(flat):
        assert abs((one == other).mean() - 0.5) < 5 * 0.5 / len(one) ** 0.5


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    "config", [MaskingConfig(), MaskingConfig(span="geometric", whole_word=True)], ids=["", "span"]
)
def test_batches_depend_on_seed_epoch_and_rows_alone(pair: str, config: MaskingConfig, corpus: Corpus) -> None:
    first, second = corpus.reader(pair), corpus.reader(pair)
    window = range(first.num_rows - 20, first.num_rows + 20)  # across an epoch's border
    objective = objective_of(pair, config)
    whole = objective.collate(first.in_order(window))
    for size in (1, 3, 8):
        parts = [range(at, min(at + size, window.stop)) for at in range(window.start, window.stop, size)]
        batches = {at: objective.collate(second.in_order(part)) for at, part in reversed(list(enumerate(parts)))}
        together = [batches[number] for number in range(len(parts))]
        assert [t for batch in together for t in batch.tokens.tolist()] == whole.tokens.tolist()
        assert [t for batch in together for t in batch.segments.tolist()] == whole.segments.tolist()
        for name in ("mlm", pair):
            labels = [t for batch in together for t in batch.targets[name].labels.tolist()]
            assert labels == whole.targets[name].labels.tolist()
            assert sum(batch.counts[name] for batch in together) == whole.counts[name]
    other = objective_of(pair, config, seed=4).collate(first.in_order(window))
    assert other.targets[pair].labels.tolist() != whole.targets[pair].labels.tolist()


def rank_area(values: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often the value of a wrong pair is above that of a right one."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    wrong = int(labels.sum())
    return float((ranks[labels].sum() - wrong * (wrong + 1) / 2) / (wrong * (len(labels) - wrong)))


@pytest.mark.parametrize("length", [32, 128])
@pytest.mark.parametrize("pair", PAIRS)
def test_neither_lengths_nor_borders_tell_a_wrong_pair(pair: str, length: int, prose: Corpus) -> None:
    rows, objective = prose.reader(pair, length), objective_of(pair)
    found = []
    for at in range(0, 6000, 60):
        batch = objective.collate(rows.in_order(range(at, at + 60)))
        found += [f for f in sequences_of(batch, pair) if f.wrong is not None]
    labels = np.array([f.wrong for f in found])
    features = {
        "A": [len(f.a) for f in found],
        "B": [len(f.b) for f in found],
        "both": [len(f.a) + len(f.b) for f in found],
        "difference": [len(f.a) - len(f.b) for f in found],
    }
    if pair == "nsp" or length > 100:  # sentences longer than half a window cannot be swapped whole
        features |= {
            "A begins a sentence": [f.a[0] in prose.begins for f in found],
            "A ends a sentence": [f.a[-1] in prose.ends for f in found],
            "B begins a sentence": [f.b[0] in prose.begins for f in found],
            "B ends a sentence": [f.b[-1] in prose.ends for f in found],
        }
    if pair == "nsp":  # a swapped pair can begin in the middle of a document and end at its begin
        features["B begins a document"] = [f.b[0] in prose.document_begins for f in found]
        features["A ends a document"] = [f.a[-1] in prose.document_ends for f in found]
    noise = (1 / 12 / labels.sum() + 1 / 12 / (~labels).sum()) ** 0.5
    assert len(found) > 5000
    for name, values in features.items():
        area = rank_area(np.array(values, float), labels)
        assert abs(area - 0.5) < 4 * noise + 0.003, (name, area)


def test_lengths_are_kept_where_the_other_document_allows(prose: Corpus) -> None:
    rows, objective = prose.reader("nsp", 128), objective_of("nsp")
    windows = {}
    short = []
    for at in range(0, 3000, 60):
        of_batch = rows.in_order(range(at, at + 60))
        windows.update({int(piece.tokens[0]): len(piece.tokens) for row in of_batch for piece in row.pieces})
        for a, b, wrong in sequences_of(objective.collate(of_batch), "nsp"):
            if wrong:
                short.append(windows[a[0]] - len(a) - len(b))
    assert np.mean(np.array(short) == 0) > 0.8 and np.mean(short) < 1.0


def text_of(documents: list[list[int]], first_document: int = 0, cut: int = 0) -> TokenRange:
    """A range over documents given by the lengths of their sentences, without its first ``cut`` tokens."""
    starts = np.cumsum([0, *itertools.chain(*documents)])
    bounds = np.cumsum([0, *map(sum, documents)])
    size = int(bounds[-1]) - cut
    inside = [values[values >= cut] - cut for values in (starts, bounds)]
    before = first_document + (1 if cut else 0)
    return TokenRange(np.arange(5, 5 + size), None, Sentences(inside[0], inside[1], before))


def found_in(text: TokenRange, wanted: Wanted) -> set[tuple[int, int]]:
    rng = np.random.default_rng(0)
    draws = rng.integers(0, 2**63, (300, CANDIDATES)).astype(np.uint64)
    return {find_other_text(text, wanted, row, np.zeros(100, np.bool_)) for row in draws}


def test_hand_worked_other_texts() -> None:
    text = text_of([[3, 4, 5], [2, 2, 6, 3], [4, 4]])  # documents 1, 2, 3 at 0, 12, 25; size 33
    assert found_in(text, Wanted(1, 6, True, True)) == {(16, 22)}
    assert found_in(text, Wanted(2, 4, True, True)) == {(3, 7), (29, 33)}
    assert found_in(text, Wanted(9, 5, True, True)) == {(7, 12)}
    assert found_in(text, Wanted(1, 5, True, False)) == {(14, 19), (16, 21)}  # (22, 27) would cross into document 3
    assert found_in(text, Wanted(2, 6, True, True)) == {(7, 12)}  # five tokens: none of six has both borders
    assert found_in(text, Wanted(1, 30, True, True)) == {(12, 25)}  # the longest there is
    middles = found_in(text, Wanted(3, 2, False, False))
    assert middles == {(s, s + 2) for s in (2, 4, 6, 8, 9, 13, 15, 17, 18, 19, 21)}  # no border of a sentence


def test_other_text_of_a_document_that_began_before() -> None:
    text = text_of([[3, 4, 5], [2, 2]], first_document=6, cut=5)  # document 7 from its token 5 on, document 8
    assert text.sentences.document_at(0) == 7 and text.sentences.document_at(7) == 8
    assert found_in(text, Wanted(7, 2, True, True)) == {(9, 11)}
    assert found_in(text, Wanted(8, 5, True, True)) == {(2, 7)}
    assert found_in(text, Wanted(8, 9, True, True)) == {(2, 7)}
    middle = text_of([[30], [2, 2]], first_document=6, cut=5)  # no sentence of document 7 begins here
    assert all(stop <= 25 and stop - start <= 4 for start, stop in found_in(middle, Wanted(8, 4, True, True)))


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_other_text_inside_one_sentence(begins: bool, ends: bool) -> None:
    """A group of rows may lie inside one document, and even inside one sentence."""
    text = TokenRange(np.arange(5, 45), None, Sentences(np.zeros(0, np.int64), np.zeros(0, np.int64), 3))
    found = found_in(text, Wanted(9, 7, begins, ends))
    assert all(start >= 0 and stop == start + 7 <= 40 for start, stop in found) and len(found) > 5
    sentences = Sentences(np.array([4, 14, 29], np.int64), np.zeros(0, np.int64), 3)
    found = found_in(TokenRange(np.arange(5, 45), None, sentences), Wanted(9, 10, True, ends))
    assert found == ({(4, 14)} if ends else {(14, 24), (29, 39)})


def test_windows_of_one_token_and_of_two() -> None:
    for seed in range(20):
        pieces = [
            Piece(np.array([9]), True, None, PieceSentences(np.zeros(0, np.int64), True, 1)),
            Piece(np.array([7, 8]), True, None, PieceSentences(np.zeros(0, np.int64), True, 2)),
        ]
        batch = objective_of("sop", seed=seed).collate([Row(tuple(pieces), 0, 0)])
        one, two = sequences_of(batch, "sop")
        assert one == Found([9], [], None)
        assert two == (Found([8], [7], True) if two.wrong else Found([7], [8], False))


def test_stored_words_go_with_their_parts() -> None:
    """A window without a sentence inside is split at a stored word, and its words are masked whole."""
    words = np.array([1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0], bool)
    masked = set()
    for epoch in range(400):
        piece = Piece(np.arange(10, 22), True, words, PieceSentences(np.zeros(0, np.int64), True, 1))
        objective = objective_of("sop", MaskingConfig(whole_word=True, mask_share=0.0, random_share=0.0, rate=0.05))
        batch = objective.collate([Row((piece,), epoch, 0)])
        ((a, b, _),) = sequences_of(batch, "sop")
        assert len(a) in (3, 6, 9) and len(b) == 12 - len(a)
        masked.add(tuple(batch.targets["mlm"].labels.tolist()))
    assert masked == {(10, 11, 12), (13, 14, 15), (16, 17, 18), (19, 20, 21)}


@pytest.mark.parametrize("pair", PAIRS)
def test_missing_special_token(pair: str) -> None:
    lacking = Vocabulary(SIZE, {"cls": CLS, "mask": MASK}, VOCABULARY.special, VOCABULARY.continuation)
    with pytest.raises(ValueError, match=rf"objective mlm,{pair} needs the special token\(s\) sep, and the vocabulary"):
        PairedMaskedLM(pair, KEEP, lacking, 1, 0.1)


def test_short_windows_make_short_pairs(prose: Corpus) -> None:
    sizes = []
    for short in (0.0, 1.0):
        rows = prose.reader("sop", 128, short)
        sizes.append(
            np.mean([len(piece.tokens) for row in rows.in_order(range(rows.num_rows)) for piece in row.pieces])
        )
    assert sizes[1] < 0.75 * sizes[0]
