"""Inputs: which files a command's arguments stand for, their sources, and what cannot be used."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import pickle
from pathlib import Path

import pytest

from preprocess.cleaning.drops import Drops
from preprocess.corpus import arguments, spooling, streams, survey
from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import Corpus, CorpusSettings
from preprocess.corpus.document import Document
from preprocess.corpus.inputs import open_corpus
from preprocess.corpus.spooling import spool_standard_input

MARK = b"\xef\xbb\xbf"


def opened(*arguments: Path | str, **settings: object) -> tuple[Corpus, list[str]]:
    """Open a corpus; a single layout may be given as text."""
    if isinstance(settings.get("layout"), str):
        settings["layout"] = (settings["layout"],)
    return open_corpus(CorpusSettings(arguments=[str(a) for a in arguments], **settings), Path("/nowhere"))  # type: ignore[arg-type]


def documents(corpus: Corpus, drops: Drops | None = None, block_bytes: int = 1 << 20) -> list[Document]:
    """Return all documents."""
    reader = BlockReader(corpus, block_bytes, drops)
    return [item for block in range(corpus.num_blocks(block_bytes)) for item in reader.documents(block, bytes)]


def test_inputs_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "b/sub/1.txt", "b/Z.txt", "b/.hidden", "b/.git/x", "a.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n\nmore\n")
    corpus, reports = opened(*(tmp_path / name for name in ("b", "*.txt", "a.txt", "b/")))
    assert corpus.source_names == ("b", tmp_path.name, "a", "b-2")
    in_b = ["10.txt", "2.txt", "Z.txt", "sub/1.txt"]
    assert [file.name for file in corpus.files] == [*in_b, "a.txt", "c.txt", "a.txt", *in_b]
    assert [file.source for file in corpus.files] == [0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    assert corpus.files[-1].start + corpus.files[-1].num_bytes == corpus.num_bytes
    assert reports
    assert pickle.loads(pickle.dumps(corpus)) == corpus
    assert json.loads(json.dumps(corpus.description()))["sources"][1]["files"][0]["name"] == "a.txt"


def test_sources_have_names(tmp_path: Path) -> None:
    for name in ("x.txt", "books.txt.gz", "odd=name.txt"):
        (tmp_path / name).write_bytes(gzip.compress(b"text\n") if name.endswith("gz") else b"text\n")
    corpus, _ = opened(f"wiki={tmp_path}/x.txt", tmp_path / "books.txt.gz", tmp_path / "x.txt", tmp_path)
    assert corpus.source_names == ("wiki", "books", "x", tmp_path.name)
    assert [item.source for item in documents(corpus)] == [0, 1, 2, 3, 3, 3]
    os.chdir(tmp_path)
    assert opened("odd=name.txt")[0].source_names == ("odd=name",)  # a path that exists is no name
    assert opened("odd=*.txt")[0].source_names == (tmp_path.name,)
    assert opened("x=books.txt.gz", "x.txt")[0].source_names == ("x", "x-2")


def test_source_names_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text\n")
    with pytest.raises(ValueError, match=r"two sources have the name 'a': --corpus a=.*x.txt and --corpus a=.*; give"):
        opened(f"a={tmp_path}/x.txt", f"a={tmp_path}")
    with pytest.raises(ValueError, match=r"the source's name 'a b' may have letters, digits, '.', '_' and '-' only"):
        opened(f"a b={tmp_path}/x.txt")
    with pytest.raises(ValueError, match=r"--corpus a=: a path is missing behind a="):
        opened("a=")
    with pytest.raises(ValueError, match=r"--corpus names standard input \(-\) twice"):
        opened("-", "b=-")


def test_sources_of_one_stem_have_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is looked up about once, not once for each number that is taken."""
    looked_up = 0

    class Counted(str):
        def __hash__(self) -> int:
            nonlocal looked_up
            looked_up += 1
            return super().__hash__()

        def __format__(self, spec: str) -> str:
            nonlocal looked_up
            looked_up += 1
            return str(self)

    monkeypatch.setattr(arguments, "_stem", Counted)
    many = [arguments.Argument("x", "x", None) for _ in range(500)] + [arguments.Argument("x-3=y", "y", "x-3")]
    names = arguments.source_names(many)
    assert names == ("x", "x-2", *(f"x-{number}" for number in range(4, 502)), "x-3")
    assert looked_up < 10 * len(many)


