"""Rows from real shards against documents cut by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engine.data.draws import stable_seed
from engine.data.order import EpochOrder
from engine.data.plan import SequenceLayout
from engine.data.rows import Row, RowReader, TokenReader

MLM, LM = SequenceLayout(2, 0), SequenceLayout(1, 1)


def reader(shards, length: int = 20, layout: SequenceLayout = MLM, seed: int = 4, folders=()) -> RowReader:
    return RowReader(shards.manifest, length, layout, seed, tuple(folders))


def content(rows: list[Row]) -> list[tuple]:
    return [(row.epoch, row.index, [(piece.tokens.tolist(), piece.final) for piece in row.pieces]) for row in rows]


def cut(documents: list[list[int]], length: int, layout: SequenceLayout) -> Counter:
    """Pieces as a loop over the documents makes them."""
    room = length - layout.per_sequence
    pieces = []
    for document in documents:
        for begin in range(0, len(document), room):
            piece = document[begin : begin + room]
            last = begin + room >= len(document)
            pieces.append((tuple(piece), last and len(piece) + layout.per_document <= room))
    return Counter(pieces)


@pytest.mark.parametrize("layout", [MLM, LM], ids=["mlm", "lm"])
@pytest.mark.parametrize("length", [8, 20, 64, 200])
def test_an_epoch_holds_every_piece_of_every_document_once(length, layout, tiny_shards):
    rows = reader(tiny_shards, length, layout)
    for epoch in (0, 3):
        found = rows.in_order(range(epoch * rows.num_rows, (epoch + 1) * rows.num_rows))
        assert sorted(row.index for row in found) == list(range(rows.num_rows))
        assert {row.epoch for row in found} == {epoch}
        pieces = [(tuple(piece.tokens.tolist()), piece.final) for row in found for piece in row.pieces]
        assert Counter(pieces) == cut(tiny_shards.documents, length, layout)
        tokens = sorted(token for piece, _ in pieces for token in piece)
        assert tokens == sorted(token for document in tiny_shards.documents for token in document)
        for row in found:
            used = [len(piece.tokens) + layout.per_sequence + layout.per_document * piece.final for piece in row.pieces]
            assert sum(used) <= length


def test_rows_in_the_plans_order_and_in_an_epochs_order(tiny_shards):
    rows = reader(tiny_shards)
    total = rows.num_rows
    stored = [rows.row(index) for index in range(total)]
    assert [(row.epoch, row.index) for row in stored] == [(0, index) for index in range(total)]
    order = EpochOrder(rows.plan.group_offsets, seed=4, epoch=2).rows(np.arange(total))
    found = rows.in_order(range(2 * total, 3 * total))
    assert [row.index for row in found] == order.tolist() != list(range(total))
    for row in found:
        assert content([row])[0][2] == content([stored[row.index]])[0][2]


def test_positions_across_the_border_of_epochs(tiny_shards):
    rows = reader(tiny_shards)
    total = rows.num_rows
    whole = content(rows.in_order(range(4 * total)))
    assert len(whole) == 4 * total
    for start, stop in ((total - 2, total + 3), (0, 1), (2 * total, 2 * total + 1), (total - 1, 3 * total + 1)):
        assert content(reader(tiny_shards).in_order(range(start, stop))) == whole[start:stop]
    backwards = [content(rows.in_order(range(p, p + 1)))[0] for p in reversed(range(4 * total))]
    assert backwards[::-1] == whole


def test_places_are_those_of_the_rows_and_read_nothing(tiny_shards):
    reader = RowReader(tiny_shards.manifest, 20, SequenceLayout(2, 0), 4, ())
    positions = range(reader.num_rows - 3, 2 * reader.num_rows + 2)  # over three epochs
    expected = [(row.epoch, row.index) for row in reader.in_order(positions)]
    assert len({epoch for epoch, _ in expected}) == 3
    other = RowReader(tiny_shards.manifest, 20, SequenceLayout(2, 0), 4, ())
    assert other.places(positions) == expected
    assert not other._groups and not other._orders  # what the thread that reads rows works with


def test_two_readers_agree_and_seeds_do_not(tiny_shards, tmp_path):
    window = range(3, 60)
    expected = content(reader(tiny_shards).in_order(window))
    folders = [tmp_path / "plans"]
    assert content(reader(tiny_shards, folders=folders).in_order(window)) == expected  # plans it
    assert content(reader(tiny_shards, folders=folders).in_order(window)) == expected  # maps that plan
    assert content(reader(tiny_shards, seed=5).in_order(window)) != expected


def test_many_groups_are_read_through_a_small_cache(tiny_shards, monkeypatch):
    monkeypatch.setattr("engine.data.plan.GROUP_PIECES", 2)
    monkeypatch.setattr("engine.data.rows._CACHED_GROUPS", 1)
    monkeypatch.setattr("engine.data.rows._OPEN_SHARDS", 1)
    rows = reader(tiny_shards)
    assert len(rows.plan.group_offsets) > 10
    found = rows.in_order(range(rows.num_rows))
    pieces = Counter((tuple(piece.tokens.tolist()), piece.final) for row in found for piece in row.pieces)
    assert pieces == cut(tiny_shards.documents, 20, MLM)


def test_tokens_of_all_shards_are_one_array(tiny_shards):
    tokens = TokenReader(tiny_shards.manifest)
    whole = [token for document in tiny_shards.documents for token in document]
    assert tokens.document_lengths().tolist() == [len(document) for document in tiny_shards.documents]
    for start, stop in ((0, len(whole)), (114, 116), (115, 122), (122, 123), (0, 1), (100, 200), (len(whole) - 1,) * 2):
        if start < stop:
            assert tokens.read(start, stop).tokens.tolist() == whole[start:stop]
            assert tokens.read(start, stop).word_starts is None


@pytest.mark.parametrize("length", [8, 20, 200])
def test_stored_word_starts_go_with_their_tokens(length, tiny_shards, rewrite_shards):
    rng = np.random.default_rng(0)
    flags = [rng.integers(0, 2, entry.num_tokens).astype(bool) for entry in tiny_shards.manifest.shards]
    manifest = rewrite_shards(lambda number, arrays: arrays._replace(word_starts=flags[number]))
    whole = np.concatenate(flags)  # token i of the corpus has the id i + 10
    found = TokenReader(manifest).read(113, 150)
    assert found.word_starts.tolist() == whole[113:150].tolist()
    rows = RowReader(manifest, length, MLM, 4, ())
    pieces = [piece for row in rows.in_order(range(rows.num_rows)) for piece in row.pieces]
    assert sum(len(piece.tokens) for piece in pieces) == len(whole)
    for piece in pieces:
        assert piece.word_starts.tolist() == whole[piece.tokens - 10].tolist()


def test_word_starts_in_some_shards_alone(tiny_shards, rewrite_shards):
    flags = np.ones(7, bool)
    manifest = rewrite_shards(lambda number, arrays: arrays._replace(word_starts=flags) if number == 1 else arrays)
    with pytest.raises(ValueError, match="some shards store word starts and some do not; make the shards again"):
        TokenReader(manifest).read(0, 130)


@pytest.mark.parametrize("planned", [False, True])
def test_flipped_bit_is_found_at_the_first_read_and_named(planned, tiny_shards, tmp_path):
    folders = [tmp_path / "plans"]
    if planned:
        reader(tiny_shards, folders=folders)
    shard = tiny_shards.manifest.folder / "shard-00002.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00002\.h5"):
        rows = reader(tiny_shards, folders=folders)
        rows.in_order(range(rows.num_rows))


PAIRS = SequenceLayout(3, 0, pairs=True, short_seq_prob=0.1)
NEXT = SequenceLayout(3, 0, pairs=True, short_seq_prob=0.1, other_text=True)
UNEVEN = [[[3, 9, 1], [7], [2, 2, 8, 4, 30, 1]], [[12]], [[5, 5], [1, 1, 1, 1, 40, 2, 3], [9]]]


def test_sentences_of_ranges(make_sentence_shards):
    shards = make_sentence_shards(UNEVEN)
    flat = [sentence for document in shards.documents for sentence in document]
    sentence_places = {sentence[0] - 10 for sentence in flat} | {flat[-1][-1] - 9}
    document_places = {document[0][0] - 10 for document in shards.documents} | {flat[-1][-1] - 9}
    total = max(sentence_places)
    tokens = TokenReader(shards.manifest, with_sentences=True)
    for start in range(total):
        for stop in range(start + 1, total + 1):
            found = tokens.read(start, stop)
            expected = [place - start for place in sorted(sentence_places) if start <= place <= stop]
            assert found.sentences.starts.tolist() == expected
            expected = [place - start for place in sorted(document_places) if start <= place <= stop]
            assert found.sentences.documents.tolist() == expected
            number = sum(place <= start for place in document_places)
            assert found.sentences.document_at(0) == number
            assert found.sentences.document_at(stop - start - 1) == sum(place < stop for place in document_places)
    assert TokenReader(shards.manifest).read(0, 5).sentences is None


@pytest.mark.parametrize("length", [8, 20, 64])
def test_pieces_know_their_sentences_and_documents(length, make_sentence_shards):
    shards = make_sentence_shards(UNEVEN)
    document_of = {t: n for n, document in enumerate(shards.documents, 1) for s in document for t in s}
    begins = {sentence[0] for document in shards.documents for sentence in document}
    ends = {sentence[-1] for document in shards.documents for sentence in document}
    rows = RowReader(shards.manifest, length, PAIRS, 4, ())
    pieces = [piece for row in rows.in_order(range(rows.num_rows)) for piece in row.pieces]
    assert sorted(token for piece in pieces for token in piece.tokens.tolist()) == sorted(document_of)
    for piece in pieces:
        tokens = piece.tokens.tolist()
        assert piece.sentences.starts.tolist() == [n for n, token in enumerate(tokens) if n and token in begins]
        assert piece.sentences.ends_sentence == (tokens[-1] in ends)
        assert {document_of[token] for token in tokens} == {piece.sentences.document}


@pytest.mark.parametrize(("groups", "buffer"), [(2048, 32), (2, 3), (1, 1)])
def test_rows_come_with_text_of_other_documents(groups, buffer, make_sentence_shards, monkeypatch):
    monkeypatch.setattr("engine.data.plan.GROUP_PIECES", groups)
    monkeypatch.setattr("engine.data.order.BUFFER_GROUPS", buffer)
    shards = make_sentence_shards([*UNEVEN, [[20] * 40, [6, 6]]])
    document_of = {t: n for n, document in enumerate(shards.documents, 1) for s in document for t in s}

    def read(rows: RowReader) -> list[tuple]:
        total = rows.num_rows
        found = rows.in_order(range(total, 3 * total)) + [rows.row(index) for index in range(total)]
        return [(content([row]), row.other_text.tokens.tolist()) for row in found]

    rows = RowReader(shards.manifest, 32, NEXT, 4, ())
    for row in rows.in_order(range(2 * rows.num_rows)):
        others = {document_of[token] for token in row.other_text.tokens.tolist()}
        for piece in row.pieces:
            assert others - {piece.sentences.document}
    whole = read(rows)
    assert read(rows) == whole
    monkeypatch.setattr("engine.data.rows._CACHED_GROUPS", 1)  # what is in memory decides nothing
    backwards = RowReader(shards.manifest, 32, NEXT, 4, ())
    positions = range(3 * rows.num_rows - 1, rows.num_rows - 1, -1)
    found = [backwards.in_order(range(p, p + 1))[0] for p in positions]
    assert [(content([row]), row.other_text.tokens.tolist()) for row in found[::-1]] == whole[: 2 * rows.num_rows]
    if groups < 2048:
        assert len({tuple(tokens) for _, tokens in whole}) > 2


def test_text_of_others_is_not_read_where_it_is_not_wanted(make_sentence_shards):
    rows = RowReader(make_sentence_shards(UNEVEN).manifest, 20, PAIRS, 4, ())
    assert all(row.other_text is None for row in rows.in_order(range(rows.num_rows)))


def test_other_text_is_of_the_same_buffer_where_that_has_it(make_sentence_shards, monkeypatch):
    monkeypatch.setattr("engine.data.plan.GROUP_PIECES", 4)
    monkeypatch.setattr("engine.data.order.BUFFER_GROUPS", 4)
    shards = make_sentence_shards([[[5, 5]] * 400])
    rows = RowReader(shards.manifest, 13, NEXT, 4, ())
    near = rows._order(1)
    total = rows.num_rows
    buffer_of = {}
    for place, group in enumerate(near._groups.tolist()):
        for token in range(*rows.plan.group_tokens[group].tolist()):
            buffer_of[token + 10] = place // 4
    taken = set()
    for row in rows.in_order(range(total, 2 * total)):
        taken.add(int(row.other_text.tokens[0]))
        assert buffer_of[int(row.other_text.tokens[0])] == buffer_of[int(row.pieces[0].tokens[0])]
    assert len(taken) > 0.8 * len(rows.plan.group_tokens)  # every group has its turn


def test_one_document_has_no_other(make_sentence_shards):
    manifest = make_sentence_shards([[[5, 5, 8]]]).manifest
    assert RowReader(manifest, 12, PAIRS, 4, ()).num_rows
    with pytest.raises(ValueError, match=r"holds one document, and the objective nsp .* larger --heldout, or 0"):
        RowReader(manifest, 12, NEXT, 4, ())


def test_shards_without_documents(tiny_shards):
    tiny_shards.manifest.shards.clear()
    with pytest.raises(ValueError, match="holds no documents to train on"):
        reader(tiny_shards)


def test_seeds_are_the_same_everywhere():
    assert stable_seed(3, 1, 2, 4) == 4_107_711_230_241_847_843
    assert len({stable_seed(*parts) for parts in ((1, 2), (2, 1), (12,), (1, 2, 0))}) == 4
    assert all(0 <= stable_seed(number) < 2**63 for number in range(100))


def test_readers_share_the_bound_on_open_files(monkeypatch, tiny_shards):
    monkeypatch.setattr("engine.data.rows._LEAST_OPEN_SHARDS", 1)
    monkeypatch.setattr("engine.data.rows._OPEN_SHARDS", 4)
    for num_readers, most in ((1, 3), (2, 2), (4, 1), (99, 1)):
        reader = TokenReader(tiny_shards.manifest, num_readers=num_readers)
        assert reader.read(0, 287).tokens.tolist() == list(range(10, 297))
        assert len(reader._open) == most
