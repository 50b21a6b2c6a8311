"""The shard format, both directions: one HDF5 file of token ids and the offsets of sentences and documents.

Datasets: tokens [T] uint16 or uint32, sentence_offsets [S + 1] and document_offsets [D + 1] int64 (both count tokens,
from 0 to T), document_source [D] uint16; where the corpus has them, word_starts (bits), document_label [D] int32 and
second_offsets [D] int64. See docs/shards.md.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from preprocess.files import write_atomically
from preprocess.hostile_hdf5 import check_datasets, check_storage, filters_of, open_hdf5
from preprocess.manifest import FORMAT_VERSION, ShardEntry

CHUNK_ELEMENTS = 1 << 16
ZSTD, GZIP, FLETCHER32 = 32015, 1, 3
ALLOWED_FILTERS = {ZSTD: "zstd", GZIP: "gzip", FLETCHER32: "fletcher32"}
COMPRESSIONS = ("zstd", "gzip", "none")
ZSTD_LEVEL = 3
GZIP_LEVEL = 6
LIBRARY_VERSIONS = ("v110", "v110")  # of the file format: fixed, so that a newer HDF5 writes the same structures
REQUIRED = ("tokens", "sentence_offsets", "document_offsets", "document_source")
OPTIONAL = ("word_starts", "document_label", "second_offsets")
DTYPES = {
    "tokens": ("<u2", "<u4"),
    "sentence_offsets": ("<i8",),
    "document_offsets": ("<i8",),
    "document_source": ("<u2",),
    "word_starts": ("|u1",),
    "document_label": ("<i4",),
    "second_offsets": ("<i8",),
}


class ShardArrays(NamedTuple):
    """The arrays of a shard.

    Attributes:
        tokens: [T] uint16 or uint32.
        sentence_offsets: [S + 1] int64, counting tokens, first 0 and last T.
        document_offsets: [D + 1] int64, likewise; each is also in ``sentence_offsets``.
        document_source: [D] uint16, index into the manifest's sources.
        word_starts: [T] bool, whether a word starts at a token; None where that follows from the ids.
        document_label: [D] int32, index into the manifest's labels or -1; None without labels.
        second_offsets: [D] int64, token at which a document's second text begins, its end where it has none; None
            without second texts.
    """

    tokens: np.ndarray
    sentence_offsets: npt.NDArray[np.int64]
    document_offsets: npt.NDArray[np.int64]
    document_source: npt.NDArray[np.uint16]
    word_starts: npt.NDArray[np.bool_] | None = None
    document_label: npt.NDArray[np.int32] | None = None
    second_offsets: npt.NDArray[np.int64] | None = None

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of the optional arrays that are there."""
        return tuple(name for name in OPTIONAL if getattr(self, name) is not None)


