"""Static HDF5 files of the NVIDIA BERT recipes: found, and their structure checked before any data is read.

N rows of L tokens, [CLS] a [SEP] b [SEP] and padding, masked once and for all: input_ids, input_mask, segment_ids
[N, L]; masked_lm_positions, masked_lm_ids [N, P], 0 where a row has fewer than P; next_sentence_labels [N], 1 where b
is from another document (create_pretraining_data.py of NVIDIA's DeepLearningExamples).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py

from preprocess.hostile_hdf5 import check_datasets, check_storage, open_hdf5

LAYOUT = "nvidia_hdf5"
TEXT_NAMES = ("input_ids", "input_mask", "segment_ids")
MASK_NAMES = ("masked_lm_positions", "masked_lm_ids")
NAMES = (*TEXT_NAMES, *MASK_NAMES, "next_sentence_labels")
FILTERS = {1: "gzip", 2: "shuffle", 32000: "lzf"}
MAX_LENGTH = 1 << 16
MAX_CHUNK_BYTES = 64 << 20  # a chunk is decompressed whole
DEFAULT_SOURCE = "nvidia"
SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class NvidiaFile:
    """One file: where it is, its name within its source (an index), its size and its rows."""

    path: str
    name: str
    source: int
    num_bytes: int
    num_rows: int
    length: int


def find_files(arguments: Sequence[str]) -> tuple[list[str], list[NvidiaFile]]:
    """Return the names of the sources, and all files checked, in the order of the arguments, folders sorted.

    Raises:
        ValueError: if an argument stands for no file, a file is named twice or is not of this format.
    """
    names: list[str] = []
    files: list[NvidiaFile] = []
    seen: dict[str, str] = {}
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        if not equals or os.path.lexists(argument):
            name, rest = DEFAULT_SOURCE, argument
        if not name or not rest:
            raise ValueError(f"{argument!r} is neither PATH nor NAME=PATH")
        if name not in names:
            names.append(name)
        for path, short in _expand(rest):
            real = os.path.realpath(path)
            if real in seen:
                raise ValueError(f"{path} is given twice, by {seen[real]!r} and {argument!r}; give it once")
            seen[real] = argument
            files.append(check_file(path, short, names.index(name)))
    return names, files


def _expand(text: str) -> list[tuple[Path, str]]:
    """Return the files that an argument stands for, sorted, each with a name that is the same on every machine."""
    path = Path(text)
    if path.is_dir():
        found = [entry for entry in path.rglob("*") if entry.suffix in SUFFIXES and not _is_hidden(entry, path)]
        if not found:
            raise ValueError(f"{text}: no {' or '.join(SUFFIXES)} file in this folder")
        return [(entry, entry.relative_to(path).as_posix()) for entry in sorted(found, key=os.fsencode)]
    if os.path.lexists(path):
        return [(path, path.name)]
    found = [Path(name) for name in glob.glob(text, recursive=True)]
    if not found:
        raise ValueError(f"{text}: no such file, and no file fits it as a pattern")
    return [(entry, entry.name) for entry in sorted(found, key=os.fsencode)]


def _is_hidden(entry: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in entry.relative_to(folder).parts)


def check_file(path: Path, name: str, source: int) -> NvidiaFile:
    """Check the structure of a file, before any data is read, and return what it holds.

    Raises:
        ValueError: naming the file and what is not as it must be.
    """
    with open_file(path) as file:
        _check_names(file, path)
        for dataset_name in NAMES:
            _check_dataset(file[dataset_name], dataset_name, path)
        rows, length = file["input_ids"].shape
        slots = file["masked_lm_positions"].shape[1]
        shapes = dict.fromkeys(TEXT_NAMES, (rows, length)) | dict.fromkeys(MASK_NAMES, (rows, slots))
        for dataset_name, shape in (shapes | {"next_sentence_labels": (rows,)}).items():
            if file[dataset_name].shape != shape:
                raise ValueError(f"{path}: {dataset_name} has shape {file[dataset_name].shape}, and {shape} is needed")
        if not 3 <= length <= MAX_LENGTH or slots > length:
            raise ValueError(
                f"{path}: rows of {length:,} tokens with {slots:,} masked; 3 to {MAX_LENGTH:,} tokens are allowed, and "
                "no more masked than there are"
            )
    return NvidiaFile(str(path), name, source, path.stat().st_size, rows, length)


def open_file(path: Path | str) -> h5py.File:
    """Open a file for reading; ValueError if that cannot be done."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return open_hdf5(path)


def _check_names(file: h5py.File, path: Path) -> None:
    names = set(file)
    if names != set(NAMES):
        missing, unknown = sorted(set(NAMES) - names), sorted(names - set(NAMES))
        hint = "; these are shards already" if "document_offsets" in names else ""
        raise ValueError(
            f"{path} lacks {missing} and has the unknown {unknown}; needed are exactly {list(NAMES)}{hint}"
        )
    check_datasets(file, NAMES, path)


def _check_dataset(dataset: h5py.Dataset, name: str, path: Path) -> None:
    if dataset.dtype.kind not in "iu":
        raise ValueError(f"{path}: {name} has type {dataset.dtype}, and whole numbers are needed")
    ndim = 1 if name == "next_sentence_labels" else 2
    if dataset.ndim != ndim or 0 in dataset.shape:
        raise ValueError(f"{path}: {name} has shape {dataset.shape}, and {ndim} dimensions without a 0 are needed")
    check_storage(dataset, path, FILTERS, MAX_CHUNK_BYTES, must_be_chunked=False)
