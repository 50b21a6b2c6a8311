"""Runs over sources of every kind: what the shards keep of them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import lzma
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from preprocess.building.build import build_shards
from preprocess.building.settings import ShardSettings
from preprocess.cleaning.settings import CleaningSettings
from preprocess.corpus.corpus import CorpusSettings
from preprocess.manifest import Manifest, read_manifest
from preprocess.shards import ShardReader
from preprocess.words import segmenter_identity
from tests.preprocess.building.command_line import REPOSITORY, digests, write_text

# Source, label, first text and second text.
Row = tuple[str, str | None, str, str | None]

DUMP = """<mediawiki xml:lang="en">
  <siteinfo><namespaces><namespace key="0" case="first-letter" /></namespaces></siteinfo>
  <page>
    <title>the dog</title>
    <ns>0</ns>
    <revision><text xml:space="preserve">a ''dog'' is [[masking|the cat]]</text></revision>
  </page>
</mediawiki>
"""


def run(
    output: Path,
    tokenizer: Path,
    arguments: list[str],
    layout: tuple[str, ...] = ("auto",),
    text_field: tuple[str, ...] = ("text",),
    cleaning: CleaningSettings | None = None,
    **settings,
) -> tuple[Manifest, list[str]]:
    """Build shards; return their manifest and what the user is told."""
    told: list[str] = []
    manifest = build_shards(
        ShardSettings(
            corpus=CorpusSettings(arguments=arguments, layout=layout, text_field=text_field),
            cleaning=cleaning or CleaningSettings(),
            tokenizer=str(tokenizer),
            output=str(output),
            **{"heldout": 0.0, "shard_bytes": 4000, **settings},
        ),
        say=told.append,
    )
    assert manifest is not None
    return manifest, told


def read_rows(folder: Path, tokenizer: Path) -> list[Row]:
    """Return all documents of a folder as text; pieces are put together by hand."""
    tokens = tokenizer.read_text(encoding="utf-8").split()
    manifest = read_manifest(folder)
    rows: list[Row] = []
    for entry in manifest.shards:
        arrays = ShardReader(folder / entry.file, entry).arrays()
        bounds = itertools.pairwise(arrays.document_offsets.tolist())
        for index, (start, stop) in enumerate(bounds):
            ids = arrays.tokens[start:stop].tolist()
            cut = stop - start if arrays.second_offsets is None else int(arrays.second_offsets[index]) - start
            texts = [" ".join(tokens[token] for token in part).replace(" ##", "") for part in (ids[:cut], ids[cut:])]
            label = None
            if arrays.document_label is not None and arrays.document_label[index] >= 0:
                label = manifest.labels[arrays.document_label[index]]
            rows.append((manifest.sources[arrays.document_source[index]].name, label, texts[0], texts[1] or None))
    return rows


def test_mixed_sources_keep_their_names(vocabulary_file: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra `parquet`)")
    pytest.importorskip("mwparserfromhell", reason="needs mwparserfromhell (the extra `wiki`)")
    import pyarrow

    (tmp_path / "web.jsonl").write_text(
        "".join(json.dumps({"body": {"en": f"the cat {word}"}, "id": 3}) + "\n" for word in ("one", "two"))
    )
    parquet.write_table(pyarrow.table({"content": ["the dog", None, "masking x"]}), tmp_path / "rows.parquet")
    (tmp_path / "lines.txt").write_text("a line\nand a line\n")
    (tmp_path / "blocks.txt").write_text("first one\nstill it\n\nsecond\none\n")
    (tmp_path / "dump.xml").write_text(DUMP)
    arguments = [
        f"{name}={tmp_path / file}"
        for name, file in [
            ("web", "web.jsonl"),
            ("rows", "rows.parquet"),
            ("lines", "lines.txt"),
            ("blocks", "blocks.txt"),
            ("wiki", "dump.xml"),
        ]
    ]
    expected = [
        ("web", None, "the cat one", None),
        ("web", None, "the cat two", None),
        ("rows", None, "the dog", None),
        ("rows", None, "masking x", None),
        ("lines", None, "a line", None),
        ("lines", None, "and a line", None),
        ("blocks", None, "first one still it", None),
        ("blocks", None, "second one", None),
        ("wiki", None, "the dog a dog is the cat", None),
    ]
    found = []
    for workers in (1, 3):
        output = tmp_path / str(workers)
        manifest, told = run(
            output,
            vocabulary_file,
            arguments,
            layout=("lines=document_per_line", "blocks=sentence_per_line"),
            text_field=("web=body.en", "rows=content"),
            workers=workers,
            shard_bytes=40,
        )
        assert read_rows(output, vocabulary_file) == expected
        layouts = {source.name: (source.layout, source.num_documents) for source in manifest.sources}
        assert layouts == {
            "web": ("jsonl", 2),
            "rows": ("parquet", 2),
            "lines": ("document_per_line", 2),
            "blocks": ("sentence_per_line", 2),
            "wiki": ("mediawiki", 1),
        }
        assert [file["text_field"] for source in manifest.sources[:2] for file in source.files] == [
            "body.en",
            "content",
        ]
        assert any(line.startswith("wiki: 1 documents, ") for line in told)
        found.append(digests(output))
    assert found[0] == found[1]


def test_labels_and_second_texts(vocabulary_file: Path, tmp_path: Path) -> None:
    (tmp_path / "reviews.tsv").write_text("label\ttext_a\n" + "1\tthe cat\n0\tthe dog\n" * 30)
    (tmp_path / "pairs.tsv").write_text("label\ttext_a\ttext_b\n10\tfirst one\tmasking\n2\tthe x\tthe y\n")
    (tmp_path / "free.txt").write_text("no label here\n" * 3)
    arguments = [
        f"{path.stem}={path}" for path in (tmp_path / "reviews.tsv", tmp_path / "pairs.tsv", tmp_path / "free.txt")
    ]
    layout = ("reviews=labelled_tsv", "pairs=labelled_tsv", "free=document_per_line")
    manifest, _ = run(tmp_path / "out", vocabulary_file, arguments, layout=layout, shard_bytes=100)
    assert manifest.labels == ["0", "1", "2", "10"]
    assert read_rows(tmp_path / "out", vocabulary_file) == [
        *([("reviews", "1", "the cat", None), ("reviews", "0", "the dog", None)] * 30),
        ("pairs", "10", "first one", "masking"),
        ("pairs", "2", "the x", "the y"),
        *([("free", None, "no label here", None)] * 3),
    ]


def test_pairs_have_second_texts(vocabulary_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("the cat. a dog.\tmasking. x.\nthe token\tthe mask\n" * 5)
    run(tmp_path / "out", vocabulary_file, [f"pairs={tmp_path / 'a.tsv'}"], layout=("paired_tsv",))
    expected = [("pairs", None, "the cat . a dog .", "masking . x ."), ("pairs", None, "the token", "the mask")] * 5
    assert read_rows(tmp_path / "out", vocabulary_file) == expected


def compressed(kind: str, data: bytes) -> bytes:
    if kind == "zst":
        zstandard = pytest.importorskip("zstandard", reason="needs zstandard (the extra `zstd`)")
        return zstandard.ZstdCompressor().compress(data)
    return {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}[kind](data)


@pytest.mark.parametrize("kind", ["gz", "zst", "xz", "bz2"])
def test_compressed_files_give_the_same_shards(vocabulary_file: Path, tmp_path: Path, kind: str) -> None:
    data = write_text(tmp_path / "a.txt", 2000).read_bytes()
    middle = data.index(b"\n\n", len(data) // 2) + 2
    (tmp_path / f"a.txt.{kind}").write_bytes(compressed(kind, data[:middle]) + compressed(kind, data[middle:]))
    found = []
    for name, workers in (("a.txt", 1), (f"a.txt.{kind}", 1), (f"a.txt.{kind}", 3)):
        output = tmp_path / f"{name}-{workers}"
        run(output, vocabulary_file, [str(tmp_path / name)], workers=workers, shard_bytes=30_000, heldout=0.2)
        found.append(digests(output))
        told = json.loads((output / "manifest.json").read_text())
        assert [file["name"] for source in told["sources"] for file in source["files"]] == [name]
    assert found[1] == found[2]
    manifests = {"manifest.json", "heldout/manifest.json"}
    assert {name for name in found[0] if found[0][name] != found[1][name]} <= manifests
    assert len(found[0]) > 15


def test_held_out_documents_are_the_same_in_every_layout(vocabulary_file: Path, tmp_path: Path) -> None:
    """And the independent rule of the format page chooses them."""
    texts = [f"the cat {chr(97 + index % 26)}{chr(97 + index // 26)} masking" for index in range(300)]
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "crlf.txt").write_bytes("\r\n".join(f" {text} \t" for text in texts).encode())
    (tmp_path / "blocks.txt").write_text("\n\n".join(texts))
    (tmp_path / "objects.jsonl").write_text("".join(json.dumps({"text": f"{text}\n"}) + "\n" for text in texts))
    expected = {
        text
        for text in texts
        if int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64 < 0.3
    }
    assert 60 < len(expected) < 120
    for name, layout in [
        ("lines.txt", "document_per_line"),
        ("crlf.txt", "document_per_line"),
        ("blocks.txt", "sentence_per_line"),
        ("objects.jsonl", "jsonl"),
    ]:
        output = tmp_path / f"out-{name}"
        run(output, vocabulary_file, [str(tmp_path / name)], layout=(layout,), heldout=0.3)
        held_out = {row[2] for row in read_rows(output / "heldout", vocabulary_file)}
        assert held_out == {" ".join(text.split()) for text in expected}
        assert len(read_rows(output, vocabulary_file)) == len(texts) - len(expected)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_standard_input(vocabulary_file: Path, tmp_path: Path, workers: str) -> None:
    text = write_text(tmp_path / "a.txt", 2000)
    (tmp_path / "cwd").mkdir()
    run(tmp_path / "file", vocabulary_file, [f"stdin={text}"], shard_bytes=30_000)
    command = [sys.executable, "-m", "preprocess", "shards", "--corpus", "-", "--tokenizer", str(vocabulary_file)]
    command += ["--output", str(tmp_path / "out"), "--shard_bytes", "30000", "--heldout", "0", "--workers", workers]
    for told in ("shards", "is complete: the same settings and inputs made it"):
        with open(text, "rb") as file:
            done = subprocess.run(
                command,
                cwd=tmp_path / "cwd",
                env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
                stdin=file,
                capture_output=True,
                text=True,
                check=True,
            )
        assert told in done.stdout
    found, expected = digests(tmp_path / "out"), digests(tmp_path / "file")
    assert {name for name in expected if found[name] != expected[name]} <= {"manifest.json"}
    assert found.keys() == expected.keys()
    assert list((tmp_path / "cwd").iterdir()) == []


CLEANED = [  # text, and why it is dropped
    ("the cat masking the dog", None),
    ("x", "documents_too_short"),
    ("the dog\x07 and the cat", "documents_with_control_characters"),
    ("the cat masking the dog", "documents_duplicate"),
    ("a secret token for the dog", "documents_matching_a_drop_pattern"),
    ("the cat " * 40, "documents_too_long"),
    ("no animal here at all", "documents_matching_no_keep_pattern"),
    ("中文字大人中文字大人 dog", "documents_with_too_little_Latin"),
    ("the dog masking the cat", None),
]


def test_every_drop_is_counted_told_and_written_aside(vocabulary_file: Path, tmp_path: Path) -> None:
    """In the order of the input, whatever the number of workers."""
    texts = [text for text, _ in CLEANED] * 40
    expected = Counter({reason: 40 for _, reason in CLEANED if reason}) + Counter(documents_duplicate=2 * 39)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cleaning = CleaningSettings(
        control_characters="drop",
        min_characters=10,
        max_characters=200,
        drop_matching=("secret",),
        keep_matching=("cat", "dog"),
        min_script_share=("Latin:0.5",),
        deduplicate="documents",
    )
    aside = []
    for workers in (1, 3):
        dropped = tmp_path / "deep" / "er" / f"{workers}.jsonl"
        manifest, told = run(
            tmp_path / str(workers),
            vocabulary_file,
            [str(tmp_path / "a.jsonl")],
            cleaning=cleaning,
            workers=workers,
            shard_bytes=500,
            dropped=str(dropped),
        )
        records = [json.loads(line) for line in dropped.read_text().splitlines()]
        counts = Counter(record["reason"] for record in records)
        assert (
            counts
            == expected
            == {
                name.removeprefix("dropped_"): count
                for name, count in manifest.counts.items()
                if name.startswith("dropped_") and count
            }
        )
        assert manifest.counts["documents"] == 2
        assert [line for line in told if line.startswith("dropped ")] == [
            f"dropped {count} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items())
        ]
        for record in records:
            assert record["file"] == str(tmp_path / "a.jsonl")
            line = (tmp_path / "a.jsonl").read_bytes()[record["offset"] :].split(b"\n")[0]
            assert json.loads(line)["text"].strip() == record["text"]
        assert [record["offset"] for record in records] == sorted(record["offset"] for record in records)
        aside.append(dropped.read_bytes())
    assert aside[0] == aside[1]
    assert digests(tmp_path / "1") == digests(tmp_path / "3")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("texts/a.txt", "lies in the corpus, so the next run would read it"),
        ("texts/new.jsonl", "lies in the corpus, so the next run would read it"),
        ("link.txt", "is a file of the corpus, and would be overwritten"),
        ("out/dropped.jsonl", "lies in --output .*out; give a file elsewhere"),
        ("texts", "is a folder; give a file"),
    ],
)
def test_dropped_goes_nowhere_where_it_does_harm(
    vocabulary_file: Path, tmp_path: Path, place: str, message: str
) -> None:
    (tmp_path / "texts").mkdir()
    text = tmp_path / "texts" / "a.txt"
    text.write_text("the cat\nthe dog\n")
    (tmp_path / "link.txt").symlink_to(text)
    arguments = [str(text) if place == "link.txt" else f"mine={tmp_path / 'texts'}"]
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", vocabulary_file, arguments, dropped=str(tmp_path / place))
    assert text.read_text() == "the cat\nthe dog\n" and not (tmp_path / "out").exists()


def test_missing_segmenter(vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="word_segmenter jieba needs a package: pip install jieba"):
        run(tmp_path / "out", vocabulary_file, ["x"], word_segmenter="jieba")


def test_a_folder_is_no_segmenter(vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes a folder of that name beside the command for a package."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "jieba":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ValueError, match="word_segmenter jieba needs a package: pip install jieba"):
        run(tmp_path / "out", vocabulary_file, ["x"], word_segmenter="jieba")
    with pytest.raises(ValueError, match="word_segmenter jieba needs a package: pip install jieba"):
        segmenter_identity("jieba")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("missing", "settings", "message"),
    [
        ("hdf5plugin", {}, "compression zstd needs a package: pip install hdf5plugin, or use --compression gzip"),
        ("sentencex", {}, "split_sentences needs the package sentencex: pip install sentencex"),
        (
            "regex",
            {"cleaning": CleaningSettings(min_script_share=("Han:0.5",))},
            "min_script_share needs the package regex: pip install regex",
        ),
        (
            "",
            {"word_segmenter": "rjieba", "user_dictionary": "nowhere.txt"},
            r"user_dictionary is 'nowhere\.txt': there is no such file",
        ),
    ],
)
def test_what_is_missing_is_told_first(
    vocabulary_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, settings: dict, message: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == missing else real(name, *rest))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", vocabulary_file, ["x"], **settings)
    assert not (tmp_path / "out").exists()


def test_sentences_of_pairs_are_not_compared(vocabulary_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("the cat\tthe dog\nthe cat\tthe cat\n")
    arguments = [str(tmp_path / "a.tsv")]
    with pytest.raises(ValueError, match=r"this corpus has second texts; give --deduplicate documents, which compares"):
        run(
            tmp_path / "out",
            vocabulary_file,
            arguments,
            layout=("paired_tsv",),
            cleaning=CleaningSettings(deduplicate="sentences"),
        )
    assert not (tmp_path / "out").exists()
    manifest, _ = run(
        tmp_path / "out",
        vocabulary_file,
        arguments,
        layout=("paired_tsv",),
        cleaning=CleaningSettings(deduplicate="documents"),
    )
    assert manifest.counts["documents"] == 2
