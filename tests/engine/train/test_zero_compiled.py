"""Activation checkpointing and torch.compile change nothing but speed and memory, at every ZeRO stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.models.compiled import compile_layers
from tests.engine.ranks import run_ranks
from tests.engine.train.zero_layouts import (
    ARCH,
    FP32_SUMS,
    Layout,
    Objective,
    begin,
    build,
    make_batch,
    rows,
    tiny_model,
    train,
)

MODULE = "tests.engine.train.test_zero_compiled"
DROPPING = dataclasses.replace(ARCH, hidden_dropout=0.1, attention_dropout=0.1)
LAYOUTS = [*(Layout(stage) for stage in range(4)), Layout(1, "bf16", top=FP32_SUMS), Layout(3, "bf16", top=FP32_SUMS)]


def curves(folder: Path) -> list[Any]:
    """Losses of each layout as it is, with activation checkpointing, compiled, and with both."""
    begin()
    found = []
    for layout in LAYOUTS:
        ways = []
        for checkpointed, compiled in ((False, False), (True, False), (False, True), (True, True)):
            engine = build(layout, folder, arch=DROPPING)
            engine.model.encoder.checkpoint_layers = checkpointed
            if compiled:
                compile_layers(engine.model)
            torch.manual_seed(torch.distributed.get_rank())
            ways.append(train(engine, range(5), arch=DROPPING)[0])
        found.append(ways)
    return found


def test_losses_are_the_same(tmp_path):
    for found in run_ranks(MODULE, "curves", tmp_path, 2, timeout=600):
        for layout, (plain, checkpointed, compiled, both) in zip(LAYOUTS, found, strict=True):
            assert checkpointed == plain, layout
            tolerance = 1e-5 if layout.precision == "fp32" else 1e-3
            np.testing.assert_allclose(compiled, plain, rtol=tolerance, err_msg=str(layout))
            np.testing.assert_allclose(both, plain, rtol=tolerance, err_msg=str(layout))


class Alive(TorchDispatchMode):
    """Notes the memory of every tensor that an operation makes, and sums up what is still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made.append((StorageWeakRef(storage), storage.nbytes()))
        return result

    def bytes(self) -> int:
        """Each storage once."""
        return sum({ref.cdata: size for ref, size in self.made if not ref.expired()}.values())


def bytes_after_forward(checkpointed: bool) -> int:
    """What a model of 8 layers holds for its backward pass."""
    arch = dataclasses.replace(DROPPING, num_layers=8)
    model = tiny_model(arch=arch)
    model.train()
    model.encoder.checkpoint_layers = checkpointed
    batch = make_batch(*rows(0))
    with Alive() as alive:
        loss = Objective().losses(model, batch)["mlm"].loss_sum
        held = alive.bytes()
    loss.backward()
    return held


def test_checkpointing_holds_less_memory():
    assert bytes_after_forward(True) < 0.4 * bytes_after_forward(False)


@pytest.fixture
def one_thread():
    torch.set_num_threads(1)


def test_layers_are_compiled_once_for_all_batches(one_thread):
    from torch._dynamo.utils import counters

    model = tiny_model(arch=DROPPING)
    model.train()
    names = list(model.state_dict())
    compile_layers(model)
    assert list(model.state_dict()) == names
    graphs = []
    for step in range(6):
        Objective().losses(model, make_batch(*rows(step)))["mlm"].loss_sum.backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs)) == 1  # not again for another number of tokens, nor for the second layer
