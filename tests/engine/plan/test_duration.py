"""Steps, tokens and days, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.config.arch import ArchConfig
from engine.config.train import TrainConfig
from engine.data.plan import SequenceLayout
from engine.plan.config import PEAK_NAMES
from engine.plan.duration import FP32_TFLOPS, GPU_NAMES, estimate_duration, peak_of
from engine.plan.rows import FILL, Source, Text
from engine.train.flops import PEAK_TFLOPS
from engine.train.timeline import Timeline

ARCH = ArchConfig(vocab_size=100, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=16, causal=True)

LM, MLM = Text(SequenceLayout(1, 1)), Text(SequenceLayout(2, 0))


def stage(steps: int, batch: int, length: int, **ramps: dict[int, int]):
    config = TrainConfig(steps=steps, batch_size=batch, batch_ramp=ramps.get("batch_ramp", {})).completed()
    return config.stage(length, ramps.get("length_ramp", {}))


def test_operations_of_one_stage_by_hand() -> None:
    length = round(FILL * 1000)
    found = estimate_duration(ARCH, "lm", Timeline([stage(10, 4, 1000)]), LM, 1e6)
    dense = 6 * 2 * (4 * 64 + 2 * 8 * 16) * length
    attention = 12 * 2 * 8 * length**2 / 2
    head = 6 * 8 * 100 * (length - 1)
    assert found.tokens == 40 * length and found.steps == 10 and found.epochs == {}
    assert found.flops == pytest.approx(40 * (dense + attention + head))
    assert found.seconds == pytest.approx(found.flops / 1e6) and found.days == found.seconds / 86400


def test_stages_and_ramps_are_summed() -> None:
    text = LM

    def flops(*stages) -> float:
        return estimate_duration(ARCH, "lm", Timeline(stages), text, 1.0).flops

    ramped = stage(10, 8, 256, length_ramp={6: 64}, batch_ramp={3: 4})
    parts = [stage(3, 4, 64), stage(3, 8, 64), stage(4, 8, 256)]
    assert flops(ramped) == pytest.approx(flops(*parts)) == pytest.approx(sum(flops(part) for part in parts))


def test_masked_tokens_count_at_their_mean_rate() -> None:
    arch, stages = replace(ARCH, causal=False), [stage(2, 1, 100)]

    def flops(rate) -> float:
        return estimate_duration(arch, "mlm", Timeline(stages, rate), MLM, 1.0).flops

    rising = flops(lambda progress: 0.1 + 0.4 * progress)  # 0.1 at the first step, 0.3 at the second
    assert rising == pytest.approx((flops(lambda _: 0.1) + flops(lambda _: 0.3)) / 2)


def test_text_gives_sequences_and_epochs() -> None:
    layout = MLM.layout
    short = Source("a", 1.0, 10_000, 200)  # documents of 50 tokens: 52 with their special ones
    assert short.lengths(512, layout) == [51] * 9 + [50]
    assert short.rows(512, layout) == 21  # 10,400 tokens over 509.44
    long = Source("b", 1.0, 1_000_000, 10)  # cut into pieces of at most 510
    assert long.lengths(512, layout) == [509]
    text = Text(layout, (short,))
    found = estimate_duration(replace(ARCH, causal=False), "mlm", Timeline([stage(10, 32, 512)]), text, 1.0)
    assert found.epochs == {"a": pytest.approx(320 / 21)}


def test_each_source_of_a_mixture_has_its_own_epochs() -> None:
    arch, timeline = replace(ARCH, causal=False), Timeline([stage(10, 32, 512)])
    sources = Source("a", 0.9, 10_000, 200), Source("b", 0.1, 1_000_000, 10)

    def found(*sources: Source):
        return estimate_duration(arch, "mlm", timeline, Text(MLM.layout, sources), 1.0)

    mixed, alone = found(*sources), [found(replace(source, weight=1.0)) for source in sources]
    assert mixed.epochs["a"] == pytest.approx(0.9 * alone[0].epochs["a"])
    assert mixed.epochs["b"] == pytest.approx(0.1 * alone[1].epochs["b"])
    assert mixed.flops == pytest.approx(0.9 * alone[0].flops + 0.1 * alone[1].flops)


def test_the_peak_is_that_of_the_precision() -> None:
    assert set(FP32_TFLOPS) == set(GPU_NAMES) == set(PEAK_NAMES)
    assert [peak_of("H100", precision) for precision in ("fp32", "bf16", "fp16")] == [67.0, 989.0, 989.0]


def test_the_kinds_of_gpus_are_those_with_a_peak() -> None:
    assert {name.upper() for name in PEAK_NAMES} == set(PEAK_TFLOPS)
