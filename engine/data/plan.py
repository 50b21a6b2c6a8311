"""The row plan: which pieces of which documents stand in which row.

A row is a budget of ``seq_length`` tokens filled with whole sequences. The plan is a pure function of the documents'
lengths, the row length and the objective's sequence layout: ranks, seeds and epochs do not enter, so it is computed
once and kept beside the shards. Documents longer than a row are cut into pieces; pieces are packed by best-fit
decreasing within groups of ``GROUP_PIECES`` pieces in stored order, which keeps a group's tokens contiguous on disk.
Pairs are cut by ``engine/data/windows.py``.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PLAN_VERSION = 1
GROUP_PIECES = 2048
DIGEST = "digest"

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class SequenceLayout:
    """Tokens that an objective adds to the text.

    Attributes:
        per_sequence: added to every sequence, such as 2 for [CLS] ... [SEP].
        per_document: added after a document's last token, such as 1 for an end-of-text token.
        pairs: sequences are windows of whole sentences, to be split into two parts.
        short_seq_prob: of pairs, share of the windows of random length.
        other_text: rows come with text of other documents.
    """

    per_sequence: int
    per_document: int
    pairs: bool = False
    short_seq_prob: float = 0.0
    other_text: bool = False


class Pieces(NamedTuple):
    """Pieces of documents in stored order: first token and length [P] int64, and whether the end token has room [P]."""

    start: Int64
    length: Int64
    final: NDArray[np.bool_]


@dataclass(frozen=True)
class RowPlan:
    """Rows of pieces, in groups. P pieces in row order, R rows, G groups.

    Attributes:
        piece_start: [P] int64, first token of the piece, counted over all shards.
        piece_length: [P] int32, tokens of the piece in the shards.
        piece_final: [P] bool, the piece ends its document and has room for the end token.
        row_offsets: [R + 1] int64, pieces of row r are row_offsets[r] to row_offsets[r + 1].
        group_offsets: [G + 1] int64, rows of group g are group_offsets[g] to group_offsets[g + 1].
        group_tokens: [G, 2] int64, first and last + 1 token of the group, counted over all shards.
    """

    piece_start: Int64
    piece_length: NDArray[np.int32]
    piece_final: NDArray[np.bool_]
    row_offsets: Int64
    group_offsets: Int64
    group_tokens: Int64

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return len(self.row_offsets) - 1

    def fill(self, seq_length: int, layout: SequenceLayout) -> float:
        """Share of the rows' budget that holds tokens, special tokens included."""
        used = self.piece_length.sum(dtype=np.int64) + layout.per_sequence * len(self.piece_length)
        used += layout.per_document * int(self.piece_final.sum())
        return float(used) / (self.num_rows * seq_length) if self.num_rows else 0.0


def build_row_plan(document_lengths: Int64, seq_length: int, layout: SequenceLayout) -> RowPlan:
    """Cut documents into pieces and pack the pieces into rows.

    Args:
        document_lengths: [D] tokens of each document in stored order, each at least 1.
        seq_length: tokens of a row.
        layout: tokens that the objective adds.

    Raises:
        ValueError: if a row has no room for text.
    """
    pieces = _cut(document_lengths, room_for_text(seq_length, layout), layout.per_document)
    return pack_pieces(pieces, seq_length, layout)


def room_for_text(seq_length: int, layout: SequenceLayout) -> int:
    """Tokens of text that one sequence of a row can hold; ValueError if there is no room."""
    room = seq_length - layout.per_sequence
    if room < (2 if layout.pairs else 1):
        raise ValueError(
            f"data.seq_length {seq_length} has no room for text beside {layout.per_sequence} special tokens"
        )
    return room


def pack_pieces(pieces: Pieces, seq_length: int, layout: SequenceLayout) -> RowPlan:
    """Pack pieces into rows, group by group."""
    start, length, final = pieces
    size = length + layout.per_sequence + layout.per_document * final
    order, row_sizes, group_rows = [], [], []
    for begin in range(0, len(size), GROUP_PIECES):
        bins, num_bins = _best_fit_decreasing(size[begin : begin + GROUP_PIECES], seq_length)
        order.append(begin + np.argsort(bins, kind="stable"))
        row_sizes.append(np.bincount(bins, minlength=num_bins))
        group_rows.append(num_bins)
    permutation = np.concatenate(order) if order else np.zeros(0, np.int64)
    first = np.arange(0, len(size), GROUP_PIECES)
    last = np.minimum(first + GROUP_PIECES, len(size)) - 1
    return RowPlan(
        piece_start=start[permutation],
        piece_length=length[permutation].astype(np.int32),
        piece_final=final[permutation],
        row_offsets=_offsets(np.concatenate(row_sizes) if row_sizes else np.zeros(0, np.int64)),
        group_offsets=_offsets(np.array(group_rows, np.int64)),
        group_tokens=np.stack([start[first], start[last] + length[last]], axis=1),
    )


