"""Files of vectors, written piece by piece: numpy's .npy, HDF5 and parquet; whole or not at all.

An array of all vectors [n, D] in each. Of tokens there are the ids [n] beside it, and offsets [texts + 1]: those of
text i are offsets[i] to offsets[i + 1]. HDF5 holds them as ``vectors``, ``ids``, ``offsets`` (and ``tokens``, the
vocabulary, of an embedding table); .npy has files NAME.ids.npy and NAME.offsets.npy; parquet has a row for each text,
or for each token of an embedding table.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating[Any]]
Int64 = NDArray[np.int64]
CHUNK_ROWS = 256


class VectorWriter(ABC):
    """Writes vectors of texts, of the tokens of texts, or of a vocabulary.

    Used as a context: without an exception the files get their names at its end, else they are removed.
    """

    def __init__(self, path: Path, size: int, dtype: str, settings: Mapping[str, Any]) -> None:
        """Begin a file.

        Args:
            path: the file.
            size: numbers of a vector, D.
            dtype: float32 or float16.
            settings: how the vectors were made, for formats that hold such.
        """
        self.path, self.size, self.dtype, self.settings = path, size, np.dtype(dtype), settings
        self.temporary = self._part(path)
        self.parts: dict[Path, Path] = {self.temporary: path}  # the last one is renamed last

    def _part(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{os.getpid()}.partial")

    @abstractmethod
    def write(self, vectors: Vectors) -> None:
        """Vectors of further texts, [n, D]."""

    @abstractmethod
    def write_tokens(self, ids: Sequence[NDArray[np.integer]], vectors: Sequence[Vectors]) -> None:
        """The tokens of further texts: for each its ids [n] and their vectors [n, D]."""

    @abstractmethod
    def write_table(self, tokens: Sequence[str], vectors: Vectors) -> None:
        """A whole vocabulary: its tokens, and their vectors [vocab_size, D]."""

    @abstractmethod
    def close(self) -> None:
        """Finish the temporary files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.close()
            if kind is None:
                for temporary, path in reversed(self.parts.items()):
                    with open(temporary, "rb") as file:
                        os.fsync(file.fileno())
                    os.replace(temporary, path)
        finally:
            for temporary in self.parts:
                temporary.unlink(missing_ok=True)


class GrowingArray:
    """A .npy file to which rows are appended; numpy leaves room in the header for any number of them."""

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.row_shape, self.dtype, self.num_rows = row_shape, dtype, 0
        self.file = open(path, "wb")  # noqa: SIM115  # close() closes it
        self._write_header()
        self._begin = self.file.tell()

    def append(self, rows: NDArray[Any]) -> None:
        """Further rows, [n, *row_shape]."""
        self.file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.num_rows += len(rows)

    def close(self) -> None:
        """Put the number of rows into the header."""
        if not self.file.closed:
            self.file.seek(0)
            self._write_header()
            assert self.file.tell() == self._begin
            self.file.close()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.num_rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self.file, header)


class NpyWriter(VectorWriter):
    """numpy's own format."""

    def __init__(self, path: Path, size: int, dtype: str, settings: Mapping[str, Any]) -> None:
        super().__init__(path, size, dtype, settings)
        self.arrays = {"": GrowingArray(self.temporary, (size,), self.dtype)}
        self.end = 0

    def write(self, vectors: Vectors) -> None:
        """Append vectors."""
        self.arrays[""].append(vectors)

    def write_tokens(self, ids: Sequence[NDArray[np.integer]], vectors: Sequence[Vectors]) -> None:
        """Append vectors, ids and offsets."""
        if len(self.arrays) == 1:
            for name in ("ids", "offsets"):
                path = self.path.with_name(f"{self.path.stem}.{name}.npy")
                self.parts[self._part(path)] = path
                self.arrays[name] = GrowingArray(self._part(path), (), np.dtype(np.int64))
            self.arrays["offsets"].append(np.zeros(1))
        ends = self.end + np.cumsum([len(part) for part in ids])
        self.end = int(ends[-1])
        self.arrays[""].append(np.concatenate(vectors))
        self.arrays["ids"].append(np.concatenate(ids))
        self.arrays["offsets"].append(ends)

    def write_table(self, tokens: Sequence[str], vectors: Vectors) -> None:
        """Row i is token i; the tokens are those of the model's tokenizer."""
        self.write(vectors)

    def close(self) -> None:
        """Finish all arrays."""
        for array in self.arrays.values():
            array.close()


