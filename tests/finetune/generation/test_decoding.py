"""Text that is generated against transformers, token by token, on the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.config.arch import ArchConfig
from engine.convert.huggingface import to_huggingface
from engine.convert.model_folder import write_model_folder
from engine.models.heads import CausalLMHead
from engine.models.model import build_model
from finetune.config.decoding import DecodingConfig
from finetune.generation.decoding import Generated, generate
from finetune.generation.scores import draw, warp
from finetune.generation.stepping import Generator
from tests.finetune import tiny

EOS, SIZE, PAD = 7, 97, 96
ARCH = ArchConfig(vocab_size=SIZE, init_std=0.35, **tiny.GPT2)  # type: ignore[arg-type]
LENGTHS = (3, 11, 1, 6, 6, 17)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """A GPT-2 whose probabilities are far from each other."""
    model = build_model(ARCH, {"lm": CausalLMHead(ARCH)}, seed=3).eval()
    return Generator(model, "lm", EOS, ARCH.max_positions)


@pytest.fixture(scope="module")
def theirs(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same weights in transformers."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gpt2")
    config, tensors = to_huggingface(generator.model.state_dict(), ARCH, ["lm"], {"pad": PAD, "bos": EOS, "eos": EOS})
    write_model_folder(folder, config, tensors)
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def prompts(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(8, 96, length) for length in LENGTHS]


def their_texts(theirs: Any, rows: list[np.ndarray], number: int = 1, **settings: Any) -> list[list[list[int]]]:
    """One prompt at a time."""
    found = []
    for row in rows:
        ids = torch.from_numpy(row)[None]
        output = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), pad_token_id=PAD, num_return_sequences=number, **settings
        )
        found.append([cut(text[len(row) :].tolist()) for text in output])
    return found


def cut(tokens: list[int]) -> list[int]:
    ends = [tokens.index(token) for token in (EOS, PAD) if token in tokens]
    return tokens[: min(ends)] if ends else tokens


def tokens_of(texts: list[list[Generated]]) -> list[list[list[int]]]:
    return [[text.tokens for text in row] for row in texts]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers_in_a_batch_of_unequal_prompts(
    generator: Generator, theirs: Any, penalty: float
) -> None:
    config = DecodingConfig(max_new_tokens=40, repetition_penalty=penalty)
    ours = tokens_of(generate(generator, prompts(), config))
    assert ours == their_texts(
        theirs, prompts(), max_new_tokens=40, do_sample=False, num_beams=1, repetition_penalty=penalty
    )
    assert len({len(row[0]) for row in ours}) > 1  # some end by themselves


def test_greedy_equals_transformers_padded_on_the_left(generator: Generator, theirs: Any) -> None:
    rows = prompts(5)
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row.tolist() for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    output = theirs.generate(ids, attention_mask=mask, pad_token_id=PAD, max_new_tokens=20, do_sample=False)
    expected = [[cut(text[longest:].tolist())] for text in output]
    assert tokens_of(generate(generator, rows, DecodingConfig(max_new_tokens=20))) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"length_penalty": 0.0},
        {"length_penalty": 2.0, "early_stopping": True},
        {"early_stopping": True, "repetition_penalty": 1.2},
        {"length_penalty": -1.0},
    ],
)
@pytest.mark.parametrize("width", [2, 5])
def test_beams_equal_transformers(generator: Generator, theirs: Any, width: int, settings: dict[str, Any]) -> None:
    config = DecodingConfig(max_new_tokens=14, num_beams=width, **settings)
    ours = generate(generator, prompts(2), config, num_texts=width)
    expected = their_texts(theirs, prompts(2), width, max_new_tokens=14, do_sample=False, num_beams=width, **settings)
    assert tokens_of(ours) == expected
    assert all(row[0].score is not None and row[0].score >= row[1].score for row in ours)  # type: ignore[operator]


def test_scores_of_beams_equal_transformers(generator: Generator, theirs: Any) -> None:
    row = prompts()[1]
    ids = torch.from_numpy(row)[None]
    output = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), pad_token_id=PAD, max_new_tokens=9, num_beams=4, do_sample=False,
        num_return_sequences=4, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    (ours,) = generate(generator, [row], DecodingConfig(max_new_tokens=9, num_beams=4), num_texts=4)
    assert [text.score for text in ours] == pytest.approx(output.sequences_scores.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"temperature": 1.4, "top_k": 20, "top_p": 0.6},
        {"top_k": 999},
    ],
)
def test_what_is_drawn_from_equals_transformers(settings: dict[str, Any]) -> None:
    process = pytest.importorskip("transformers").generation.logits_process
    scores = 3 * torch.randn(5, SIZE, generator=torch.Generator().manual_seed(1))
    expected = scores
    for name, warper in (
        ("temperature", process.TemperatureLogitsWarper),
        ("top_k", process.TopKLogitsWarper),
        ("top_p", process.TopPLogitsWarper),
    ):
        if name in settings:
            expected = warper(settings[name])(None, expected)
    found = warp(scores, DecodingConfig(sample=True, **settings))
    torch.testing.assert_close(found, expected)
    assert "top_k" not in settings or settings["top_k"] > SIZE or bool((found == -torch.inf).any())


def test_draws_have_the_probabilities() -> None:
    scores = torch.tensor([[0.5, -torch.inf, 2.0, -torch.inf, 1.0, -torch.inf]])
    uniforms = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    drawn = draw(scores.expand(10000, -1), uniforms)
    shares = torch.bincount(drawn, minlength=6) / 10000
    torch.testing.assert_close(shares, scores[0].softmax(-1), atol=2e-4, rtol=0)
    assert draw(scores, torch.tensor([1 - 2.0**-53])).item() == 4


def test_samples_depend_on_seed_record_and_number_and_not_on_the_batch(generator: Generator) -> None:
    config, rows = DecodingConfig(max_new_tokens=12, sample=True, temperature=1.5), prompts()
    keys = [(4, record) for record in range(len(rows))]
    together = tokens_of(generate(generator, rows, config, num_texts=3, keys=keys))
    alone = [tokens_of(generate(generator, [row], config, 3, [key]))[0] for row, key in zip(rows, keys, strict=True)]
    assert together == alone
    assert len({tuple(text) for text in together[0]}) == 3
    other = tokens_of(generate(generator, rows, config, num_texts=3, keys=[(5, key[1]) for key in keys]))
    assert other != together
    same = tokens_of(generate(generator, [rows[0], rows[0]], config, keys=[(4, 0), (4, 1)]))
    assert same[0] != same[1]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"sample": True}])
def test_texts_end_with_the_models_positions(generator: Generator, settings: dict[str, Any]) -> None:
    last = ARCH.max_positions
    rows = [np.arange(10, last + 7), np.arange(10, 14)]  # 3 positions are left for the first
    config = DecodingConfig(max_new_tokens=10, **settings)
    long, short = tokens_of(generate(generator, rows, config))
    assert len(long[0]) <= 3
    assert [short] == tokens_of(generate(generator, rows[1:], config))
    with pytest.raises(ValueError, match=f"a prompt has {last} tokens, and the model only {last} positions"):
        generate(generator, [np.arange(last)], config)
    with pytest.raises(ValueError, match="a prompt has no token"):
        generate(generator, [np.arange(0)], config)


def test_a_beam_for_each_text(generator: Generator) -> None:
    with pytest.raises(ValueError, match="num_texts is 3; it must be at most num_beams, 2, or sample given"):
        generate(generator, prompts(), DecodingConfig(num_beams=2), num_texts=3)


def test_refusals() -> None:
    wrong = DecodingConfig(
        max_new_tokens=0, temperature=0.0, top_p=0.0, top_k=-1, num_beams=0, repetition_penalty=-1.0, sample=True
    )
    assert wrong.problems() == [
        "max_new_tokens is 0; it must be at least 1",
        "top_k is -1; it must be at least 0",
        "num_beams is 0; it must be at least 1",
        "temperature is 0.0; it must be above 0",
        "repetition_penalty is -1.0; it must be above 0",
        "top_p is 0.0; it must be above 0 and at most 1",
    ]
    assert "does not draw" in DecodingConfig(sample=True, num_beams=2).problems()[0]
    assert DecodingConfig(top_k=5, top_p=0.5).problems() == [
        "top_k, top_p without sample: nothing is drawn; give --sample true too"
    ]
    assert DecodingConfig(sample=True, top_k=5).problems() == DecodingConfig(num_beams=4).problems() == []
