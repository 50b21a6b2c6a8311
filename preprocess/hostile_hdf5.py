"""HDF5 files that may come from anywhere: opened and checked so that reading one gets what is in it, and no more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py


def open_hdf5(path: Path | str) -> h5py.File:
    """Open a file for reading; ValueError if it is no HDF5 file."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ValueError(f"{path} is no readable HDF5 file: {error}") from None


def check_datasets(file: h5py.File, names: Iterable[str], path: Path) -> None:
    """Refuse names that are links to elsewhere, or no datasets; they are in the file."""
    for name in names:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{path}: {name} is a link to elsewhere; only data within the file is read")
        if not isinstance(file[name], h5py.Dataset):
            raise ValueError(f"{path}: {name} is no dataset")


def check_storage(
    dataset: h5py.Dataset, path: Path, filters: Mapping[int, str], max_chunk_bytes: int, must_be_chunked: bool
) -> None:
    """Refuse data that is outside of the file, not all there, or that takes unbounded memory to read.

    Args:
        filters: number and name of the HDF5 filters that are allowed.
        max_chunk_bytes: the largest chunk; one is decompressed whole.
    """
    name = dataset.name.removeprefix("/")
    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    layouts = (h5py.h5d.CHUNKED,) if must_be_chunked else (h5py.h5d.CHUNKED, h5py.h5d.CONTIGUOUS)
    if layout not in layouts or properties.get_external_count():
        how = "chunked" if must_be_chunked else "plain or chunked"
        raise ValueError(f"{path}: {name} is not stored within the file as {how} data")
    foreign = [number for number in filters_of(dataset) if number not in filters]
    if foreign:
        allowed = ", ".join(f"{text} ({number})" for number, text in filters.items())
        raise ValueError(f"{path}: {name} uses the HDF5 filters {foreign}, allowed: {allowed}")
    if layout == h5py.h5d.CHUNKED:
        if math.prod(dataset.chunks) * dataset.dtype.itemsize > max_chunk_bytes:
            raise ValueError(f"{path}: {name} has chunks of {dataset.chunks}, larger than {max_chunk_bytes:,} bytes")
        expected = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        is_whole = dataset.id.get_num_chunks() == expected
    else:
        is_whole = dataset.id.get_storage_size() == dataset.size * dataset.dtype.itemsize
    if not is_whole:
        raise ValueError(f"{path}: {name} claims {dataset.shape} numbers, and not all of them are in the file")


def filters_of(dataset: h5py.Dataset) -> list[int]:
    """Return the numbers of a dataset's HDF5 filters, in their order."""
    properties = dataset.id.get_create_plist()
    return [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