class Hdf5Writer(VectorWriter):
    """HDF5, its datasets in chunks; the settings are the attribute ``settings`` of the file, as JSON."""

    def __init__(self, path: Path, size: int, dtype: str, settings: Mapping[str, Any]) -> None:
        super().__init__(path, size, dtype, settings)
        import h5py

        self.file = h5py.File(self.temporary, "w")
        self.file.attrs["settings"] = json.dumps(settings, ensure_ascii=False)
        self.file.create_dataset("vectors", (0, size), self.dtype, maxshape=(None, size), chunks=(CHUNK_ROWS, size))
        self.end = 0

    def write(self, vectors: Vectors) -> None:
        """Append vectors."""
        self._append("vectors", vectors)

    def write_tokens(self, ids: Sequence[NDArray[np.integer]], vectors: Sequence[Vectors]) -> None:
        """Append vectors, ids and offsets."""
        if "ids" not in self.file:
            for name in ("ids", "offsets"):
                self.file.create_dataset(name, (0,), np.int64, maxshape=(None,), chunks=(CHUNK_ROWS,))
            self._append("offsets", np.zeros(1))
        ends = self.end + np.cumsum([len(part) for part in ids])
        self.end = int(ends[-1])
        self._append("vectors", np.concatenate(vectors))
        self._append("ids", np.concatenate(ids))
        self._append("offsets", ends)

    def write_table(self, tokens: Sequence[str], vectors: Vectors) -> None:
        """The vectors, and ``tokens`` as UTF-8 texts."""
        import h5py

        self._append("vectors", vectors)
        self.file.create_dataset("tokens", data=list(tokens), dtype=h5py.string_dtype())

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _append(self, name: str, rows: NDArray[Any]) -> None:
        dataset = self.file[name]
        dataset.resize(len(dataset) + len(rows), axis=0)
        dataset[len(dataset) - len(rows) :] = rows


class ParquetWriter(VectorWriter):
    """parquet: a column ``vector``; of tokens ``ids`` and ``vectors``, of a vocabulary ``token`` and ``vector``.

    The settings are in the schema's metadata, as JSON.
    """

    def __init__(self, path: Path, size: int, dtype: str, settings: Mapping[str, Any]) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise ValueError(f"{path}: writing parquet needs the package pyarrow: pip install pyarrow") from None
        super().__init__(path, size, dtype, settings)
        self.arrow, self.parquet = pyarrow, parquet
        self.writer: Any = None

    def write(self, vectors: Vectors) -> None:
        """Append rows."""
        self._write({"vector": self._lists(vectors)})

    def write_tokens(self, ids: Sequence[NDArray[np.integer]], vectors: Sequence[Vectors]) -> None:
        """Append a row for each text."""
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in ids])]).astype(np.int32)
        numbers = self.arrow.array(np.concatenate(ids).astype(np.int64))
        self._write(
            {
                "ids": self.arrow.ListArray.from_arrays(offsets, numbers),
                "vectors": self.arrow.ListArray.from_arrays(offsets, self._lists(np.concatenate(vectors))),
            }
        )

    def write_table(self, tokens: Sequence[str], vectors: Vectors) -> None:
        """A row for each token."""
        self._write({"token": self.arrow.array(list(tokens)), "vector": self._lists(vectors)})

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()

    def _lists(self, vectors: Vectors) -> Any:
        flat = self.arrow.array(np.ascontiguousarray(vectors, self.dtype).reshape(-1))
        return self.arrow.FixedSizeListArray.from_arrays(flat, self.size)

    def _write(self, columns: Mapping[str, Any]) -> None:
        table = self.arrow.table(dict(columns))
        table = table.replace_schema_metadata({"settings": json.dumps(self.settings, ensure_ascii=False)})
        if self.writer is None:
            self.writer = self.parquet.ParquetWriter(self.temporary, table.schema)
        self.writer.write_table(table)


WRITERS: dict[str, type[VectorWriter]] = {
    ".npy": NpyWriter,
    ".h5": Hdf5Writer,
    ".hdf5": Hdf5Writer,
    ".parquet": ParquetWriter,
}


def vector_writer(path: str, size: int, dtype: str, settings: Mapping[str, Any]) -> VectorWriter:
    """The writer for a file by its name."""
    return WRITERS[Path(path).suffix.lower()](Path(path), size, dtype, settings)