def write_shard(path: Path | str, arrays: ShardArrays, input_sha256: str, compression: str = "zstd") -> ShardEntry:
    """Write a shard atomically and return its manifest entry.

    The file is built in memory, so a full disk is an ordinary OSError and the digest needs no second read.

    Args:
        path: of the file; its folder exists.
        arrays: at least one document.
        input_sha256: digest of the text that the shard was made from.
        compression: "zstd", "gzip" or "none".
    """
    path = Path(path)
    stored = _stored(arrays)
    image = _file_image(stored, compression)
    write_atomically(path, image)
    return ShardEntry(
        file=path.name,
        sha256=hashlib.sha256(image).hexdigest(),
        content_sha256=_digest(stored),
        input_sha256=input_sha256,
        num_bytes=len(image),
        num_documents=len(arrays.document_source),
        num_sentences=len(arrays.sentence_offsets) - 1,
        num_tokens=len(arrays.tokens),
    )


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a shard's bytes."""
    import tokenizers  # here, because who only reads shards does without it

    versions = {"tokenizers": tokenizers.__version__, "h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version}
    with contextlib.suppress(ValueError):
        versions["hdf5plugin"] = _zstd_plugin().version
    return versions


def content_digest(arrays: ShardArrays) -> str:
    """Return the sha256 (hex) of the arrays as they are stored: name, little-endian type, length and bytes of each."""
    return _digest(_stored(arrays))


def _digest(stored: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in stored.items():
        digest.update(f"{name} {array.dtype.str} {len(array)}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _stored(arrays: ShardArrays) -> dict[str, np.ndarray]:
    """Return the datasets in format order: little-endian, word starts as bits."""
    num_tokens, num_documents = len(arrays.tokens), len(arrays.document_source)
    present = {name: array for name, array in arrays._asdict().items() if array is not None}
    if arrays.word_starts is not None:
        assert len(arrays.word_starts) == num_tokens
        present["word_starts"] = np.packbits(arrays.word_starts, bitorder="little")
    for name in ("document_label", "second_offsets"):
        assert name not in present or len(present[name]) == num_documents
    return {name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in present.items()}


def _file_image(stored: Mapping[str, np.ndarray], compression: str) -> bytes:
    filters = _filter_settings(compression)
    with h5py.File("shard", "w", driver="core", backing_store=False, libver=LIBRARY_VERSIONS) as file:
        file.attrs["format_version"] = np.int64(FORMAT_VERSION)
        for name, array in stored.items():
            file.create_dataset(
                name,
                data=array,
                chunks=(max(1, min(len(array), CHUNK_ELEMENTS)),),
                fletcher32=True,
                shuffle=False,
                track_times=False,
                **filters,
            )
        file.flush()
        return file.id.get_file_image()


def _filter_settings(compression: str) -> Mapping[str, Any]:
    if compression == "zstd":
        return _zstd_plugin().Zstd(clevel=ZSTD_LEVEL)
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": GZIP_LEVEL}
    if compression == "none":
        return {}
    raise ValueError(f"compression is {compression!r}; allowed: {', '.join(COMPRESSIONS)}")


def _zstd_plugin() -> Any:
    try:
        import hdf5plugin
    except ImportError:
        raise ValueError("zstd shards need hdf5plugin: pip install hdf5plugin, or use --compression gzip") from None
    return hdf5plugin


@dataclass
class _OpenShard:
    """A file handle and the process that may use it: HDF5 handles do not survive a fork."""

    pid: int
    file: h5py.File
    datasets: dict[str, h5py.Dataset]


class ShardReader:
    """Reads one shard; opens it lazily, once in each process.

    The file is taken as hostile: links, external storage, foreign filters, large chunks, data that is not there, other
    types and shapes than the manifest's counts are refused before data is read. Compare it with the manifest first
    (``manifest.check_shard``).

    Args:
        path: of the shard.
        entry: its manifest entry, or None to read a file on its own.
    """

    def __init__(self, path: Path | str, entry: ShardEntry | None = None) -> None:
        self.path = Path(path)
        self.entry = entry
        self._open: _OpenShard | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "entry": self.entry, "_open": None}

    @functools.cached_property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """[D + 1] int64, the token at which each document begins; last T."""
        return self._offsets("document_offsets")

    @functools.cached_property
    def sentence_offsets(self) -> npt.NDArray[np.int64]:
        """[S + 1] int64, the token at which each sentence begins; last T."""
        return self._offsets("sentence_offsets")

    @functools.cached_property
    def document_source(self) -> npt.NDArray[np.uint16]:
        """[D] uint16, index of each document's source in the manifest."""
        return self._read("document_source", 0, self._length("document_source"))

    @functools.cached_property
    def document_label(self) -> npt.NDArray[np.int32] | None:
        """[D] int32, index of each document's label in the manifest, -1 for none; None if the shard has no labels."""
        if "document_label" not in self.optional:
            return None
        labels = self._read("document_label", 0, self._length("document_label"))
        if labels.min() < -1:
            raise ValueError(f"{self.path} is damaged: document_label holds {labels.min()}, and -1 is the least")
        return labels

    @functools.cached_property
    def second_offsets(self) -> npt.NDArray[np.int64] | None:
        """[D] int64, token at which each document's second text begins; None if the shard has no second texts."""
        if "second_offsets" not in self.optional:
            return None
        offsets = self._read("second_offsets", 0, self._length("second_offsets"))
        if (offsets < self.document_offsets[:-1]).any() or (offsets > self.document_offsets[1:]).any():
            raise ValueError(f"{self.path} is damaged: second_offsets has a value outside its document")
        return offsets

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of the optional datasets that the shard has."""
        datasets = self._datasets()
        return tuple(name for name in OPTIONAL if name in datasets)

    @property
    def num_tokens(self) -> int:
        """Number of tokens T."""
        return self._length("tokens")

    @property
    def dtype(self) -> np.dtype:
        """Type of the token ids, uint16 or uint32."""
        return self._dataset("tokens").dtype

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return the ids [stop - start] of a token range, uint16 or uint32.

        Raises:
            ValueError: if the range is not within the shard, or the data is damaged.
        """
        self._check_range(start, stop)
        return self._read("tokens", start, stop)

    def word_starts(self, start: int, stop: int) -> npt.NDArray[np.bool_] | None:
        """Return for a token range whether a word starts at each [stop - start]; None if the shard does not store it.

        Raises:
            ValueError: if the range is not within the shard, or the data is damaged.
        """
        self._check_range(start, stop)
        if "word_starts" not in self.optional:
            return None
        packed = self._read("word_starts", start // 8, (stop + 7) // 8)
        return np.unpackbits(packed, bitorder="little").view(np.bool_)[start % 8 :][: stop - start]

    def arrays(self) -> ShardArrays:
        """Return everything."""
        return ShardArrays(
            self.tokens(0, self.num_tokens),
            self.sentence_offsets,
            self.document_offsets,
            self.document_source,
            self.word_starts(0, self.num_tokens),
            self.document_label,
            self.second_offsets,
        )

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._open is not None and self._open.pid == os.getpid():
            self._open.file.close()
        self._open = None

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(f"{self.path}: tokens {start} to {stop} of {self.num_tokens} were asked for")

    def _length(self, name: str) -> int:
        return int(self._dataset(name).shape[0])

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        try:
            return self._dataset(name)[start:stop]
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{self.path} is damaged: {name} cannot be read ({error}); copy or make it again"
            ) from None

    def _offsets(self, name: str) -> npt.NDArray[np.int64]:
        offsets = self._read(name, 0, self._length(name))
        if offsets[0] != 0 or offsets[-1] != self.num_tokens or (np.diff(offsets) <= 0).any():
            raise ValueError(f"{self.path} is damaged: {name} do not rise from 0 to the {self.num_tokens} tokens")
        return offsets

    def _dataset(self, name: str) -> h5py.Dataset:
        return self._datasets()[name]

    def _datasets(self) -> dict[str, h5py.Dataset]:
        if self._open is None or self._open.pid != os.getpid():
            file = self._open_checked()
            self._open = _OpenShard(os.getpid(), file, {name: file[name] for name in file})
        return self._open.datasets

    def _open_checked(self) -> h5py.File:
        if not self.path.is_file():
            raise ValueError(f"{self.path} is missing; copy the folder again or make it again")
        file = open_hdf5(self.path)
        try:
            _check_file(file, self.path, self.entry)
        except BaseException:
            file.close()
            raise
        return file


def _check_file(file: h5py.File, path: Path, entry: ShardEntry | None) -> None:
    """Refuse whatever a shard of this format does not have, before any data is read."""
    version = file.attrs.get("format_version")
    if np.ndim(version) or version != FORMAT_VERSION:
        raise ValueError(f"{path} has shard format version {version}, and this program reads {FORMAT_VERSION}")
    names = set(file)
    if not set(REQUIRED) <= names <= set(DTYPES):
        raise ValueError(
            f"{path} holds {sorted(names)}, and a shard holds exactly {sorted(REQUIRED)}, and where the corpus has "
            f"them {sorted(OPTIONAL)}"
        )
    present = [name for name in DTYPES if name in names]
    check_datasets(file, present, path)
    for name in present:
        _check_dataset(file[name], name, path)
    _check_shapes(file, path, entry)


def _check_dataset(dataset: h5py.Dataset, name: str, path: Path) -> None:
    if dataset.dtype.str not in DTYPES[name]:
        raise ValueError(f"{path}: {name} has type {dataset.dtype}, allowed: {', '.join(DTYPES[name])}")
    if dataset.ndim != 1:
        raise ValueError(f"{path}: {name} has shape {dataset.shape}, and it must have one dimension")
    if not dataset.shape[0]:
        raise ValueError(f"{path}: {name} has 0 elements, and a shard has at least one document")
    check_storage(dataset, path, ALLOWED_FILTERS, CHUNK_ELEMENTS * dataset.dtype.itemsize, must_be_chunked=True)
    if ZSTD in filters_of(dataset):
        _zstd_plugin()


def _check_shapes(file: h5py.File, path: Path, entry: ShardEntry | None) -> None:
    """Compare lengths with the manifest's counts; those of a file on its own with each other."""
    num_tokens = entry.num_tokens if entry else len(file["tokens"])
    num_documents = entry.num_documents if entry else len(file["document_source"])
    expected = {
        "tokens": num_tokens,
        "sentence_offsets": entry.num_sentences + 1 if entry else len(file["sentence_offsets"]),
        "document_offsets": num_documents + 1,
        "document_source": num_documents,
        "word_starts": (num_tokens + 7) // 8,
        "document_label": num_documents,
        "second_offsets": num_documents,
    }
    for name, length in expected.items():
        if name in file and file[name].shape != (length,):
            says = "the manifest says" if entry else "the other datasets ask for"
            raise ValueError(f"{path}: {name} has {file[name].shape[0]} elements, and {says} {length}")
