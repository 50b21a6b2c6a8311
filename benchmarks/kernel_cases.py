"""What benchmarks/kernels.py times: for each operation ours and others' on the same tensors, forward and backward."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from kernels import apex
from kernels.activation import bias_gelu, gated
from kernels.cross_entropy import linear_cross_entropy, softmax_cross_entropy
from kernels.embedding import embed
from kernels.norm import dropout_add, norm
from kernels.philox import seed_tensor

DROPOUT = 0.1
VOCABULARY = {"cpu": (30528, 50304), "cuda": (30528, 50304)}  # of BERT's and GPT-2's models, padded
LIGER = importlib.util.find_spec("liger_kernel") is not None
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the largest value

Run = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Setting:
    """The tensors of a benchmark.

    Attributes:
        device: cpu or cuda.
        rows: tokens.
        width: of the hidden state.
        dtype: of activations and, unless a case says otherwise, of parameters.
    """

    device: str
    rows: int
    width: int
    dtype: torch.dtype

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed values."""
        return (scale * torch.randn(*shape, device=self.device)).to(self.dtype)

    def integers(self, limit: int) -> Tensor:
        """[rows] int64 below a limit."""
        return torch.randint(0, limit, (self.rows,), device=self.device)

    def bytes(self, *numbers: int) -> int:
        """Of so many elements."""
        return sum(numbers) * self.dtype.itemsize


@dataclass(frozen=True)
class Case:
    """Sides that do the same work.

    Attributes:
        operation: as dispatch names it.
        name: what of it.
        sides: by name; "kernels" is ours, "torch" the plain way.
        moved: bytes that must be read and written at least; 0 where memory is not what it waits for.
        result: what is compared with the reference; what the side "kernels" returns where it is not given.
        tolerance: share of the largest value.
        by_memory: the memory of the sides is measured too.
    """

    operation: str
    name: str
    sides: dict[str, Run]
    moved: int
    tolerance: float
    result: Run | None = None
    by_memory: bool = False


def gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Run:
    """A forward and a backward pass: the result, and the gradients of the leaves."""
    inputs = [leaf.detach().requires_grad_() for leaf in leaves]
    with torch.no_grad():
        shape = function(*inputs)
    upstream = torch.ones_like(shape) if shape.dim() == 0 else torch.randn_like(shape)

    def run() -> list[Tensor]:
        out = function(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]

    return run


def differentiable(
    setting: Setting, operation: str, name: str, functions: dict[str, Callable[..., Tensor]],
    leaves: Sequence[Tensor], moved: int, **options: Any,
) -> Case:  # fmt: skip
    """A case of functions of the same leaves; on a GPU torch.compile of the plain one is another side."""
    sides = {label: gradients(function, leaves) for label, function in functions.items()}
    if setting.device == "cuda":
        torch.compiler.reset()
        sides["torch.compile"] = gradients(torch.compile(functions["torch"], dynamic=False), leaves)
    return Case(operation, name, sides, moved, TOLERANCE[setting.dtype], **options)


def norm_cases(setting: Setting) -> Iterator[Case]:
    """LayerNorm with what stands before it, and alone."""
    shape, width = (setting.rows, setting.width), setting.width
    x, residual = setting.draw(*shape), setting.draw(*shape)
    vectors = [setting.draw(width) for _ in range(3)]
    seed, size = seed_tensor(3, setting.device), setting.rows * width
    for dropout in (DROPOUT, 0.0):
        leaves = [x, residual, *vectors]

        def ours(
            x: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, bias: Tensor, p: float = dropout
        ) -> Tensor:
            return norm(x, weight, shift, bias=bias, residual=residual, dropout=p, seed=seed)[0]

        functions: dict[str, Callable[..., Tensor]] = {"kernels": ours}
        for label, layer_norm in layer_norms(width).items():

            def others(x, residual, weight, shift, bias, p=dropout, layer_norm=layer_norm):  # type: ignore[no-untyped-def]
                return layer_norm(residual + F.dropout(x + bias, p), weight, shift)

            functions[label] = others
        # forward: x, residual in; sum, y out; backward: dy, sum in; dx and, with dropout, dresidual out
        moved = setting.bytes(4 * size, (4 if dropout else 3) * size)
        yield differentiable(setting, "norm", f"bias, dropout {dropout}, residual, norm", functions, leaves, moved)
    if setting.dtype != torch.float32:
        yield norm_alone(setting, "norm")


