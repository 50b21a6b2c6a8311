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


def test_shards_without_documents(tiny_shards):
    tiny_shards.manifest.shards.clear()
    with pytest.raises(ValueError, match="holds no documents to train on"):
        reader(tiny_shards)


def test_seeds_are_the_same_everywhere():
    assert stable_seed(3, 1, 2, 4) == 4_107_711_230_241_847_843
    assert len({stable_seed(*parts) for parts in ((1, 2), (2, 1), (12,), (1, 2, 0))}) == 4
    assert all(0 <= stable_seed(number) < 2**63 for number in range(100))