def test_too_many_sources(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text\n")
    message = (
        r"--corpus has 65,537 arguments, each of them a source, and at most 65,536 are possible: give the folder or"
    )
    with pytest.raises(ValueError, match=message + " a quoted pattern"):
        opened(*[tmp_path / "x.txt"] * 65_537)


def test_file_names_that_are_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.fsencode(tmp_path)
    os.mkdir(folder + b"/caf\xe9")
    with open(folder + b"/caf\xe9/x.txt", "w") as file:
        file.write("text\n")
    message = (
        r"the file name '.*/caf\\xe9/x.txt' \(from --corpus .*\) is not UTF-8, .*rename it, .*`convmv -r -f ENCODING"
    )
    for argument in (str(tmp_path), f"{tmp_path}/*/x.txt", os.fsdecode(folder + b"/caf\xe9/x.txt")):
        with pytest.raises(ValueError, match=message):
            opened(argument)
    monkeypatch.chdir(folder + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"--corpus \.: the name of the folder 'caf\\xe9' is not UTF-8; .*NAME=\."):
        opened(".")
    corpus, _ = opened("cafe=.")
    assert json.loads(json.dumps(corpus.description()).encode())["sources"][0]["name"] == "cafe"


def test_standard_input_among_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=-").write_text("text\n")
    assert arguments.reads_standard_input(["x.txt", "-"]) and arguments.reads_standard_input(["b=-"])
    assert not arguments.reads_standard_input(["a=-", "x-", "./-"])
    with pytest.raises(ValueError, match="standard input is a source: a folder to keep it in is needed"):
        open_corpus(CorpusSettings(arguments=["-"]), None)


def test_settings_of_single_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "b.txt").write_text('{"body": "four"}\n')
    corpus, _ = opened(
        f"a={tmp_path}/a.txt",
        f"b={tmp_path}/b.txt",
        layout=("auto", "a=document_per_file"),
        text_field=("b=body",),
    )
    assert [file.layout for file in corpus.files] == ["document_per_file", "jsonl"]
    assert [item.text for item in documents(corpus)] == ["one two\nthree", "four"]
    with pytest.raises(ValueError, match=r"layout is 'c=jsonl', and there is no source 'c'; sources: a, b"):
        opened(f"a={tmp_path}/a.txt", f"b={tmp_path}/b.txt", layout=("c=jsonl",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arguments": []}, r"corpus is \[\]: a list of at least one file"),
        ({"arguments": "text"}, "corpus is 'text': a list"),
        ({"layout": ("lines",)}, "layout is 'lines'; allowed: auto, sentence_per_line, .*or NAME=LAYOUT"),
        ({"layout": ("a=lines",)}, "layout is 'a=lines'; allowed: "),
        ({"text_field": ("a=",)}, "text_field is 'a=': a field's name"),
        ({"invalid_utf8": "ignore"}, "invalid_utf8 is 'ignore'; allowed: error, drop, replace"),
        ({"incomplete_records": "keep"}, "incomplete_records is 'keep'; allowed: error, drop"),
        ({"max_expansion": 0}, "max_expansion is 0: needs 1 or more"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_corpus(CorpusSettings(**({"arguments": ["x"]} | settings)), Path("x"))  # type: ignore[arg-type]


def test_inputs_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file or folder: .*nowhere.txt"):
        opened(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"no file matches the pattern .*\*\.md"):
        opened(tmp_path / "*.md")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"the folder .*folder holds no file"):
        opened(tmp_path / "folder")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"the corpus is empty: no text in .*empty.txt"):
        opened(tmp_path / "empty.txt")
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match=r"the corpus is empty: no text in .*empty.gz"):
        opened(tmp_path / "empty.gz")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match=r"cannot read .*broken.txt: No such file"):
        opened(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"cannot read .*pipe: it is no ordinary file"):
        opened(tmp_path / "pipe")


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "x.txt").write_text("text\n")
    monkeypatch.setattr(streams, "open", refuse, raising=False)
    with pytest.raises(ValueError, match=r"cannot read .*x.txt: Permission denied"):
        opened(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04...", r"x is a zip archive: unpack it first \(`unzip`\)"),
        (b"7z\xbc\xaf\x27\x1c", "x is a 7z archive"),
        (b"Rar!\x1a\x07", "x is a rar archive"),
        (b"\x04\x22\x4d\x18", r"x is a lz4 file: unpack it first \(`lz4 -d`\)"),
        (b"\x1f\x9d\x90", r"x is a compress \(.Z\) file"),
        (bytes(257) + b"ustar\0", r"x is a tar archive: unpack it \(`tar xf`\) and give the folder"),
        (gzip.compress(b"a" * 257 + b"ustar  \0"), "x is a tar archive"),
        ("text\n".encode("utf-16"), "x is UTF-16: convert it: iconv -f UTF-16 -t UTF-8"),
        (b"one\rtwo\0", r"x is not text: NUL byte at offset 7 \(line 1\)"),
        (b"one\n\ntwo\0\n", r"x is not text: NUL byte at offset 8 \(line 3\)"),
        (gzip.compress(b"one\ntwo\0\n"), r"x is not text: NUL byte at offset 7 \(line 2\)"),
        (gzip.compress(b"text\n" * 99)[:-9], "x is cut off: its gzip data ends in the middle"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "x")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_binary_text_behind_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: type[bytes]) -> None:
    monkeypatch.setattr(survey, "SAMPLE_BYTES", 8)
    (tmp_path / "x").write_bytes(pack(MARK + b"one\ntwo\nthree\nfo\0r\n"))
    corpus, _ = opened(tmp_path / "x")
    for block_bytes in (3, 100):
        with pytest.raises(ValueError, match=r"x is not text: NUL byte at offset 19 \(line 4\)"):
            documents(corpus, block_bytes=block_bytes)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("data", "place"),
    [
        (MARK + b"one \r\n\ntw\xff\n", r"byte 0xff at offset 12 \(line 3\)"),
        (b"one\n\ncut \xe4\xb8", r"byte 0xe4 at offset 9 \(line 3\)"),
        (b"one  \r\ntwo\xc0\nx\n", r"byte 0xc0 at offset 10 \(line 2\)"),
    ],
)
@pytest.mark.parametrize("layout", ["sentence_per_line", "document_per_line", "document_per_file"])
def test_text_that_is_not_utf8(tmp_path: Path, pack: type[bytes], data: bytes, place: str, layout: str) -> None:
    (tmp_path / "x").write_bytes(pack(data))
    corpus, _ = opened(tmp_path / "x", layout=layout)
    message = rf"x is not UTF-8: {place}; convert it.*iconv.*or give --invalid_utf8 drop .*or --invalid_utf8 replace"
    for block_bytes in (3, 1 << 20):
        with pytest.raises(ValueError, match=message):
            documents(corpus, block_bytes=block_bytes)