def layer_norm_cases(setting: Setting) -> Iterator[Case]:
    """LayerNorm alone in fp32."""
    if setting.dtype == torch.float32:
        yield norm_alone(setting, "layer_norm")


def norm_alone(setting: Setting, operation: str) -> Case:
    """A norm with nothing before it."""
    width = setting.width
    functions = {"kernels": lambda x, weight, shift: norm(x, weight, shift)[0], **layer_norms(width)}
    leaves = [setting.draw(setting.rows, width), setting.draw(width), setting.draw(width)]
    return differentiable(setting, operation, "norm alone", functions, leaves, setting.bytes(5 * setting.rows * width))


def layer_norms(width: int) -> dict[str, Callable[..., Tensor]]:
    """LayerNorm of others, as functions of x, weight and shift."""
    found: dict[str, Callable[..., Tensor]] = {
        "torch": lambda x, weight, shift: F.layer_norm(x, (width,), weight, shift)
    }
    if apex.norms_missing() is None:
        from apex.normalization.fused_layer_norm import fused_layer_norm_affine  # type: ignore[import-not-found]

        found["apex"] = lambda x, weight, shift: fused_layer_norm_affine(x, weight, shift, (width,), 1e-5)
    if LIGER:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]

        found["liger"] = lambda x, weight, shift: LigerLayerNormFunction.apply(x, weight, shift, 1e-5)
    return found


def dropout_add_cases(setting: Setting) -> Iterator[Case]:
    """residual + dropout(x)."""
    shape = (setting.rows, setting.width)
    seed, size = seed_tensor(3, setting.device), setting.rows * setting.width
    functions: dict[str, Callable[..., Tensor]] = {
        "kernels": lambda x, residual: dropout_add(x, residual, dropout=DROPOUT, seed=seed),
        "torch": lambda x, residual: residual + F.dropout(x, DROPOUT),
    }
    leaves = [setting.draw(*shape), setting.draw(*shape)]
    yield differentiable(
        setting, "dropout_add", f"dropout {DROPOUT}, residual", functions, leaves, setting.bytes(5 * size)
    )


def activation_cases(setting: Setting) -> Iterator[Case]:
    """Bias and GELU, four times as wide as the hidden state."""
    width, size = 4 * setting.width, 4 * setting.rows * setting.width
    leaves = [setting.draw(setting.rows, width), setting.draw(width)]
    for approximate in ("none", "tanh"):
        functions: dict[str, Callable[..., Tensor]] = {
            "kernels": partial(bias_gelu, approximate=approximate),
            "torch": lambda x, bias, approximate=approximate: F.gelu(x + bias, approximate=approximate),
        }
        name = f"bias, GELU ({'erf' if approximate == 'none' else approximate})"
        yield differentiable(setting, "bias_gelu", name, functions, leaves, setting.bytes(5 * size))


def gated_cases(setting: Setting) -> Iterator[Case]:
    """Bias and GEGLU or SwiGLU, four times as wide as the hidden state."""
    width, size = 4 * setting.width, 4 * setting.rows * setting.width
    leaves = [setting.draw(setting.rows, 2 * width), setting.draw(2 * width)]
    for kind, activation in (("gelu", F.gelu), ("silu", F.silu)):

        def plain(x: Tensor, bias: Tensor, activation: Callable[[Tensor], Tensor] = activation) -> Tensor:
            gate, value = (x + bias).chunk(2, -1)
            return activation(gate) * value

        functions: dict[str, Callable[..., Tensor]] = {"kernels": partial(gated, kind=kind), "torch": plain}
        # forward: two halves in, one out; backward: both halves and dy in, both gradients out
        yield differentiable(setting, "gated", f"bias, gated {kind}", functions, leaves, setting.bytes(8 * size))


