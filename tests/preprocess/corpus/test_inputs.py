"""Inputs and blocks: against a splitter that reads everything."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.building.encoding import encode_block
from preprocess.corpus.detection import DOCUMENT_PER_LINE, LAYOUTS, SENTENCE_PER_LINE
from preprocess.corpus.inputs import Corpus, InputFile, open_corpus
from preprocess.tokenizer import Tokenizer

MARK = b"\xef\xbb\xbf"
PIECES = [
    "a",
    "bc",
    "é",
    "中",
    "😀",
    " ",
    "\t",
    "\r",
    "\n",
    "\n",
    "\n\n",
    "\r\n",
    "\r\n\r\n",
    "\n \n",
    "\x0b",
    "\u3000",
    "\x85",
]


def split_documents(data: bytes, layout: str) -> list[tuple[int, list[bytes]]]:
    """Return (first byte, lines) of each document, by reading the whole file line by line."""
    position = len(MARK) if data.startswith(MARK) else 0
    documents: list[tuple[int, list[bytes]]] = []
    inside = False
    for line in data[position:].split(b"\n"):
        blank = not line.strip(b" \t\r\x0b\x0c")
        if not blank and (layout == DOCUMENT_PER_LINE or not inside):
            documents.append((position, []))
        if not blank:
            documents[-1][1].append(line.strip(b"\r"))
        inside = not blank
        position += len(line) + 1
    return documents


def corpus_of(folder: Path, contents: list[tuple[bytes, str]]) -> Corpus:
    """Write files and return their corpus, one source each."""
    files = []
    start = 0
    for index, (data, layout) in enumerate(contents):
        path = folder / f"{index}.txt"
        path.write_bytes(data)
        files.append(
            InputFile(path=str(path), name=path.name, source=index, start=start, num_bytes=len(data), layout=layout)
        )
        start += len(data)
    return Corpus(tuple(file.name for file in files), tuple(files))


file_contents = st.tuples(
    st.builds(
        lambda mark, pieces: mark + "".join(pieces).encode(),
        st.sampled_from([b"", MARK]),
        st.lists(st.sampled_from(PIECES), max_size=40),
    ),
    st.sampled_from(LAYOUTS),
)


@settings(max_examples=400, deadline=None)
@given(contents=st.lists(file_contents, min_size=1, max_size=3), block_bytes=st.integers(1, 60))
def test_blocks_hold_the_documents_that_begin_in_them(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[bytes, str]], block_bytes: int
) -> None:
    corpus = corpus_of(tmp_path_factory.mktemp("blocks"), contents)
    expected: dict[int, list[list[bytes]]] = {}
    for file, (data, layout) in zip(corpus.files, contents, strict=True):
        for first, lines in split_documents(data, layout):
            expected.setdefault((file.start + first) // block_bytes, []).append(lines)
    for block in range(corpus.num_blocks(block_bytes)):
        found = []
        for file, begin, data in corpus.block(block, block_bytes):
            assert contents[file.source][0][begin : begin + len(data)] == data
            found += [lines for _, lines in split_documents(data, file.layout)]
        assert found == expected.get(block, [])


@settings(max_examples=150, deadline=None)
@given(contents=st.lists(file_contents, min_size=1, max_size=2), block_bytes=st.integers(1, 60))
def test_encoded_blocks_equal_documents_encoded_alone(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    contents: list[tuple[bytes, str]],
    block_bytes: int,
) -> None:
    corpus = corpus_of(tmp_path_factory.mktemp("blocks"), contents)
    expected = []
    for index, (data, layout) in enumerate(contents):
        for _, lines in split_documents(data, layout):
            ids, counts = tokenizer.encode([line.decode() for line in lines])
            sentences = [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1]) if len(part)]
            if sentences:
                expected.append((index, sentences))
    found = []
    for block in range(corpus.num_blocks(block_bytes)):
        encoded = encode_block(corpus, block, block_bytes, tokenizer.encoder, heldout=0)
        arrays = encoded.kept.arrays()
        for index, (start, stop) in enumerate(itertools.pairwise(arrays.document_offsets.tolist())):
            inner = [offset for offset in arrays.sentence_offsets.tolist() if start <= offset <= stop]
            sentences = [arrays.tokens[a:b].tolist() for a, b in itertools.pairwise(inner)]
            found.append((int(arrays.document_source[index]), sentences))
    assert found == expected


@pytest.mark.parametrize("long_line", [False, True])
def test_pieces_do_not_change_the_result(tmp_path: Path, tokenizer: Tokenizer, monkeypatch, long_line: bool) -> None:
    import preprocess.building.encoding as block_encoding

    text = "the token. masking 中文\nrunning cat\n\n" * 50 + "the cat, " * 200 + "x" * 500 + "\n"
    corpus = corpus_of(tmp_path, [(text.encode(), SENTENCE_PER_LINE)])
    whole = encode_block(corpus, 0, 1 << 20, tokenizer.encoder, heldout=0).kept.arrays()
    monkeypatch.setattr(block_encoding, "PIECE_BYTES", 64)
    monkeypatch.setattr(block_encoding, "LONG_LINE_BYTES", 100 if long_line else 1 << 20)
    seen: list[int] = []
    pieces = encode_block(corpus, 0, 1 << 20, tokenizer.encoder, 0, seen.append).kept.arrays()
    assert sum(seen) == len(text.encode())
    assert len(seen) > (60 if long_line else 20)
    for first, second in zip(whole, pieces, strict=True):
        assert first.tolist() == second.tolist()


def test_dropped_things_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "the cat\n\u3000\n\u200b\n\n\u3000\n\u3000\n\nthe dog\n"
    corpus = corpus_of(tmp_path, [(text.encode(), SENTENCE_PER_LINE)])
    encoded = encode_block(corpus, 0, 1 << 20, tokenizer.encoder, heldout=0)
    assert encoded.kept.counts()[:2] == (2, 2)
    assert encoded.dropped == {"documents_without_tokens": 1, "sentences_without_tokens": 4}


def test_held_out_documents_follow_their_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = [f"the token number {'abcdefghij'[n % 10] * (1 + n // 10)}" for n in range(400)]
    data = "\n\n".join([*documents, *documents]).encode()
    corpus = corpus_of(tmp_path, [(data, SENTENCE_PER_LINE), (data.replace(b"\n", b"\r\n"), SENTENCE_PER_LINE)])
    encoded = encode_block(corpus, 0, 1 << 20, tokenizer.encoder, heldout=0.2)
    held, kept = encoded.heldout.counts(), encoded.kept.counts()
    assert held[0] + kept[0] == 1600
    assert held[0] % 4 == 0  # every copy goes the same way
    assert 0.12 < held[0] / 1600 < 0.28
    held_documents = {
        encoded.heldout.arrays().tokens[a:b].tobytes()
        for a, b in itertools.pairwise(encoded.heldout.arrays().document_offsets)
    }
    kept_arrays = encoded.kept.arrays()
    kept_documents = {kept_arrays.tokens[a:b].tobytes() for a, b in itertools.pairwise(kept_arrays.document_offsets)}
    assert not held_documents & kept_documents


def test_inputs_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "b/sub/1.txt", "b/Z.txt", "b/.hidden", "b/.git/x", "a.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n\nmore\n")
    corpus, reports = open_corpus([str(tmp_path / name) for name in ("b", "*.txt", "a.txt", "b/")])
    assert corpus.source_names == ("b", tmp_path.name, "a", "b-2")
    in_b = ["10.txt", "2.txt", "Z.txt", "sub/1.txt"]
    assert [file.name for file in corpus.files] == [*in_b, "a.txt", "c.txt", "a.txt", *in_b]
    assert [file.source for file in corpus.files] == [0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    assert corpus.files[-1].start + corpus.files[-1].num_bytes == corpus.num_bytes
    assert reports


@pytest.mark.parametrize(
    ("text", "layout", "told"),
    [
        ("one\ntwo\n\nthree\n", SENTENCE_PER_LINE, "2 documents, 3 lines (sentences), 1.5 lines per document"),
        (
            "one\r\ntwo\r\n \t\r\nthree\r\n",
            SENTENCE_PER_LINE,
            "2 documents, 3 lines (sentences), 1.5 lines per document",
        ),
        ("one\ntwo\nthree\n\n\n", DOCUMENT_PER_LINE, "3 documents, 3 lines (sentences), 1.0 lines per document"),
        ("one\n" * 50_000 + "\none", DOCUMENT_PER_LINE, "50,001 documents, 50,001 lines (sentences)"),
        ("one\n" * 500 + "\n" + "one\n" * 500, SENTENCE_PER_LINE, "500.0 lines per document"),
        ("one\n" * 501 + "\n" + "one\n" * 501, DOCUMENT_PER_LINE, "1,002 documents"),
        ("a single line", DOCUMENT_PER_LINE, "1 documents, 1 lines (sentences)"),
    ],
)
def test_layouts_are_detected(tmp_path: Path, text: str, layout: str, told: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(text.encode())
    corpus, reports = open_corpus([str(path)])
    assert corpus.files[0].layout == layout
    assert told in reports[0]
    assert f"{len(text.encode()):,} bytes, {layout} (detected)" in reports[0]


def test_a_stray_blank_line_is_told(tmp_path: Path) -> None:
    """One blank line in a file of a document per line does not make two documents of it."""
    path = tmp_path / "x.txt"
    path.write_text("one document\n" * 9750 + "\n" + "one document\n" * 9750)
    corpus, reports = open_corpus([str(path)])
    assert corpus.files[0].layout == DOCUMENT_PER_LINE
    assert "19,500 documents" in reports[0]
    assert len(reports) == 2
    assert "note: blank lines were taken as accidents in" in reports[1]
    assert "blocks of 9,750.0 lines on average" in reports[1] and "--layout sentence_per_line makes" in reports[1]
    assert len(open_corpus([str(path)], DOCUMENT_PER_LINE)[1]) == 1  # the user knows
    (tmp_path / "y.txt").write_text("one document\n" * 9000 + "\n\none document\n")
    assert f"in 2 files, such as {path}: " in open_corpus([str(tmp_path)])[1][-1]


def test_chapters_are_documents(shared_data: Path) -> None:
    """Chapters of Chinese histories, 238 sentences each on average."""
    corpus, reports = open_corpus([str(shared_data / "raw_zh_modern_histories" / "modern.txt")])
    assert corpus.files[0].layout == SENTENCE_PER_LINE
    assert len(reports) == 1


def test_many_files_are_summed_up(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("one\ntwo\n\nthree\n" if number % 3 else "one\ntwo\n")
    _, reports = open_corpus([str(tmp_path)])
    assert len(reports) == 2
    assert reports[0].startswith(
        "20 files: 300 bytes, sentence_per_line (detected): 40 documents, 60 lines (sentences)"
    )
    assert reports[1].startswith("10 files: 80 bytes, document_per_line (detected): 20 documents, 20 lines (sentences)")


def test_layout_that_contradicts_the_file(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n" * 3000)
    with pytest.raises(ValueError, match=r"sentence_per_line does not fit .*lines.txt.*3,000 lines.*no blank line"):
        open_corpus([str(lines)], SENTENCE_PER_LINE)
    blocks = tmp_path / "blocks.txt"
    blocks.write_text("one\ntwo\nthree\n\n" * 100)
    with pytest.raises(ValueError, match=r"document_per_line does not fit .*100 blocks of 3.0 lines.*remove the blank"):
        open_corpus([str(blocks)], DOCUMENT_PER_LINE)
    one = tmp_path / "one.txt"
    one.write_text("one\ntwo\n")
    assert open_corpus([str(one)], SENTENCE_PER_LINE)[0].files[0].layout == SENTENCE_PER_LINE
    one.write_text("one\n" * 9000 + "\n" + "one\n" * 9000)  # a blank line by accident: the user knows
    assert open_corpus([str(one)], DOCUMENT_PER_LINE)[0].files[0].layout == DOCUMENT_PER_LINE


def test_inputs_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere.txt"):
        open_corpus([str(tmp_path / "nowhere.txt")])
    with pytest.raises(ValueError, match=r"no file matches the pattern .*\*\.md"):
        open_corpus([str(tmp_path / "*.md")])
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*folder holds no file"):
        open_corpus([str(tmp_path / "folder")])
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"the corpus is empty: no text in .*empty.txt"):
        open_corpus([str(tmp_path / "empty.txt")])
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match=r"cannot read .*broken.txt: No such file"):
        open_corpus([str(tmp_path)])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"cannot read .*pipe: it is no ordinary file"):
        open_corpus([str(tmp_path / "pipe")])


@pytest.mark.parametrize("layout", ["auto", *LAYOUTS])
def test_old_macintosh_line_ends_are_refused(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\rtwo\r\rthree\r" * 5)
    message = r"x.txt has the line ends of old Macintosh files: .*first 75 bytes.*: tr '\\r' '\\n' < .*x.txt > NEW_FILE"
    with pytest.raises(ValueError, match=message):
        open_corpus([str(path)], layout)
    path.write_bytes(b"one\r" * (1 << 19) + b"\n")
    with pytest.raises(ValueError, match="first 1,048,576 bytes"):
        open_corpus([str(path)], layout)
    path.write_bytes(b"one\rtwo\r\n")
    assert open_corpus([str(path)], layout)[0].num_bytes == 9


def test_a_binary_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"one\rtwo\0")
    with pytest.raises(ValueError, match=r"x.bin is not text: NUL byte at offset 7 \(line 1\)"):
        open_corpus([str(tmp_path)])


def test_linked_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.txt").write_text("text\n")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "data")
    corpus, _ = open_corpus([str(tmp_path / "corpus")])
    assert [file.name for file in corpus.files] == ["link/x.txt"]
    (tmp_path / "data" / "back").symlink_to(tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"is reached twice under .*corpus: symbolic links lead back"):
        open_corpus([str(tmp_path / "corpus")])


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one\n")
    corpus, _ = open_corpus([str(path)])
    path.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"x.txt had 4 bytes and now has 8: it changes while it is read"):
        list(corpus.block(0, 100))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\n\ntwo\0\n", r"x.txt is not text: NUL byte at offset 8 \(line 3\)"),
        (MARK + b"one\n\ntw\xff\n", r"x.txt is not UTF-8: byte 0xff at offset 10 \(line 3\); convert it.*iconv"),
        (b"\x1f\x8b\x08\xff", r"is not UTF-8.*this is a gzip file: unpack it first"),
        ("one\n".encode("utf-16"), r"NUL byte at offset 3 .*looks like UTF-16"),
        (b"one\n\ncut \xe4\xb8", r"is not UTF-8: byte 0xe4 at offset 9 \(line 3\)"),
    ],
)
@pytest.mark.parametrize("block_bytes", [3, 1 << 20])
def test_text_that_is_none(tmp_path: Path, tokenizer: Tokenizer, data: bytes, message: str, block_bytes: int) -> None:
    corpus = corpus_of(tmp_path, [(b"the first file\n\nhas two\n", SENTENCE_PER_LINE), (data, SENTENCE_PER_LINE)])
    (tmp_path / "1.txt").rename(tmp_path / "x.txt")
    files = (corpus.files[0], InputFile(**{**vars(corpus.files[1]), "path": str(tmp_path / "x.txt")}))
    with pytest.raises(ValueError, match=message):
        for block in range(corpus.num_blocks(block_bytes)):
            encode_block(Corpus(corpus.source_names, files), block, block_bytes, tokenizer.encoder, heldout=0)
