"""What a checkpoint takes from DeepSpeed beside tensors."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from engine.checkpoint.fragments import layout_of
from engine.checkpoint.state import restore_scaler, scaler_state


def fp16_engine() -> Any:
    """An engine as far as its loss scaler, which is DeepSpeed's own."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = DynamicLossScaler(2.0**16, scale_window=3, min_scale=1, delayed_shift=2, consecutive_hysteresis=False)
    return SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=scaler))


def drive(engine: Any, overflows: list[bool], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scales of steps that overflow or not."""
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 1)
    scales = []
    for overflow in overflows:
        scales.append(engine.optimizer.loss_scaler.cur_scale)
        engine.optimizer.loss_scaler.update_scale(overflow)
    return scales


def test_loss_scale_goes_on_where_it_was(monkeypatch):
    before = [True, True, True, False, False, False, False, True]
    after = [False, False, False, False, True, True, False, False]
    unbroken = fp16_engine()
    expected = drive(unbroken, before + after, monkeypatch)
    assert len(set(expected)) == 3
    first = fp16_engine()
    drive(first, before, monkeypatch)
    saved = json.loads(json.dumps(scaler_state(first)))
    second = fp16_engine()
    restore_scaler(second, saved)
    assert drive(second, after, monkeypatch) == expected[len(before) :]
    assert scaler_state(second) == scaler_state(unbroken)


def test_nothing_is_scaled_but_in_fp16():
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    for optimizer in (SimpleNamespace(), SimpleNamespace(loss_scaler=LossScaler(scale=1))):
        engine = SimpleNamespace(optimizer=optimizer)
        assert scaler_state(engine) == {}
        restore_scaler(engine, {"cur_scale": 4.0})
        assert scaler_state(engine) == {}


def test_checkpoint_without_a_scaler_leaves_it_at_its_start():
    engine = fp16_engine()
    start = scaler_state(engine)
    restore_scaler(engine, {})
    assert scaler_state(engine) == start


def test_unknown_wrapper_is_refused():
    engine = SimpleNamespace(optimizer=SimpleNamespace(), basic_optimizer=None)
    with pytest.raises(
        ValueError, match="DeepSpeed chose SimpleNamespace for this configuration, which checkpoints do"
    ):
        layout_of(engine)