def embedding_cases(setting: Setting) -> Iterator[Case]:
    """Word + position + segment, LayerNorm and dropout."""
    width, vocabulary = setting.width, VOCABULARY[setting.device][0]
    tokens, segments = setting.integers(vocabulary), setting.integers(2)
    positions = torch.arange(setting.rows, device=setting.device) % 512
    leaves = [setting.draw(rows, width, scale=0.02) for rows in (vocabulary, 512, 2)]
    leaves += [setting.draw(width), setting.draw(width)]
    seed = seed_tensor(3, setting.device)

    def ours(word: Tensor, position: Tensor, segment: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        tables = (word, position, segment, weight, shift)
        return embed(tokens, positions, segments, *tables, dropout=DROPOUT, seed=seed)

    def plain(word: Tensor, position: Tensor, segment: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        total = F.embedding(tokens, word) + F.embedding(positions, position) + F.embedding(segments, segment)
        return F.dropout(F.layer_norm(total, (width,), weight, shift), DROPOUT)

    # forward: word rows in, y out; backward: dy and word rows in, the whole gradient of the word table out
    moved = setting.bytes(4 * setting.rows * width, vocabulary * width)
    yield differentiable(
        setting, "embedding", f"embedding, norm, dropout {DROPOUT}", {"kernels": ours, "torch": plain}, leaves, moved
    )


def cross_entropy_cases(setting: Setting) -> Iterator[Case]:
    """Softmax cross-entropy of logits."""
    vocabulary = VOCABULARY[setting.device][0]
    rows = min(setting.rows, 1024) if setting.device == "cpu" else setting.rows
    logits, labels = setting.draw(rows, vocabulary), setting.integers(vocabulary)[:rows]
    functions: dict[str, Callable[..., Tensor]] = {
        "kernels": lambda logits: softmax_cross_entropy(logits, labels)[0],
        "torch": lambda logits: F.cross_entropy(logits.float(), labels, reduction="sum"),
    }
    if LIGER:
        from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss  # type: ignore[import-not-found]

        functions["liger"] = lambda logits: LigerCrossEntropyLoss(reduction="sum")(logits * 1, labels)
    moved = setting.bytes(3 * rows * vocabulary)
    yield differentiable(setting, "cross_entropy", f"{rows} rows, {vocabulary} columns", functions, [logits], moved)


def linear_cross_entropy_cases(setting: Setting) -> Iterator[Case]:
    """Cross-entropy with the projection before it."""
    vocabulary = VOCABULARY[setting.device][1]
    labels = setting.integers(vocabulary)
    leaves = [setting.draw(setting.rows, setting.width), setting.draw(vocabulary, setting.width, scale=0.02)]
    functions: dict[str, Callable[..., Tensor]] = {
        "kernels": lambda hidden, weight: linear_cross_entropy(hidden, weight, None, labels)[0],
        "torch": lambda hidden, weight: F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum"),
    }
    if LIGER:
        from liger_kernel.transformers.fused_linear_cross_entropy import (  # type: ignore[import-not-found]
            LigerFusedLinearCrossEntropyLoss as LigerLoss,
        )

        functions["liger"] = lambda hidden, weight: LigerLoss(reduction="sum")(weight, hidden, labels)
    name = f"{setting.rows} rows, {vocabulary} columns"
    yield differentiable(setting, "linear_cross_entropy", name, functions, leaves, 0, by_memory=True)


CASES: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "norm": norm_cases,
    "layer_norm": layer_norm_cases,
    "dropout_add": dropout_add_cases,
    "bias_gelu": activation_cases,
    "gated": gated_cases,
    "embedding": embedding_cases,
    "cross_entropy": cross_entropy_cases,
    "linear_cross_entropy": linear_cross_entropy_cases,
}
