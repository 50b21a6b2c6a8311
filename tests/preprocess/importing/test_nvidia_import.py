"""import: files made here by masking known documents, one row at a time, come back as these documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

import preprocess.importing.nvidia_import as nvidia_import
import preprocess.importing.nvidia_rows as nvidia_rows
from preprocess.cli import main
from preprocess.folders.verification import verify_folder
from preprocess.importing.nvidia_import import ImportSettings, import_nvidia
from preprocess.manifest import Manifest
from preprocess.tokenizer import Tokenizer
from tests.preprocess.folders.shard_documents import read_docs

PAD, UNK, CLS, SEP, MASK = range(5)
LENGTH, SLOTS = 24, 5
Row = tuple[list[int], list[int] | None, int]  # ids of a, of b, and whether b is from elsewhere
Documents = list[list[list[int]]]


def write_file(path: Path, rows: Sequence[Row], seed: int = 0, **settings: object) -> Path:
    """Write rows as the recipes do: masked, padded, compressed."""
    generator = random.Random(seed)
    columns: dict[str, list] = {name: [] for name in ("input_ids", "input_mask", "segment_ids")}
    columns |= {name: [] for name in ("masked_lm_positions", "masked_lm_ids", "next_sentence_labels")}
    for a, b, random_next in rows:
        ids = [CLS, *a, SEP] + ([*b, SEP] if b is not None else [])
        segments = [0] * (len(a) + 2) + [1] * (len(ids) - len(a) - 2)
        candidates = [place for place, token in enumerate(ids) if token not in (CLS, SEP)]
        places = sorted(generator.sample(candidates, min(len(candidates), generator.randint(0, SLOTS))))
        columns["masked_lm_positions"].append(places + [0] * (SLOTS - len(places)))
        columns["masked_lm_ids"].append([ids[place] for place in places] + [0] * (SLOTS - len(places)))
        for place in places:
            ids[place] = generator.choice([MASK, MASK, MASK, ids[place], generator.randrange(5, 74)])
        padding = LENGTH - len(ids)
        assert padding >= 0
        columns["input_ids"].append(ids + [PAD] * padding)
        columns["input_mask"].append([1] * len(ids) + [0] * padding)
        columns["segment_ids"].append(segments + [0] * padding)
        columns["next_sentence_labels"].append(random_next)
    types = {"input_mask": "i1", "segment_ids": "i1", "next_sentence_labels": "i1"}
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            options = {"compression": "gzip", **settings}
            file.create_dataset(name, data=np.array(column, types.get(name, "i4")), **options)
    return path


def random_rows(seed: int, count: int) -> list[Row]:
    """Return rows of ordinary ids, some with one segment alone, some with empty ones."""
    generator = random.Random(seed)

    def text(longest: int) -> list[int]:
        return [generator.randrange(5, 74) for _ in range(generator.randint(0, longest))]

    rows: list[Row] = []
    for _ in range(count):
        kind = generator.random()
        if kind < 0.2:
            rows.append((text(LENGTH - 2), None, 0))
        else:
            rows.append((text(11), text(10), generator.randint(0, 1)))
    return rows


def documents_of(rows: Sequence[Row]) -> Documents:
    """The documents that rows stand for, as sentences, repetitions included, empty ones left out."""
    documents: Documents = []
    for a, b, random_next in rows:
        groups = [[a], [b or []]] if random_next else [[a, b or []]]
        documents += [[sentence for sentence in group if sentence] for group in groups]
    return [document for document in documents if document]


def first_of_each(documents: Documents) -> Documents:
    """Leave out documents whose tokens came before."""
    seen: dict[tuple[int, ...], list[list[int]]] = {}
    for document in documents:
        seen.setdefault(tuple(token for sentence in document for token in sentence), document)
    return list(seen.values())


def found(folder: Path) -> Documents:
    """Sentences of the documents of a folder."""
    return [[list(sentence) for sentence in doc.sentences] for doc in read_docs(folder)]


@pytest.fixture
def run(tmp_path: Path, vocabulary_file: Path) -> Callable[..., Manifest]:
    """Import into tmp_path / "out"."""

    def run_import(*files: object, say: Callable[[str], None] = lambda line: None, **more: object) -> Manifest:
        arguments = {"tokenizer": str(vocabulary_file), "output": str(tmp_path / "out"), "heldout": 0.0, **more}
        return import_nvidia(ImportSettings(files=[str(file) for file in files], **arguments), say)  # type: ignore[arg-type]

    return run_import


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"compression": "lzf"}, {"compression": None}], ids=str)
def test_masking_is_undone(tmp_path: Path, run: Callable[..., Manifest], options: dict) -> None:
    rows = random_rows(1, 200)
    manifest = run(write_file(tmp_path / "a.hdf5", rows, **options), keep_duplicates=True)
    assert found(tmp_path / "out") == documents_of(rows)
    assert verify_folder(tmp_path / "out") == []
    assert not (tmp_path / "out" / ".work").exists() and not (tmp_path / "out" / "UNFINISHED").exists()
    assert manifest.settings["imported"] == "nvidia_hdf5" and manifest.sources[0].name == "nvidia"
    assert manifest.sources[0].files[0]["name"] == "a.hdf5" and manifest.sources[0].layout == "nvidia_hdf5"


@pytest.mark.parametrize("shard_tokens", [1, 40 * LENGTH, 1 << 22])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_repeated_texts_are_dropped_and_counted(
    tmp_path: Path, run: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, shard_tokens: int, num_workers: int
) -> None:
    """Each text comes several times with other masks, within a file and over files."""
    monkeypatch.setattr(nvidia_import, "SHARD_TOKENS", shard_tokens)
    monkeypatch.setattr(nvidia_rows, "READ_TOKENS", 7 * LENGTH)
    few = random_rows(2, 30)
    first, second = [*few, *random_rows(3, 15), *few], [*few[::-1], *random_rows(4, 15)]
    files = [write_file(tmp_path / "a.hdf5", first, 5), write_file(tmp_path / "b.hdf5", second, 6)]
    said: list[str] = []
    manifest = run(*files, say=said.append, workers=num_workers)
    expected = documents_of([*first, *second])
    assert found(tmp_path / "out") == first_of_each(expected)
    num_duplicates = len(expected) - len(first_of_each(expected))
    assert manifest.counts["dropped_documents_duplicate"] == num_duplicates > 60
    assert f"dropped {num_duplicates} documents duplicate" in said
    num_empty = sum((not a and not b) if not r else (not a) + (not b) for a, b, r in [*first, *second])
    assert manifest.counts["dropped_documents_without_tokens"] == num_empty > 0
    assert manifest.sources[0].num_documents == len(first_of_each(expected))
    assert verify_folder(tmp_path / "out") == []


def test_equals_the_shards_of_the_text(
    tmp_path: Path, run: Callable[..., Manifest], tokenizer: Tokenizer, vocabulary_file: Path
) -> None:
    generator = random.Random(8)
    words = ["the", "token", "cat", "中文", "mask", "x"]
    texts = [[" ".join(generator.choices(words, k=3)) for _ in range(2)] for _ in range(50)]
    texts = [list(pair) for pair in dict.fromkeys(map(tuple, texts))]
    (tmp_path / "text.txt").write_text("\n\n".join("\n".join(pair) for pair in texts) + "\n", encoding="utf-8")
    arguments = ["--tokenizer", str(vocabulary_file), "--heldout", "0", "--workers", "1"]
    assert (
        main(["shards", "--corpus", str(tmp_path / "text.txt"), *arguments, "--output", str(tmp_path / "shards")]) == 0
    )
    rows: list[Row] = []
    for pair in texts:
        a, b = (tokenizer.encode([sentence])[0].tolist() for sentence in pair)
        rows.append((a, b, 0))
    run(write_file(tmp_path / "a.hdf5", rows))
    assert found(tmp_path / "out") == found(tmp_path / "shards")


def test_sources_folders_and_patterns(tmp_path: Path, run: Callable[..., Manifest]) -> None:
    parts = {
        name: random_rows(seed, 20) for seed, name in enumerate(("wiki/b.hdf5", "wiki/sub/a.h5", "x-1.h5", "x-0.h5"))
    }
    for name, rows in parts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(tmp_path / name, rows)
    (tmp_path / "wiki" / "readme.txt").write_text("text")
    (tmp_path / "wiki" / ".hidden.h5").write_text("text")
    manifest = run(f"wiki={tmp_path}/wiki", f"books={tmp_path}/x-*.h5", keep_duplicates=True, compression="gzip")
    assert [source.name for source in manifest.sources] == ["wiki", "books"]
    names = [[file["name"] for file in source.files] for source in manifest.sources]
    assert names == [["b.hdf5", "sub/a.h5"], ["x-0.h5", "x-1.h5"]]
    docs = read_docs(tmp_path / "out")
    order = ["wiki/b.hdf5", "wiki/sub/a.h5", "x-0.h5", "x-1.h5"]
    expected = [(name[0], document) for name in order for document in documents_of(parts[name])]
    assert [(("w" if doc.source == "wiki" else "x"), [list(s) for s in doc.sentences]) for doc in docs] == expected


def test_held_out_documents(tmp_path: Path, run: Callable[..., Manifest], vocabulary_file: Path) -> None:
    rows = random_rows(3, 300)
    manifest = run(write_file(tmp_path / "a.hdf5", rows, 1), heldout=0.2)
    kept, held = found(tmp_path / "out"), found(tmp_path / "out" / "heldout")
    expected = first_of_each(documents_of(rows))
    assert sorted(kept + held) == sorted(expected) and len(expected) * 0.1 < len(held) < len(expected) * 0.3
    assert [document for document in expected if document in held] == held
    assert manifest.counts["heldout_documents"] == len(held)
    assert verify_folder(tmp_path / "out") == []
    other = write_file(tmp_path / "b.hdf5", random_rows(9, 30) + rows[::-1], 2)
    run(other, heldout=0.2, output=str(tmp_path / "other"), keep_duplicates=True)
    again = found(tmp_path / "other" / "heldout")
    assert all(document in again for document in held) and not any(document in again for document in kept)


def test_tokens_that_stay_masked_are_told(tmp_path: Path, run: Callable[..., Manifest]) -> None:
    said: list[str] = []
    run(write_file(tmp_path / "a.hdf5", [([7, MASK, 8], [9], 0)]), say=said.append)
    assert "note: 1 tokens are [MASK] in the original text too, or were masked without being listed" in said


def change(name: str, place: tuple[int, ...], value: int) -> Callable[[h5py.File], None]:
    """Return a change of one number."""

    def apply(file: h5py.File) -> None:
        file[name][place] = value

    return apply


def anew(name: str, data: object = None, **settings: object) -> Callable[[h5py.File], None]:
    """Return a change that stores a dataset anew."""

    def apply(file: h5py.File) -> None:
        values = file[name][:] if data is None else data
        del file[name]
        file.create_dataset(name, data=values, **settings)

    return apply


def linked(link: object) -> Callable[[h5py.File], None]:
    """Return a change that puts a link in the place of a dataset."""

    def apply(file: h5py.File) -> None:
        del file["input_mask"]
        file["input_mask"] = link

    return apply


def external(file: h5py.File) -> None:
    """Keep the numbers of a dataset in another file."""
    shape = file["input_mask"].shape
    del file["input_mask"]
    file.create_dataset("input_mask", shape, "i1", external=[("/etc/passwd", 0, shape[0] * shape[1])])


def hollow(file: h5py.File) -> None:
    """Claim many rows without storing any."""
    del file["input_ids"]
    file.create_dataset("input_ids", (1 << 40, LENGTH), "i4", chunks=(1024, LENGTH), compression="gzip")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda file: file.__delitem__("input_mask"), r"lacks \['input_mask'\] and has the unknown \[\]"),
        (lambda file: file.create_group("more"), r"has the unknown \['more'\]"),
        (linked(h5py.SoftLink("/input_ids")), "input_mask is a link to elsewhere"),
        (linked(h5py.ExternalLink("/etc/passwd", "/x")), "input_mask is a link to elsewhere"),
        (external, "input_mask is not stored within the file"),
        (hollow, "input_ids claims .* and not all of them are in the file"),
        (anew("input_ids", fletcher32=True), r"input_ids uses the HDF5 filters \[3\], allowed: gzip"),
        (anew("input_ids", np.zeros((9, LENGTH), "f4")), "input_ids has type float32, and whole numbers"),
        (anew("input_ids", np.zeros(9, "i4")), "input_ids has shape .* and 2 dimensions without a 0"),
        (anew("input_ids", np.zeros((0, LENGTH), "i4")), "input_ids has shape .* and 2 dimensions without a 0"),
        (anew("segment_ids", np.zeros((3, LENGTH), "i4")), r"segment_ids has shape \(3, 24\), and \(9, 24\) is needed"),
        (anew("masked_lm_ids", np.zeros((9, 2), "i4")), r"masked_lm_ids has shape \(9, 2\), and \(9, 5\) is needed"),
        (anew("next_sentence_labels", np.zeros(8, "i4")), r"next_sentence_labels has shape \(8,\), and \(9,\) is"),
        (
            anew("input_ids", np.zeros((9, LENGTH), "i4"), chunks=(1 << 20, LENGTH), maxshape=(None, LENGTH)),
            "input_ids has chunks of .* larger than",
        ),
        (change("input_ids", (4, 3), 74), "row 4: an id is not from 0 to 73, the last of the vocabulary"),
        (change("input_ids", (4, 3), -1), "row 4: an id is not from 0 to 73"),
        (
            change("input_ids", (5, 0), 66),
            "row 5: it begins with the id 66, and .CLS. of the tokenizer is 2: .*another",
        ),
        (change("input_ids", (5, 6), 7), "row 5: a segment does not end with .SEP., which is 3"),
        (change("input_ids", (5, 11), 7), "row 5: a segment does not end with .SEP."),
        (change("input_mask", (5, 2), 0), "row 5: input_mask is not 1 for the first tokens"),
        (change("input_mask", (5, 20), 1), "row 5: input_mask is not 1 for the first tokens"),
        (change("input_mask", (5, 2), 2), "row 5: input_mask is not 1 for the first tokens"),
        (change("input_mask", (5, slice(None)), 0), "row 5: input_mask is 0 everywhere"),
        (change("segment_ids", (5, 2), 1), "row 5: segment_ids is not 0 for the first tokens"),
        (change("segment_ids", (5, 8), 2), "row 5: segment_ids is not 0 for the first tokens"),
        (change("segment_ids", (5, slice(0, 12)), 1), "row 5: its first segment has no room"),
        (change("masked_lm_positions", (5, 0), 12), "row 5: masked_lm_positions points outside"),
        (change("masked_lm_positions", (5, 0), -1), "row 5: masked_lm_positions points outside"),
        (change("masked_lm_ids", (5, 0), 74), "row 5: of masked_lm_ids, an id is not from 0 to 73"),
        (change("next_sentence_labels", (5,), 2), "row 5: next_sentence_labels is neither 0 nor 1"),
    ],
)
def test_what_is_no_such_file_is_refused(
    tmp_path: Path, run: Callable[..., Manifest], bad: Callable[[h5py.File], None], message: str
) -> None:
    row: Row = ([5, 6, 7, 8, 9], [10, 11, 12, 13], 0)  # 12 tokens with the special ones
    path = write_file(tmp_path / "a.hdf5", [row] * 9)
    with h5py.File(path, "r+") as file:
        file["masked_lm_positions"][:] = [[3, 0, 0, 0, 0]] * 9
        file["masked_lm_ids"][:] = [[7, 0, 0, 0, 0]] * 9
        bad(file)
    with pytest.raises(ValueError, match=rf"a.hdf5.* ?{message}"):
        run(path)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_rows_too_long_or_too_short(tmp_path: Path, run: Callable[..., Manifest]) -> None:
    for length, slots in ((2, 1), (70_000, 1), (8, 9)):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name in ("input_ids", "input_mask", "segment_ids"):
                file[name] = np.zeros((1, length), "i4")
            for name in ("masked_lm_positions", "masked_lm_ids"):
                file[name] = np.zeros((1, slots), "i4")
            file["next_sentence_labels"] = np.zeros(1, "i1")
        with pytest.raises(ValueError, match=f"rows of {length:,} tokens with {slots} masked; 3 to 65,536 tokens"):
            run(tmp_path / "a.h5")


def test_files_that_cannot_be_read(tmp_path: Path, run: Callable[..., Manifest]) -> None:
    good = write_file(tmp_path / "good.hdf5", random_rows(1, 300))
    with pytest.raises(ValueError, match=r"nowhere.h5: no such file, and no file fits it as a pattern"):
        run(tmp_path / "nowhere.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no .h5 or .hdf5 file in this folder"):
        run(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"good.hdf5 is given twice, by"):
        run(good, f"x={tmp_path}/*.hdf5")
    with pytest.raises(ValueError, match="'=x' is neither PATH nor NAME=PATH"):
        run("=x")
    (tmp_path / "text.h5").write_text("text" * 100)
    with pytest.raises(ValueError, match=r"text.h5 is no readable HDF5 file"):
        run(tmp_path / "text.h5")
    data = bytearray(good.read_bytes())
    with h5py.File(good) as file:
        place = file["input_ids"].id.get_chunk_info(0).byte_offset
    data[place : place + 8] = b"\xff" * 8
    (tmp_path / "bad.hdf5").write_bytes(data)
    with pytest.raises(ValueError, match=r"bad.hdf5 is damaged: rows 0 to 300 cannot be read"):
        run(tmp_path / "bad.hdf5")
    assert not (tmp_path / "out").exists()


def test_shards_are_not_imported_again(
    tmp_path: Path, run: Callable[..., Manifest], make_folder: Callable[..., Path]
) -> None:
    run(write_file(tmp_path / "a.hdf5", random_rows(1, 30)))
    with pytest.raises(ValueError, match="these are shards already"):
        run(tmp_path / "out" / "shard-00000.h5", output=str(tmp_path / "again"))
    with pytest.raises(ValueError, match="out holds finished shards; give another --output"):
        run(tmp_path / "a.hdf5")


def test_settings(tmp_path: Path, run: Callable[..., Manifest]) -> None:
    path = write_file(tmp_path / "a.hdf5", random_rows(1, 30))
    with pytest.raises(ValueError, match=r"workers is 0.*heldout is 1.*compression is 'lz4'"):
        run(path, workers=0, heldout=1, compression="lz4")
    with pytest.raises(ValueError, match=r"files is \[\]: a list of at least one file"):
        run()
    (tmp_path / "v.txt").write_text("[PAD]\n[UNK]\nthe\n")
    with pytest.raises(ValueError, match=r"the tokenizer has no \[CLS\] or no \[SEP\]"):
        run(path, tokenizer=str(tmp_path / "v.txt"))
    empty = write_file(tmp_path / "b.hdf5", [([], [], 1)])
    with pytest.raises(ValueError, match="no document is left to write: 0 are held out and 2 have no token"):
        run(empty)
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_meanwhile(
    tmp_path: Path, run: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "a.hdf5", random_rows(1, 30))
    genuine = nvidia_import.find_duplicates

    def find_and_change(*arguments: object) -> int:
        write_file(path, random_rows(2, 30))
        return genuine(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(nvidia_import, "find_duplicates", find_and_change)
    with pytest.raises(ValueError, match=r"a.hdf5 changes while it is read"):
        run(path)
    assert not (tmp_path / "out").exists()
