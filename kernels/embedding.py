"""y = dropout(norm(word + position + segment)) in one pass, and gradients of tables that depend on no thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kernels.dispatch import Operation, choose, load
from kernels.limits import FORWARD_BLOCKS_PER_PROCESSOR, cpu_limit, row_blocks, row_limit
from kernels.norm import dropout_add
from kernels.philox import LEVELS, checked_threshold
from kernels.reference import embedding as reference
from kernels.tensors import packed, packed_or_none

# N tokens, D columns; V, P and S rows of the word, position and segment tables

TABLES = ("word", "position", "segment")
PIECE, MAX_PIECES = 32, 512  # sorted ids are cut into pieces of a multiple of this length


EMBEDDING = Operation("embedding", {"cpu": cpu_limit, "cuda": row_limit, "emulator": row_limit})


def embed(
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None = None,
    weight: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """dropout(LayerNorm(word[tokens] + position[positions] + segment[segments])).

    Sums and statistics are fp32, whatever the types. Neither the sum nor the dropout mask is stored: the backward pass
    reads the tables again. The gradient of a table has all its rows; those with the same id are added up in their
    order, so that its bits are the same every time (torch's own depends on the order of atomics on a GPU). Autocast
    changes no types here: the result is of the tables'.

    Args:
        tokens: [N] int64. On a CPU an id beyond its table is an error; on a GPU, where a check would have to wait, its
            row of the result is NaN.
        positions: [N] int64.
        segments: [N] int64; None is segment 0 everywhere where there is a segment table.
        word: [V, D] fp32, bf16 or fp16.
        position: [P, D], of the same type.
        segment: [S, D], of the same type; None adds nothing.
        weight: [D], factor of the normalised values; None leaves the norm out.
        shift: [D], added to them.
        eps: added to the variance.
        dropout: probability, rounded to a multiple of 2^-16.
        seed: of the mask, [1] int64 on the device of the tables (``kernels.philox.seed_tensor``).
        site: number of this call in the model, so that no two calls share a mask.

    Returns:
        [N, D] in the type of the tables.

    Raises:
        ValueError: if shapes, types, ids, the probability or the seed do not fit.
    """
    _check_tables(word, position, segment, weight, shift)
    _check_ids(tokens, positions, segments, segment)
    threshold = checked_threshold(dropout, seed, word.device)
    y: Tensor = _embed(
        tokens, positions, segments, word, position, segment, weight, shift, eps, threshold, seed, site
    )[0]  # fmt: skip
    return y


def _check_tables(
    word: Tensor, position: Tensor, segment: Tensor | None, weight: Tensor | None, shift: Tensor | None
) -> None:
    for name, table in (("word", word), ("position", position), ("segment", segment)):
        if table is not None and (table.dim() != 2 or table.shape[1] != word.shape[-1] or table.dtype != word.dtype):
            raise ValueError(
                f"the {name} table is {table.dtype} {list(table.shape)}; "
                f"it must be {word.dtype} [rows, {word.shape[-1]}], as the word table"
            )
    if weight is None and shift is not None:
        raise ValueError("shift was given without weight; both belong to the norm")
    for name, vector in (("weight", weight), ("shift", shift)):
        if vector is not None and vector.shape != word.shape[1:]:
            raise ValueError(f"{name} is {list(vector.shape)}; it must be [{word.shape[1]}], the width of the tables")
    if weight is not None and shift is not None and weight.dtype != shift.dtype:
        raise ValueError(f"shift is {shift.dtype} and weight {weight.dtype}; parameters must be of one type")


def _check_ids(tokens: Tensor, positions: Tensor, segments: Tensor | None, segment: Tensor | None) -> None:
    for name, ids in (("tokens", tokens), ("positions", positions), ("segments", segments)):
        if ids is not None and (ids.dim() != 1 or ids.shape != tokens.shape or ids.dtype != torch.int64):
            raise ValueError(
                f"{name} are {ids.dtype} {list(ids.shape)}; they must be int64 [N], one for each of the tokens"
            )
    if segments is not None and segment is None:
        raise ValueError("segments were given without a segment table")


@torch.library.custom_op("kernels::embedding", mutates_args=())
def _embed(
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    eps: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, D], and mean and rstd [N] of the rows, without elements where there is no norm."""
    backend = choose(EMBEDDING, word.device, width=word.shape[1], types=_types(word, weight))
    if backend in ("cpu", "reference") and word.device.type == "cpu":
        _check_range(tokens, positions, segments, word, position, segment)
    if backend == "reference":
        y, mean, rstd = reference.embedding_forward(
            tokens, positions, segments, word, position, segment, weight, shift,
            eps=eps, threshold=threshold, seed=seed, site=site,
        )  # fmt: skip
        return y.contiguous(), mean, rstd
    y, mean, rstd = _empty_results(
        tokens, positions, segments, word, position, segment, weight, shift, eps, threshold, seed, site
    )
    load(backend).embedding_forward(
        *_packed(tokens, positions, segments, word, position, segment, weight, shift), y, mean, rstd, eps, threshold,
        seed, site, row_blocks(backend, word.device, tokens.shape[0], FORWARD_BLOCKS_PER_PROCESSOR),
    )  # fmt: skip
    return y, mean, rstd


@_embed.register_fake
def _empty_results(
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    eps: float,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    count = tokens.shape[0]
    compute = torch.promote_types(word.dtype, torch.float32)
    y = word.new_empty(count, word.shape[1])
    mean, rstd = (word.new_empty(0 if weight is None else count, dtype=compute) for _ in range(2))
    return y, mean, rstd


def _check_range(
    tokens: Tensor, positions: Tensor, segments: Tensor | None, word: Tensor, position: Tensor, segment: Tensor | None
) -> None:
    for name, ids, table in zip(TABLES, (tokens, positions, segments), (word, position, segment), strict=True):
        if ids is None or table is None or not ids.numel():
            continue
        lowest, highest = (int(end) for end in ids.aminmax())
        if lowest < 0 or highest >= table.shape[0]:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"{name} id {wrong} is not in the {name} table, which has {table.shape[0]} rows")
    if segments is None and segment is not None and not segment.shape[0]:
        raise ValueError("segment id 0 is not in the segment table, which has 0 rows")


@torch.library.custom_op("kernels::embedding_gradients", mutates_args=())
def _sum_gradients(
    dy: Tensor,
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Through dropout and norm: the gradients of the sum [N, D], of weight and of shift [D]."""
    backend = choose(EMBEDDING, word.device, width=word.shape[1], types=_types(word, weight))
    if backend == "reference":
        dz, dweight, dshift = reference.embedding_backward(
            dy, tokens, positions, segments, word, position, segment, weight, mean, rstd,
            threshold=threshold, seed=seed, site=site,
        )  # fmt: skip
        return dz.contiguous(), dweight, dshift
    dz, dweight, dshift = _empty_sum_gradients(
        dy, tokens, positions, segments, word, position, segment, weight, mean, rstd, threshold, seed, site
    )
    partial = mean.new_empty(row_blocks(backend, word.device, tokens.shape[0]), 2, word.shape[1])
    load(backend).embedding_backward(
        *_packed(dy, tokens, positions, segments, word, position, segment, weight), mean, rstd, dz, dweight, dshift,
        partial, threshold, seed, site,
    )  # fmt: skip
    return dz, dweight, dshift


@_sum_gradients.register_fake
def _empty_sum_gradients(
    dy: Tensor,
    tokens: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    threshold: int,
    seed: Tensor | None,
    site: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dz = torch.empty_like(dy, memory_format=torch.contiguous_format)
    dweight, dshift = (rstd.new_empty(word.shape[1]) for _ in range(2))
    return dz, dweight, dshift


@torch.library.custom_op("kernels::embedding_tables", mutates_args=())
def _table_gradients(
    dz: Tensor, tokens: Tensor, positions: Tensor, segments: Tensor | None, rows: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the tables, [rows, D]; without elements for one of 0 rows, which is not wanted."""
    backend = choose(EMBEDDING, dz.device, width=dz.shape[1], types=(dz.dtype,))
    ids = torch.stack([tokens, positions, torch.zeros_like(tokens) if segments is None else segments])
    if backend == "reference":
        dword, dposition, dsegment = (
            reference.table_gradient(dz, each, size) if size else dz.new_empty(0, dz.shape[1])
            for each, size in zip(ids, rows, strict=True)
        )
        return dword, dposition, dsegment
    dword, dposition, dsegment = _empty_table_gradients(dz, tokens, positions, segments, rows)
    for gradient in (dword, dposition, dsegment):
        if backend == "cpu":
            load(backend).zero(gradient)
        else:
            gradient.zero_()
    ids, order = ids.sort(dim=1, stable=True)
    length = PIECE * max(1, -(-dz.shape[0] // (PIECE * MAX_PIECES)))
    partial = dz.new_empty(len(rows), -(-dz.shape[0] // length), 2, dz.shape[1], dtype=torch.float32)
    load(backend).embedding_runs(packed(dz), ids, order, partial, dword, dposition, dsegment, length)
    return dword, dposition, dsegment


@_table_gradients.register_fake
def _empty_table_gradients(
    dz: Tensor, tokens: Tensor, positions: Tensor, segments: Tensor | None, rows: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    dword, dposition, dsegment = (dz.new_empty(size, dz.shape[1]) for size in rows)
    return dword, dposition, dsegment


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, positions, segments, word, position, segment, weight, shift, _, threshold, seed, site = inputs
    _, mean, rstd = output
    tables = (word, position, segment) if weight is not None else (None, None, None)
    ctx.save_for_backward(tokens, positions, segments, *tables, weight, mean, rstd, seed)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.threshold, ctx.site = threshold, site
    ctx.rows = [0 if table is None else table.shape[0] for table in (word, position, segment)]
    ctx.shift_type = None if shift is None else shift.dtype


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    tokens, positions, segments, word, position, segment, weight, mean, rstd, seed = ctx.saved_tensors
    dweight = dshift = None
    if weight is None:
        dz = dropout_add(dy, dropout=ctx.threshold / LEVELS, seed=seed, site=ctx.site)
    else:
        dz, dweight, dshift = _sum_gradients(
            dy, tokens, positions, segments, word, position, segment, weight, mean, rstd, ctx.threshold, seed, ctx.site
        )
        dweight = dweight.to(weight.dtype)
        dshift = None if ctx.shift_type is None else dshift.to(ctx.shift_type)
    wanted = ctx.needs_input_grad[3:6]
    rows = [size if needed else 0 for size, needed in zip(ctx.rows, wanted, strict=True)]
    tables: tuple[Tensor | None, ...] = (None, None, None)
    if any(rows):
        gradients = _table_gradients(dz, tokens, positions, segments, rows)
        tables = tuple(gradient if size else None for gradient, size in zip(gradients, rows, strict=True))
    return None, None, None, *tables, dweight, dshift, None, None, None, None


_embed.register_autograd(_backward, setup_context=_keep_for_backward)


def _types(word: Tensor, weight: Tensor | None) -> tuple[torch.dtype, ...]:
    return (word.dtype,) if weight is None else (word.dtype, weight.dtype)


def _packed(*tensors: Tensor | None) -> list[Tensor | None]:
    return [packed_or_none(tensor) for tensor in tensors]


class Embeddings(nn.Module):
    """The sum of word, position and segment vectors, LayerNorm and dropout.

    The parameters have the names of ``nn.Embedding`` and ``nn.LayerNorm`` in their places: ``word.weight``,
    ``position.weight``, ``segment.weight``, ``norm.weight``, ``norm.bias``.

    The children are not called: their hooks do not run. What gathers a module's parameters by hooks, as ZeRO stage 3
    does, must be told that this module reads them (``deepspeed.runtime.zero.register_external_parameter``).
    """

    def __init__(
        self,
        vocab_size: int,
        max_positions: int,
        num_segments: int,
        width: int,
        *,
        norm: bool = True,
        eps: float = 1e-5,
        dropout: float = 0.0,
        site: int = 0,
    ) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(vocab_size, width), nn.Embedding(max_positions, width)
        self.segment = nn.Embedding(num_segments, width) if num_segments else None
        self.norm = nn.LayerNorm(width, eps) if norm else None
        self.dropout, self.site = dropout, site

    def forward(
        self, tokens: Tensor, positions: Tensor, segments: Tensor | None = None, seed: Tensor | None = None
    ) -> Tensor:
        """[N] ids each to [N, D]; ``seed`` is that of the dropout mask, [1] int64."""
        norm = self.norm
        return embed(
            tokens, positions, segments, self.word.weight, self.position.weight,
            None if self.segment is None else self.segment.weight,
            None if norm is None else norm.weight,
            None if norm is None else norm.bias,
            eps=1e-5 if norm is None else norm.eps,
            dropout=self.dropout if self.training else 0.0, seed=seed, site=self.site,
        )  # fmt: skip
