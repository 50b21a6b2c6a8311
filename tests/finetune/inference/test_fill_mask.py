"""Masks are filled as transformers' pipeline does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune import fill_mask
from finetune.inference.mask_filling import MaskFiller, load_mask_filler
from tests.finetune import tiny

TEXTS = ["apple [MASK] cloud", "天[MASK]人 [MASK] dance?", "[MASK]", "no mask", "[MASK] " * 3 + "earth"]


@pytest.fixture(scope="module")
def filler(bert: Path) -> MaskFiller:
    """Of the tiny BERT."""
    return load_mask_filler(str(bert))


@pytest.mark.parametrize("fields", [tiny.BERT, tiny.PRE_NORM_BERT], ids=["bert", "pre-norm-bert"])
def test_transformers_pipeline_gives_the_same(fields: dict[str, object], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny.write_pretrained(tmp_path / "model", fields)
    pipeline = transformers.pipeline("fill-mask", model=str(folder), top_k=4, device="cpu")
    ours = load_mask_filler(str(folder))
    texts = [text for text in TEXTS if "[MASK]" in text]
    for text, masks in zip(texts, ours.fill(ours.masked(texts), top_n=4, batch_size=2), strict=True):
        theirs = pipeline(text)
        theirs = theirs if isinstance(theirs[0], list) else [theirs]
        assert len(masks) == len(theirs) == text.count("[MASK]")
        for mask, expected in zip(masks, theirs, strict=True):
            assert mask.tokens == [ours.tokenizer.tokens[one["token"]] for one in expected]
            assert mask.probabilities == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_another_mark_for_masks(filler: MaskFiller) -> None:
    own, other = filler.masked(["天[MASK]人"])[0], filler.masked(["天___人"], "___")[0]
    assert own.tokens.tolist() == other.tokens.tolist() and own.places == other.places == [2]
    literal = filler.masked(["天[MASK]人"], "___")[0]  # is text then
    assert literal.places == []


def test_a_word_is_masked_as_a_whole_and_by_the_texts_number(filler: MaskFiller) -> None:
    text = "apple bread underland 天地, zebra"
    continues = filler.tokenizer.continuation[filler.tokenizer.encode([text])[0]]
    assert continues.any()
    words = filler.with_random_words([text] * 60, seed=3)
    seen = {made.word for made in words}
    whole = {"apple", "bread", "天", "地", "zebra"}
    assert whole < seen and not {"[UNK]", None} & seen
    for made in words:
        places = np.array(made.places)
        assert places.tolist() == list(range(places[0], places[-1] + 1))
        assert not continues[places[0] - 1] and (places[-1] >= len(continues) or not continues[places[-1]])
        assert continues[places[1:] - 1].all()
    assert max(len(made.places) for made in words) > 1
    alone = [filler.with_random_words([text], seed=3, first_number=number)[0] for number in range(60)]
    assert [made.places for made in alone] == [made.places for made in words]
    assert [made.places for made in filler.with_random_words([text] * 60, seed=4)] != [made.places for made in words]
    empty, comma = filler.with_random_words(["", ","])
    assert empty.places == [] and empty.word is None and comma.word == "[UNK]"


def test_masks_beyond_the_models_length_are_counted(filler: MaskFiller) -> None:
    (made,) = filler.masked(["apple " * 61 + "[MASK] [MASK]"])
    assert len(made.tokens) == 64 and len(made.places) == 1 and made.num_cut == 1 and made.truncated


def run(*arguments: str | Path) -> int:
    return fill_mask.main([str(argument) for argument in arguments])


def test_the_command(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("\n".join(TEXTS) + "\n")
    assert run("--model", bert, "--input", source, "--output", output, "--top_n", "2", "--batch_size", "2") == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["text"], line["mask"]) for line in lines] == [(1, 1), (2, 1), (2, 2), (3, 1), (5, 1), (5, 2), (5, 3)]
    assert "7 masks of 5 texts; 1 texts without a mask" in capsys.readouterr().err
    assert run("--model", bert, "--text", TEXTS[0], "--top_n", "2") == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split("\t") == ["text", "mask", "token_1", "probability_1", "token_2", "probability_2"]
    assert line.split("\t")[2] == lines[0]["token_1"]
    table = tiny.write_table(tmp_path / "in.tsv", ["label", "review"], [("1", "apple bread"), ("0", "zebra")])
    arguments = ("--model", bert, "--input", table, "--output", tmp_path / "out.tsv", "--random_word")
    assert run(*arguments, "--column", "text", "--columns", "text=review", "--top_n", "1") == 0
    header, first, second = (tmp_path / "out.tsv").read_text().splitlines()
    assert header == "text\tmask\tword\ttoken_1\tprobability_1"
    assert first.split("\t")[2] in ("apple", "bread") and second.split("\t")[2] == "zebra"


def test_refusals(bert: Path, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", gpt2, "--top_n", "0", "--seed", "-1", "--mask", "") == 2
    told = capsys.readouterr().err
    for part in (
        "is a GPT-2, which sees nothing behind a mask; give a BERT",
        "top_n is 0; it must be at least 1",
        "seed is -1",
        "mask is empty",
        "give --text TEXT, or --input FILE with --output FILE",
    ):
        assert part in told
    assert run("--model", bert, "--text", "a", "--output", tmp_path / "x") == 2
    assert "the result of --text is printed; leave out --output" in capsys.readouterr().err
    assert run("--model", bert, "--input", tmp_path / "none.txt") == 2
    assert "--input needs --output" in capsys.readouterr().err
    assert run("--model", bert, "--input", tmp_path / "none.txt", "--output", tmp_path / "x", "--format", "csv") == 2
    assert "--columns and --format are for tables; give --column" in capsys.readouterr().err
    assert run("--model", bert, "--input", tmp_path / "none.txt", "--output", tmp_path / "x") == 2
    assert "none.txt: no such file" in capsys.readouterr().err