def _offsets(sizes: NDArray[np.integer]) -> Int64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _cut(document_lengths: Int64, room: int, per_document: int) -> Pieces:
    """Cut every document into pieces of at most ``room`` tokens; the last one takes the end token where it fits."""
    pieces_of = -(-document_lengths // room)
    total = int(pieces_of.sum())
    last_piece = np.cumsum(pieces_of) - 1
    document_start = np.cumsum(document_lengths) - document_lengths
    number = np.arange(total) - np.repeat(last_piece + 1 - pieces_of, pieces_of)  # of the piece within its document
    start = np.repeat(document_start, pieces_of) + number * room
    length = np.full(total, room, np.int64)
    length[last_piece] = document_lengths - (pieces_of - 1) * room
    final = np.zeros(total, np.bool_)
    final[last_piece] = length[last_piece] + per_document <= room
    return Pieces(start, length, final)


def _best_fit_decreasing(sizes: Int64, capacity: int) -> tuple[Int64, int]:
    """Assign each size to the fullest bin that still takes it, largest sizes first; equal sizes go together.

    Returns:
        The bin of each size, and the number of bins.
    """
    order = np.argsort(-sizes, kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)
    bins = np.empty(len(sizes), np.int64)
    rooms: list[int] = []  # distinct free rooms, sorted
    bins_with: dict[int, Int64] = {}  # free room -> bins that have it
    num_bins = position = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[size])
        while left:
            at = bisect.bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms[at]
                candidates = bins_with[room]
                taken, kept = candidates[:left], candidates[left:]
                if len(kept):
                    bins_with[room] = kept
                else:
                    del bins_with[room], rooms[at]
            else:
                room = capacity
                per_bin = capacity // size  # open bins of equal pieces at once: the best fit for the next equal size
                needed = -(-left // per_bin)
                taken = np.arange(num_bins, num_bins + min(left, needed), dtype=np.int64)
                num_bins += len(taken)
            bins[order[position : position + len(taken)]] = taken
            position += len(taken)
            left -= len(taken)
            if room > size:
                if room - size in bins_with:
                    bins_with[room - size] = np.concatenate([bins_with[room - size], taken])
                else:
                    bins_with[room - size] = taken
                    bisect.insort(rooms, room - size)
    return bins, num_bins


def plan_digest(manifest_digest: str, seq_length: int, layout: SequenceLayout) -> str:
    """Name of the plan: sha256 over all that it depends on."""
    parts: list[int | float | str] = [PLAN_VERSION, GROUP_PIECES, manifest_digest, seq_length]
    parts += [layout.per_sequence, layout.per_document]
    if layout.pairs:
        parts += ["pairs", layout.short_seq_prob]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def cached_row_plan(
    folders: Sequence[Path],
    manifest_digest: str,
    num_tokens: int,
    build: Callable[[], RowPlan],
    seq_length: int,
    layout: SequenceLayout,
) -> RowPlan:
    """Map the plan from the first folder that holds it, else build it and keep it in the first writable one.

    Ranks need not agree who builds it: each may, and a rename decides.

    Args:
        folders: where plans are kept.
        manifest_digest: of the shards.
        num_tokens: tokens in the shards.
        build: makes the plan; only called where there is none yet.
        seq_length: tokens of a row.
        layout: tokens that the objective adds.
    """
    name = plan_digest(manifest_digest, seq_length, layout)[:32]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, EOFError, IndexError):  # an empty file or array is damage too
            return _map_plan(folder / name, num_tokens)
    plan = build()
    for folder in folders:
        try:
            _store_plan(plan, folder / name)
            break
        except OSError:  # read-only or full: the plan in memory serves as well
            continue
    return plan


def _map_plan(folder: Path, num_tokens: int) -> RowPlan:
    if not _is_whole(folder):
        raise ValueError(f"{folder} holds no whole plan")
    arrays = {field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(RowPlan)}
    plan = RowPlan(**arrays)
    if len(plan.piece_start) != plan.row_offsets[-1] or int(plan.piece_length.sum(dtype=np.int64)) != num_tokens:
        raise ValueError(f"{folder} does not hold a plan of these shards")
    return plan


def _store_plan(plan: RowPlan, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for field in fields(RowPlan):
            np.save(temporary / f"{field.name}.npy", getattr(plan, field.name))
        (temporary / DIGEST).write_text(_files_digest(temporary), encoding="utf-8")
        if folder.is_dir() and not _is_whole(folder):
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.is_dir():  # else another rank was first, and its plan is the same
            raise


def _is_whole(folder: Path) -> bool:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / DIGEST).read_text(encoding="utf-8") == _files_digest(folder)
    return False


def _files_digest(folder: Path) -> str:
    """sha256 of the plan's arrays."""
    digest = hashlib.sha256()
    for field in fields(RowPlan):
        with (folder / f"{field.name}.npy").open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()
