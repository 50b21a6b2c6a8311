"""``from finetune import load``: what the tools write, as Python objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune import load, predict
from finetune.config.decoding import DecodingConfig
from finetune.inference.prediction import CHUNK_RECORDS
from tests.finetune import tiny


@pytest.fixture(scope="module")
def classifier(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a short fine-tuning."""
    folder = tmp_path_factory.mktemp("library")
    file = tiny.write_table(folder / "train.tsv", ["label", "text_a"], tiny.single_rows(16))
    tiny.finetune(tiny.options(bert, file, folder / "run", "--epochs", "2"))
    return folder / "run"


def test_predictions_are_those_of_the_tool(classifier: Path, tmp_path: Path) -> None:
    assert CHUNK_RECORDS > 20
    texts = [tiny.sentence(number, number * 5 % 17) for number in range(20)]
    file = tiny.write_table(tmp_path / "in.tsv", ["text_a"], [(text,) for text in texts])
    arguments = ["--model", classifier, "--input", file, "--output", tmp_path / "out.jsonl", "--probabilities"]
    assert predict.main([str(argument) for argument in arguments]) == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    model = load(classifier)
    found = model.predict(texts, probabilities=True)
    assert [answer["label"] for answer in found] == [answer["label"] for answer in written]
    for mine, theirs in zip(found, written, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["probability_yes"] == pytest.approx(theirs["probability_yes"], abs=1e-6)
    assert model.predict([{"text_a": texts[1], "id": 7}])[0]["label"] == found[1]["label"]
    assert model.predict([]) == []


def test_bad_records_and_folders(classifier: Path, gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the records: no column text_a"):
        load(classifier).predict([{"words": "apple"}])
    with pytest.raises(ValueError, match=r"^record 2: .*text_a"):
        load(classifier).predict(["apple", {"words": "apple"}])
    with pytest.raises(ValueError, match=r"found one text; put it in \[ \]"):
        load(classifier).predict("apple")
    with pytest.raises(ValueError, match=r"record 2: expected a text, or an object such as .* found None"):
        load(classifier).predict(["apple", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="GPT-2"):
        load(gpt2).fill_mask(["apple [MASK]"])
    with pytest.raises(ValueError, match="layers is empty"):
        load(classifier).embed(["apple"], layers=[])
    for fields, problem in (
        ({"num_beams": 2, "sample": True}, "a beam search does not draw"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ):
        with pytest.raises(ValueError, match=problem):
            load(gpt2).generate(["apple"], DecodingConfig(**fields))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_texts is 2; give --num_beams 2"):
        load(gpt2).generate(["apple"], num_texts=2)


def test_vectors_neighbours_masks_and_texts(bert: Path, gpt2: Path) -> None:
    model = load(str(bert))
    vectors = model.embed(["apple bread", "水 火"])
    assert vectors.shape == (2, 32) and vectors.dtype == np.float32
    assert model.embed([]).shape == (0, 32)
    assert np.array_equal(model.embed(["水 火"], pooling="first", layers=[0]).shape, (1, 32))
    nearest = model.neighbors("apple", top=3)
    assert len(nearest) == 3 and nearest[0].cosine >= nearest[1].cosine >= nearest[2].cosine
    assert len(model.neighbors("apple", sentence="an apple under a tree", top=2)) == 2
    (masks,) = model.fill_mask(["apple [MASK] cloud"], top=4)
    assert len(masks) == 1 and len(masks[0].tokens) == 4
    writer = load(gpt2)
    decoding = DecodingConfig(max_new_tokens=5, repetition_penalty=1.5)
    written = writer.generate(["apple bread", "cloud"], decoding)
    assert [len(texts) for texts in written] == [1, 1]
    assert writer.generate(["cloud"], decoding)[0][0].text == written[1][0].text