def test_invalid_utf8_dropped_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"one\nt\xffwo \n\nthree\n\n\xfe\n")
    drops = Drops(keep_texts=True)
    corpus, _ = opened(tmp_path / "x", invalid_utf8="drop")
    assert [item.text for item in documents(corpus, drops)] == ["three"]
    assert drops.counts == {"documents_invalid_utf8": 2}
    assert drops.texts[1] == ("documents_invalid_utf8", str(tmp_path / "x"), 18, "\ufffd\n")
    corpus, _ = opened(tmp_path / "x", invalid_utf8="replace")
    reader = BlockReader(corpus, 100, drops)
    assert [item.text for item in reader.documents(0)] == ["one\nt\ufffdwo", "three", "\ufffd"]
    assert reader.num_replaced == 2
    assert sum(drops.counts.values()) == 2


def test_documents_without_text(tmp_path: Path) -> None:
    """White space beyond ASCII is text for the blocks, and no document."""
    (tmp_path / "x").write_text("one\n\n\u3000\n\u3000\n\ntwo\n\u3000\n")
    drops = Drops()
    corpus, _ = opened(tmp_path / "x")
    assert [item.text for item in documents(corpus, drops)] == ["one", "two"]
    assert drops.counts == {"documents_without_text": 1}


def test_linked_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.txt").write_text("text\n")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "data")
    corpus, _ = opened(tmp_path / "corpus")
    assert [file.name for file in corpus.files] == ["link/x.txt"]
    (tmp_path / "data" / "back").symlink_to(tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"is reached twice under .*corpus: symbolic links lead back"):
        opened(tmp_path / "corpus")


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one\n" * 100)
    corpus, _ = opened(path)
    reader = BlockReader(corpus, 100)
    assert list(reader.documents(0))
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"x.txt was written to after it was looked at: it changes while it is read"):
        list(reader.documents(1))
    path.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"x.txt had 400 bytes and now has 8: it changes while it is read"):
        list(BlockReader(corpus, 100).documents(0))
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*x.txt: No such file or directory; it was there before"):
        list(BlockReader(corpus, 100).documents(0))


