"""The order of rows from several folders: exact shares, found at any position, of the seed alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engine.data.mixture import MIN_BLOCK, MixedRows, Mixture
from engine.data.plan import SequenceLayout
from engine.data.rows import SOURCE_SHIFT, RowReader

LAYOUT = SequenceLayout(2, 0)


@pytest.mark.parametrize("shares", [(7000, 3000), (3334, 3333, 3333), (1, 9999), (5000, 5000), (12, 12, 24, 9952)])
def test_every_block_holds_exactly_the_shares(shares):
    mixture = Mixture(shares, seed=3)
    block = next(size for size in range(MIN_BLOCK, 10_001) if all(size * share % 10_000 == 0 for share in shares))
    for start in (0, 5 * block):
        counts = Counter(mixture.sources(range(start, start + block)).tolist())
        assert counts == {number: block * share // 10_000 for number, share in enumerate(shares)}


def test_any_slice_equals_the_whole_and_its_counts():
    mixture = Mixture((7000, 3000), seed=5)
    whole = mixture.sources(range(5000))
    for start, stop in ((0, 5000), (999, 1001), (1000, 2000), (1234, 4321), (77, 77)):
        assert Mixture((7000, 3000), seed=5).sources(range(start, stop)).tolist() == whole[start:stop].tolist()
        before = np.bincount(whole[:start], minlength=2)
        assert mixture.rows_before(start).tolist() == before.tolist()
    far = 10**12 + 17
    assert mixture.rows_before(far).sum() == far
    assert abs(mixture.rows_before(far)[0] - 0.7 * far) < 1000


def test_seeds_differ_and_the_order_is_written_down():
    orders = [Mixture((7000, 3000), seed).sources(range(1000)).tolist() for seed in (1, 2)]
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])
    assert Mixture((7000, 3000), 1).sources(range(1000, 2000)).tolist() != orders[0]  # each block has its own
    # Written down once: a change here would change the data order of runs that are under way.
    assert orders[0][:20] == WRITTEN_DOWN


WRITTEN_DOWN = [0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0]


@pytest.fixture
def readers(tiny_shards, make_sentence_shards) -> list[RowReader]:
    """Two sources; tokens of the second are 1,000 and more."""
    other = make_sentence_shards([[[9, 4], [17], [30, 2]], [[5], [8, 8, 8]]])
    return [
        RowReader(manifest, 20, LAYOUT, 4, (), number)
        for number, manifest in enumerate((tiny_shards.manifest, other.manifest))
    ]


def keys(rows) -> list[tuple[int, int]]:
    return [(row.epoch, row.index) for row in rows]


def test_each_source_goes_through_its_own_epochs(readers):
    mixture = Mixture((2500, 7500), 4)
    mixed = MixedRows(readers, ["a", "b"], mixture)
    assert mixed.num_rows == readers[0].num_rows + readers[1].num_rows
    sources = mixture.sources(range(400)).tolist()
    expected = [iter(keys(readers[number].in_order(range(sources.count(number))))) for number in (0, 1)]
    assert keys(mixed.in_order(range(400))) == [next(expected[source]) for source in sources]
    parts = [row for start in range(0, 400, 7) for row in mixed.in_order(range(start, min(start + 7, 400)))]
    assert keys(parts) == keys(mixed.in_order(range(400)))


def test_no_two_rows_of_a_mixture_share_their_draws(readers):
    rows = MixedRows(readers, ["a", "b"], Mixture((5000, 5000), 4)).in_order(range(readers[0].num_rows))
    assert len(set(keys(rows))) == len(rows)
    assert {row.index >> SOURCE_SHIFT for row in rows} == {0, 1}


def test_the_first_source_of_a_mixture_is_ordered_as_alone(tiny_shards, readers):
    alone = RowReader(tiny_shards.manifest, 20, LAYOUT, 4, ())
    assert keys(readers[0].in_order(range(30))) == keys(alone.in_order(range(30)))


def test_a_source_is_ordered_by_its_number(tiny_shards):
    orders = [
        [row.index % (1 << SOURCE_SHIFT) for row in reader.in_order(range(reader.num_rows))]
        for reader in (RowReader(tiny_shards.manifest, 20, LAYOUT, 4, (), number) for number in (0, 1, 2))
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_rows_are_named_by_source_and_number(readers):
    mixture = Mixture((5000, 5000), 4)
    mixed = MixedRows(readers, ["news", "wiki"], mixture)
    first = mixture.sources(range(1)).tolist()[0]
    row = readers[first].in_order(range(1))[0].index % (1 << SOURCE_SHIFT)
    assert mixed.describe(range(1)) == f"{('news', 'wiki')[first]}: {row} of epoch 0"
    assert all(f"{name}: " in mixed.describe(range(40)) for name in ("news", "wiki"))


def test_stored_rows_come_source_after_source(readers):
    mixed = MixedRows(readers, ["a", "b"], Mixture((5000, 5000), 4))
    found = keys(mixed.row(index) for index in range(mixed.num_rows))
    assert found == keys(reader.row(index) for reader in readers for index in range(reader.num_rows))
