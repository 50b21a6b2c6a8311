"""The shard format: what is written is read back, and what is not a shard is refused."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import multiprocessing
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.manifest import ShardEntry
from preprocess.shards import (
    COMPRESSIONS,
    OPTIONAL,
    ShardArrays,
    ShardReader,
    content_digest,
    library_versions,
    write_shard,
)


def make_arrays(num_tokens: int = 200_003, dtype: type = np.uint16, seed: int = 0) -> ShardArrays:
    """Return random tokens cut into random sentences and documents."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 60_000, num_tokens).astype(dtype)
    inner = np.unique(generator.integers(1, num_tokens, num_tokens // 20))
    sentences = np.concatenate([[0], inner, [num_tokens]]).astype(np.int64)
    documents = np.concatenate([[0], inner[::7], [num_tokens]]).astype(np.int64)
    source = generator.integers(0, 3, len(documents) - 1).astype(np.uint16)
    return ShardArrays(tokens, sentences, documents, source)


def with_options(arrays: ShardArrays, *names: str, seed: int = 1) -> ShardArrays:
    """Return the arrays with random optional ones."""
    generator = np.random.default_rng(seed)
    num_documents = len(arrays.document_source)
    begins, ends = arrays.document_offsets[:-1], arrays.document_offsets[1:]
    options = {
        "word_starts": generator.integers(0, 2, len(arrays.tokens)).astype(bool),
        "document_label": generator.integers(-1, 5, num_documents).astype(np.int32),
        "second_offsets": generator.integers(begins, ends + 1),
    }
    return arrays._replace(**{name: options[name] for name in names})


SOME_OPTIONS = [(), OPTIONAL, ("word_starts",), ("document_label", "second_offsets")]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("options", SOME_OPTIONS, ids="+".join)
def test_round_trip(tmp_path: Path, compression: str, dtype: type, options: tuple[str, ...]) -> None:
    arrays = with_options(make_arrays(dtype=dtype), *options)
    entry = write_shard(tmp_path / "shard-00000.h5", arrays, "0" * 64, compression)
    assert entry.num_bytes == (tmp_path / "shard-00000.h5").stat().st_size
    reader = ShardReader(tmp_path / entry.file, entry)
    assert reader.optional == reader.arrays().optional == options
    for name, expected in arrays._asdict().items():
        found = reader.arrays()._asdict()[name]
        assert (found is None) == (expected is None)
        if expected is not None:
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(reader.tokens(65_530, 131_077), arrays.tokens[65_530:131_077])
    assert len(reader.tokens(5, 5)) == 0
    assert content_digest(reader.arrays()) == entry.content_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.h5"]
    with pytest.raises(ValueError, match=r"tokens 0 to 200004 of 200003 were asked for"):
        reader.tokens(0, 200_004)


def test_layout_on_disk(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.h5", make_arrays(), "0" * 64, "zstd")
    with h5py.File(tmp_path / "x.h5") as file:
        assert set(file) == {"tokens", "sentence_offsets", "document_offsets", "document_source"}
        assert file["tokens"].chunks == (65_536,)
        for dataset in file.values():
            properties = dataset.id.get_create_plist()
            assert [properties.get_filter(i)[0] for i in range(properties.get_nfilters())] == [32015, 3]
            assert dataset.fletcher32 and not dataset.shuffle


def test_options_on_disk(tmp_path: Path) -> None:
    arrays = with_options(make_arrays(5003), *OPTIONAL)
    entry = write_shard(tmp_path / "x.h5", arrays, "0" * 64, "gzip")
    with h5py.File(tmp_path / "x.h5") as file:
        stored = {name: file[name][:] for name in file}
    assert set(stored) == {"tokens", "sentence_offsets", "document_offsets", "document_source", *OPTIONAL}
    assert [stored[name].dtype.str for name in OPTIONAL] == ["|u1", "<i4", "<i8"]
    bits = [(stored["word_starts"][place // 8] >> place % 8) & 1 for place in range(5003)]
    assert bits == arrays.word_starts.astype(int).tolist() and len(stored["word_starts"]) == 626
    without = write_shard(tmp_path / "y.h5", arrays._replace(word_starts=None), "0" * 64, "gzip")
    assert without.content_sha256 != entry.content_sha256
    with pytest.raises(ValueError, match="3 to 5004 of 5003 were asked for"):
        ShardReader(tmp_path / "x.h5").word_starts(3, 5004)


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.data())
@settings(max_examples=60, deadline=None)
def test_word_starts_of_any_range(flags: list[bool], data: st.DataObject) -> None:
    offsets = np.array([0, len(flags)])
    arrays = ShardArrays(np.zeros(len(flags), np.uint16), offsets, offsets, np.zeros(1, np.uint16), np.array(flags))
    with tempfile.TemporaryDirectory() as folder:
        entry = write_shard(Path(folder) / "x.h5", arrays, "0" * 64, "none")
        reader = ShardReader(Path(folder) / "x.h5", entry)
        start = data.draw(st.integers(0, len(flags)))
        stop = data.draw(st.integers(start, len(flags)))
        found = reader.word_starts(start, stop)
        reader.close()
    assert found is not None and found.dtype == bool and found.tolist() == flags[start:stop]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("word_starts", np.zeros(624, "|u1"), "word_starts has 624 elements, and the manifest says 625"),
        ("word_starts", np.zeros(625, "|i1"), r"word_starts has type int8, allowed: \|u1"),
        ("document_label", np.zeros(3, "<i4"), "document_label has 3 elements, and the manifest says"),
        ("document_label", np.zeros(3, "<i8"), "document_label has type int64, allowed: <i4"),
        ("second_offsets", np.zeros((2, 2), "<i8"), "second_offsets has shape .* must have one dimension"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, name: str, data: np.ndarray, message: str) -> None:
    entry = write_shard(tmp_path / "x.h5", with_options(make_arrays(5000), *OPTIONAL), "0" * 64)
    rewrite(tmp_path / "x.h5", replace_dataset(name, data=data, chunks=data.shape))
    with pytest.raises(ValueError, match=message):
        ShardReader(tmp_path / "x.h5", entry).arrays()


def test_options_out_of_range(tmp_path: Path) -> None:
    arrays = with_options(make_arrays(5000), *OPTIONAL)
    arrays.document_label[3] = -2
    arrays.second_offsets[4] = arrays.document_offsets[5] + 1
    arrays.second_offsets[9] = arrays.document_offsets[9] - 1
    reader = ShardReader(tmp_path / "x.h5", write_shard(tmp_path / "x.h5", arrays, "0" * 64))
    with pytest.raises(ValueError, match="document_label holds -2, and -1 is the least"):
        _ = reader.document_label
    for place in (4, 9):
        with pytest.raises(ValueError, match="second_offsets has a value outside its document"):
            _ = reader.second_offsets
        reader.close()
        arrays.second_offsets[place] = arrays.document_offsets[place]
        reader = ShardReader(tmp_path / "x.h5", write_shard(tmp_path / "x.h5", arrays, "0" * 64))
    assert reader.second_offsets is not None


def test_a_file_on_its_own_must_agree_with_itself(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.h5", make_arrays(5000), "0" * 64)
    rewrite(tmp_path / "x.h5", replace_dataset("document_source", data=np.zeros(3, "<u2"), chunks=(3,)))
    with pytest.raises(ValueError, match=r"document_offsets has \d+ elements, and the other datasets ask for 4"):
        ShardReader(tmp_path / "x.h5").tokens(0, 1)


def test_same_arrays_same_bytes(tmp_path: Path) -> None:
    for compression in COMPRESSIONS:
        first = write_shard(tmp_path / "a.h5", make_arrays(), "0" * 64, compression)
        second = write_shard(tmp_path / "b.h5", make_arrays(), "0" * 64, compression)
        assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
        assert first.sha256 == second.sha256
    assert content_digest(make_arrays()) != content_digest(make_arrays(dtype=np.uint32))


def test_unknown_compression(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compression is 'lz4'; allowed: zstd, gzip, none"):
        write_shard(tmp_path / "x.h5", make_arrays(10), "0" * 64, "lz4")


def test_smallest_shard(tmp_path: Path) -> None:
    offsets = np.array([0, 1])
    arrays = ShardArrays(np.array([7], np.uint16), offsets, offsets, np.zeros(1, np.uint16))
    entry = write_shard(tmp_path / "x.h5", arrays, "0" * 64)
    assert ShardReader(tmp_path / "x.h5", entry).tokens(0, 1).tolist() == [7]


def _read_in_child(reader: ShardReader, queue: multiprocessing.Queue) -> None:
    queue.put(reader.tokens(0, 1000).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_open_reader_in_another_process(tmp_path: Path, method: str) -> None:
    arrays = make_arrays()
    entry = write_shard(tmp_path / "x.h5", arrays, "0" * 64)
    reader = ShardReader(tmp_path / "x.h5", entry)
    expected = reader.tokens(0, 1000).sum()  # open before the fork
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=_read_in_child, args=(reader, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [expected, expected]
    for child in children:
        child.join(60)
    assert reader.tokens(0, 1000).sum() == expected
    assert pickle.loads(pickle.dumps(reader)).tokens(0, 1000).sum() == expected
    reader.close()
    assert reader.tokens(0, 1000).sum() == expected


def rewrite(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change a shard in place with h5py."""
    with h5py.File(path, "r+") as file:
        change(file)


def replace_dataset(name: str, **settings) -> Callable[[h5py.File], None]:
    """Return a change that stores a dataset anew."""

    def change(file: h5py.File) -> None:
        data = settings.pop("data", file[name][:])
        del file[name]
        file.create_dataset(name, data=data, **settings)

    return change


def hollow(name: str, length: int, dtype: str) -> Callable[[h5py.File], None]:
    """Return a change that claims data of which nothing is stored but the last chunk at most."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, (length,), dtype, chunks=(65_536,), compression="gzip")
        if length < 10**6:
            file[name][-10:] = 1

    return change


def replace_with_link(link: h5py.SoftLink | h5py.ExternalLink) -> Callable[[h5py.File], None]:
    """Return a change that puts a link in the place of the tokens."""

    def change(file: h5py.File) -> None:
        file.move("tokens", "elsewhere")
        del file["document_source"]
        file["tokens"] = link
        file.move("elsewhere", "document_source")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.modify("format_version", 99), "format version 99, and this program reads 1"),
        (lambda file: file.attrs.clear(), "format version None"),
        (lambda file: file.__delitem__("tokens"), "a shard holds exactly"),
        (lambda file: file.create_group("more"), "a shard holds exactly"),
        (replace_with_link(h5py.SoftLink("/document_source")), "tokens is a link to elsewhere"),
        (replace_with_link(h5py.ExternalLink("/etc/passwd", "/x")), "tokens is a link to elsewhere"),
        (replace_dataset("tokens", chunks=(100,), compression="lzf"), r"tokens uses the HDF5 filters \[32000\]"),
        (replace_dataset("tokens", chunks=(100,), shuffle=True), r"tokens uses the HDF5 filters \[2\], allowed: zstd"),
        (replace_dataset("tokens"), "tokens is not stored within the file as chunked data"),
        (replace_dataset("tokens", data=np.zeros(5, "<i8"), chunks=(5,)), "tokens has type int64, allowed: <u2, <u4"),
        (replace_dataset("tokens", data=np.zeros(5, ">u2"), chunks=(5,)), "tokens has type >u2"),
        (replace_dataset("tokens", data=np.zeros((5, 2), "<u2"), chunks=(5, 2)), "must have one dimension"),
        (replace_dataset("tokens", data=np.zeros(5, "<u2"), chunks=(5,)), "5 elements, and the manifest says 5000"),
        (
            replace_dataset("tokens", data=np.zeros(65_537, "<u2"), chunks=(65_537,)),
            r"chunks of \(65537,\), larger than",
        ),
        (
            replace_dataset("tokens", data=np.zeros(5, "<u2"), chunks=(1 << 29,), maxshape=(None,), compression="gzip"),
            r"tokens has chunks of \(536870912,\), larger than 131,072 bytes",
        ),
        (hollow("tokens", 10**13, "<u2"), r"tokens claims \(10000000000000,\) numbers, and not all of them are in"),
        (hollow("sentence_offsets", 70_000, "<i8"), r"sentence_offsets claims \(70000,\) numbers, and not all"),
        (replace_dataset("document_source", data=np.zeros(0, "<u2"), chunks=(5,), maxshape=(None,)), "0 elements"),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    entry = write_shard(tmp_path / "shard-00007.h5", make_arrays(5000), "0" * 64)
    rewrite(tmp_path / entry.file, change)
    with pytest.raises(ValueError, match=rf"shard-00007.h5.*{message}"):
        ShardReader(tmp_path / entry.file, entry).tokens(0, 1)


@pytest.mark.parametrize(
    "bad", [[1, 5000], [0, 4999], [0, 3000, 2000, 5000], [0, 3000, 3000, 5000], [0, -1, 5000]], ids=str
)
def test_offsets_must_rise(tmp_path: Path, bad: list[int]) -> None:
    entry = write_shard(tmp_path / "x.h5", make_arrays(5000), "0" * 64)
    rewrite(tmp_path / "x.h5", replace_dataset("sentence_offsets", data=np.array(bad), chunks=(2,)))
    reader = ShardReader(tmp_path / "x.h5", dataclasses.replace(entry, num_sentences=len(bad) - 1))
    with pytest.raises(ValueError, match=r"x.h5 is damaged: sentence_offsets do not rise from 0 to the 5000 tokens"):
        _ = reader.sentence_offsets


def test_damaged_data_is_noticed_while_reading(tmp_path: Path) -> None:
    entry = write_shard(tmp_path / "x.h5", make_arrays(50_000), "0" * 64, "none")
    data = bytearray((tmp_path / "x.h5").read_bytes())
    place = data.find(make_arrays(50_000).tokens[:100].tobytes())
    data[place + 20] ^= 4
    (tmp_path / "x.h5").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.h5 is damaged: tokens cannot be read"):
        ShardReader(tmp_path / "x.h5", entry).tokens(0, 10)


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "no readable HDF5"), (b"text" * 100, "no readable HDF5"), (None, "is missing")]
)
def test_files_that_are_no_hdf5(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "x.h5").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        ShardReader(tmp_path / "x.h5").tokens(0, 1)


def test_cut_file_is_refused(tmp_path: Path) -> None:
    entry: ShardEntry = write_shard(tmp_path / "x.h5", make_arrays(), "0" * 64)
    data = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"x.h5"):
        ShardReader(tmp_path / "x.h5", entry).arrays()


def test_a_file_that_claims_more_than_memory_holds(tmp_path: Path) -> None:
    """Alone or with an entry that says the same: nothing is allocated for data that is not there."""
    entry = write_shard(tmp_path / "x.h5", make_arrays(5000), "0" * 64)
    rewrite(tmp_path / "x.h5", hollow("tokens", 10**13, "<u2"))
    for says in (None, dataclasses.replace(entry, num_tokens=10**13)):
        with pytest.raises(ValueError, match=r"tokens claims .* and not all of them are in the file"):
            ShardReader(tmp_path / "x.h5", says).arrays()


def test_readers_do_without_the_tokenizers_library() -> None:
    script = "import sys, preprocess.shards, preprocess.manifest; print('tokenizers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_versions() -> None:
    versions = library_versions()
    assert set(versions) == {"tokenizers", "h5py", "hdf5", "hdf5plugin"}
    for name in ("tokenizers", "h5py", "hdf5plugin"):
        assert versions[name] == importlib.metadata.version(name)