def test_a_file_that_grows_while_a_block_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one\n" * 100)
    corpus, _ = opened(path)
    reading = BlockReader(corpus, 1000).documents(0)
    next(reading)
    with open(path, "a") as file:
        file.write("two\n")
    with pytest.raises(ValueError, match=r"x.txt had 400 bytes and now has 404"):
        list(reading)


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"one\ntwo\n\nthree\n\n" * 9
    for data in (text, gzip.compress(text)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        settings = CorpusSettings(arguments=["piped=-"])
        corpus, reports = open_corpus(settings, tmp_path / "new" / "spool")
        assert (tmp_path / "new" / "spool" / "stdin").read_bytes() == data
        assert corpus.source_names == ("piped",)
        assert corpus.files[0].name == "stdin"
        assert len(documents(corpus)) == 18
        assert "18 documents, 27 lines" in reports[0]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert open_corpus(CorpusSettings(arguments=["-"]), tmp_path)[0].source_names == ("stdin",)


def test_a_terminal_is_no_input(tmp_path: Path) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    with pytest.raises(ValueError, match="reads standard input, which is a terminal; pipe a text"):
        spool_standard_input(tmp_path, Terminal())


def test_no_space_for_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, path: Path, mode: str) -> None:
            path.touch()

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *given: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def write(self, data: bytes) -> None:
            pass

    monkeypatch.setattr(spooling, "open", Full, raising=False)
    message = r"No space left on device: standard input is kept in .* more than 5 bytes have come, and [\d,]+ are free"
    with pytest.raises(OSError, match=message):
        spool_standard_input(tmp_path, io.BytesIO(b"text\n"))
    assert not (tmp_path / "stdin").exists()


def test_files_are_surveyed_by_workers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SAMPLE_BYTES", 100)
    monkeypatch.setattr(survey, "ALONE_BYTES", 0)
    for number in range(3):
        (tmp_path / f"{number}.gz").write_bytes(gzip.compress(b"some text\n" * (100 + number)))
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(tmp_path)]), tmp_path, num_workers=2)
    assert [file.num_bytes for file in corpus.files] == [1000, 1010, 1020]


def test_a_file_too_large_to_be_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "x.txt").write_text("text\n" * 100)
    message = r"x.txt would be one document of 500 bytes, and at most 100 are possible: split the file, or give another"
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "x.txt", layout="document_per_file")


def test_the_largest_document(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"text    " * (1 << 24))
    assert opened(path, layout="document_per_file")[0].num_bytes == 128 << 20
    with open(path, "ab") as file:
        file.write(b"t")
    with pytest.raises(ValueError, match=r"one document of 134,217,729 bytes, and at most 134,217,728 are possible"):
        opened(path, layout="document_per_file")
    path.unlink()
