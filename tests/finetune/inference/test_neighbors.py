"""Nearest words, against a loop over the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.data.batch import pack
from finetune import neighbors
from finetune.inference.encoder import hidden_states, load_encoder
from tests.finetune import tiny

SENTENCE = "the apple river stone 天地 train"


def run(*arguments: str | Path | int) -> int:
    return neighbors.main([str(argument) for argument in arguments])


def rows(text: str) -> list[tuple[str, int, str, float]]:
    header, *cells = (line.split("\t") for line in text.splitlines())
    assert header == ["word", "rank", "neighbor", "cosine"]
    return [(word, int(rank), neighbor, float(cosine)) for word, rank, neighbor, cosine in cells]


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))


def test_by_the_table(bert, capsys):
    """A word of one token, and one of several, whose vector is their mean."""
    assert run("--model", bert, "--words", "River, stonetrain", "--top", 7) == 0
    found = rows(capsys.readouterr().out)
    assert [(word, rank) for word, rank, *_ in found] == [(w, r) for w in ("River", "stonetrain") for r in range(1, 8)]
    loaded = load_encoder(str(bert))
    tokenizer = loaded.builder.tokenizer
    for start, word in ((0, "River"), (7, "stonetrain")):
        ids, _ = tokenizer.encode([word])
        assert len(ids) == (1 if word == "River" else 2) or word != "River"
        vector = loaded.table[ids].mean(0)
        special = set(np.flatnonzero(tokenizer.all_special))
        others = {t: loaded.table[i] for i, t in enumerate(tokenizer.tokens) if i not in special and t != word.lower()}
        expected = sorted(((cosine(vector, v), t) for t, v in others.items()), reverse=True)[:7]
        assert [neighbor for *_, neighbor, _ in found[start : start + 7]] == [token for _, token in expected]
        assert [c for *_, c in found[start : start + 7]] == pytest.approx([c for c, _ in expected], abs=2e-6)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize(("word", "position"), [("river", 2), ("地", 5)])
def test_in_a_sentence(kind, word, position, request, tmp_path, capsys):
    """Candidates of one token, so that the place is that of the word; layer 1 as well as the last."""
    folder = request.getfixturevalue(kind)
    candidates = [*tiny.ENGLISH.split()[3:9], *"水火木", word]
    (tmp_path / "c.txt").write_text("\n".join([*candidates, "", candidates[0]]) + "\n", encoding="utf-8")
    arguments = ("--sentence", SENTENCE, "--candidates", tmp_path / "c.txt", "--top", 20, "--batch_size", 4)
    assert run("--model", folder, "--words", word, *arguments, "--layers", "[1]") == 0
    found = rows(capsys.readouterr().out)
    loaded = load_encoder(str(folder))
    sequences, _ = loaded.builder.build([SENTENCE.replace(word, each) for each in [word, *candidates[:-1]]])
    assert len({len(sequence.tokens) for sequence in sequences}) == 1
    starts = loaded.builder.tokenizer.encode(["the apple" if word == "river" else "the apple river stone 天"])[1][0]
    place = int(starts) + (kind == "bert")
    vectors = [hidden_states(loaded.model, pack([s.tokens]), [1])[place].detach().numpy() for s in sequences]
    expected = sorted(zip([cosine(vectors[0], v) for v in vectors[1:]], candidates, strict=False), reverse=True)
    assert [neighbor for *_, neighbor, _ in found] == [each for _, each in expected]
    assert [c for *_, c in found] == pytest.approx([c for c, _ in expected], abs=1e-5)


def test_candidates_from_the_vocabulary(bert, tmp_path):
    """The nearest by the table go into the sentence; no pieces of words do."""
    arguments = ("--sentence", SENTENCE, "--words", "river", "--output", tmp_path / "out.jsonl", "--top", 99)
    assert run("--model", bert, *arguments, "--preselect", 5) == 0
    few = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert run("--model", bert, *arguments, "--preselect", 0) == 0
    every = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(few) == 5 and 5 < len(every) <= 99
    assert {row["neighbor"] for row in few} <= {row["neighbor"] for row in every}
    assert not any(row["neighbor"].startswith(("##", "[")) or row["neighbor"] == "river" for row in every)
    assert [row["cosine"] for row in every] == sorted((row["cosine"] for row in every), reverse=True)


def test_a_word_in_another_word_is_not_the_word(bert):
    assert neighbors.main is not None
    from finetune.inference.neighbors import place_of

    assert place_of("river", "rivers and a river") == (13, 18)
    assert place_of("地", "天地人") == (1, 2)
    with pytest.raises(ValueError, match="does not hold the word 'bank'"):
        place_of("bank", "the embankment here")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--words", "sea", "--sentence", SENTENCE], "does not hold the word 'sea'; it must be there as it is written"),
        (
            ["--words", "apple", "--sentence", "apple " * 80],
            "the sentence has more than 64 tokens; give a shorter part",
        ),
        (["--words", ",", "--top", "0"], "words is empty; name at least one"),
        (["--words", "apple", "--candidates", "none.txt"], "--candidates none.txt: no such file"),
        (["--words", "apple", "--candidates", "empty.txt"], "--candidates empty.txt holds no words"),
        (["--words", "apple", "--sentence", SENTENCE, "--layers", "[5]"], "layers: 5 does not exist"),
        (["--words", "\u200b"], "has no token in the model's vocabulary"),
    ],
)
def test_refusals(arguments, problem, bert, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n\n")
    assert run("--model", bert, *arguments) == 2
    assert problem in capsys.readouterr().err
