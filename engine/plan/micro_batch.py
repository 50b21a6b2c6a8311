"""Run a model's own code on tensors without memory and write down every allocation of a micro-batch.

Nothing is computed: CPU tensors are torch's fake ones, those of a GPU stand on the device ``meta``, so that a machine
without a GPU, or with little memory, plans for any other.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.data.batch import PackedBatch
from engine.models.attention import Attention
from engine.models.embeddings import Embeddings
from engine.models.layout import PackedLayout
from engine.models.model import Model
from engine.objectives.base import LossTerm, Objective
from kernels.cross_entropy import workspace_bytes

FLASH_BLOCK = 128  # rows that the flash kernel's backward pass rounds each sequence up to


class Event(NamedTuple):
    """What happens at one moment of a micro-batch.

    Attributes:
        kind: ``bytes`` (allocated, or released where negative), ``gradient`` (of the parameter ``name``: it is whole,
            and no longer counted), ``enter`` or ``leave`` (of the module ``name``, forward or backward).
        name: a parameter or a module.
        change: bytes.
    """

    kind: str
    name: str = ""
    change: int = 0


@dataclass(frozen=True)
class Trace:
    """A micro-batch, forward and backward, event by event."""

    events: tuple[Event, ...]

    def peak(self) -> int:
        """Most bytes at one time, gradients of parameters not counted."""
        total = most = 0
        for event in self.events:
            total += event.change
            most = max(most, total)
        return most


class _Allocations(TorchDispatchMode):
    """Writes down the storages that operations make, and when they go."""

    def __init__(self, events: list[Event]) -> None:
        super().__init__()
        self.events = events
        self._seen: dict[int, weakref.ref[Any]] = {}

    def know(self, tensors: Sequence[Tensor]) -> None:
        """Tensors that were there before: not counted."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._look_at(tensor)
        if func is torch.ops.kernels.linear_cross_entropy.default:
            self._note_workspace(*args)
        return result

    def _note_workspace(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        count_right: bool,
        chunk_rows: int,
        wanted: list[bool],
    ) -> None:
        """Memory that an operation of ours takes and gives back before it returns, which no operator of torch shows."""
        size = workspace_bytes(hidden, weight, chunk_rows, wanted)
        self.events += [Event("bytes", "", size), Event("bytes", "", -size)]

    def _look_at(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._seen.get(key)
        if size == 0 or (known is not None and known() is storage):
            return
        events, seen = self.events, self._seen
        events.append(Event("bytes", "", size))

        def released(reference: Any) -> None:
            if seen.get(key) is reference:
                del seen[key]
            events.append(Event("bytes", "", -size))

        seen[key] = weakref.ref(storage, released)


class _Flash(torch.autograd.Function):
    """Attention by a kernel that keeps its inputs, its result and one number for each token and head."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_sequences: int) -> Tensor:
        """[N, 3, H, K] to [N, H, K]."""
        tokens, _, heads, size = qkv.shape
        context = qkv.new_empty(tokens, heads, size)
        normalisers = qkv.new_empty(heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(qkv, context, normalisers)
        ctx.rounded = tokens + FLASH_BLOCK * num_sequences
        return context

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Gradients of queries, keys and values, then stacked; sums of the queries' in fp32 meanwhile."""
        _, context, _ = ctx.saved_tensors
        size = -(-context.shape[2] // 32) * 32
        sums = context.new_empty(ctx.rounded, context.shape[1], size, dtype=torch.float32)
        parts = [torch.empty_like(context) for _ in range(3)]
        del sums
        return torch.stack(parts, 1), None


def trace_micro_batch(
    model: Model, objective: Objective, batch: PackedBatch, device_type: str, checkpoint_layers: bool
) -> Trace:
    """Every allocation of a forward and a backward pass.

    Args:
        model: made on the device ``meta``, in the type that it computes in, with what is frozen frozen.
        objective: what is learned.
        batch: a micro-batch; only its sizes matter.
        device_type: cpu or cuda.
        checkpoint_layers: activation checkpointing.
    """
    events: list[Event] = []
    mode = FakeTensorMode(allow_non_fake_inputs=True) if device_type == "cpu" else contextlib.nullcontext()
    model.encoder.checkpoint_layers = checkpoint_layers
    model.train()
    _stand_in(model, mode)
    if device_type != "cpu":
        for module in model.modules():
            if isinstance(module, Attention):
                module.attend = _attend_on_gpu
    allocations = _Allocations(events)
    with mode, _hooks(model, events), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        batch = _stand_in_batch(batch, mode)
        allocations.know([*model.parameters(), *model.buffers()])
        with allocations:
            terms = objective.losses(model, batch)
            loss = _loss(terms)
            del terms
            loss.backward()
            del loss
    return Trace(tuple(events))


def _loss(terms: dict[str, LossTerm]) -> Tensor:
    total: Any = sum(term.weight * term.loss_sum for term in terms.values())
    assert isinstance(total, Tensor)
    return total


def _attend_on_gpu(
    qkv: Tensor, layout: PackedLayout, causal: bool, dropout: float = 0.0, seed: Tensor | None = None, site: int = 0
) -> Tensor:
    """As ``attend`` does it on a GPU from Ampere on; torch's kernels for fp32 keep the same."""
    return _Flash.apply(qkv, len(layout.lengths))


def _stand_in(model: Model, mode: Any) -> None:
    """Make a model's meta tensors fake ones of the CPU."""
    if not isinstance(mode, FakeTensorMode):
        return
    device = torch.device("cpu")
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not isinstance(parameter, FakeTensor):
                fake = FakeTensor(mode, parameter.data, device)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer.to("meta"), device)


def _stand_in_batch(batch: PackedBatch, mode: Any) -> PackedBatch:
    def convert(tensor: Tensor) -> Tensor:
        if isinstance(mode, FakeTensorMode):
            return FakeTensor(mode, tensor.to("meta"), torch.device("cpu"))
        return tensor.to("meta")

    return batch.each(convert)


@contextlib.contextmanager
def _hooks(model: Model, events: list[Event]) -> Iterator[None]:
    """Write down gradients that are whole, and modules that read parameters as they begin and end."""
    handles = []

    def gradient(name: str) -> Callable[[Tensor], None]:
        def ready(parameter: Tensor) -> None:
            parameter.grad = None
            events.append(Event("gradient", name))

        return ready

    def mark(kind: str, name: str) -> Callable[..., None]:
        return lambda *_: events.append(Event(kind, name))

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(gradient(name)))
    for name, module in model.named_modules():
        if _reads_weights(module):
            handles.append(module.register_forward_pre_hook(mark("enter", name)))
            handles.append(module.register_forward_hook(mark("leave", name)))
            handles.append(module.register_full_backward_pre_hook(mark("enter", name)))
            handles.append(module.register_full_backward_hook(mark("leave", name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reads_weights(module: nn.Module) -> bool:
    """Whether a module reads weights itself: those of its own, or of its parts."""
    if isinstance(module, Embeddings):
        return module.reads_all_weights(module.word.weight.device)
    return any(True for _ in module.parameters(recurse=False))
