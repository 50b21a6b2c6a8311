"""The manifest of a shard folder: what is in it, with digests; written last, so a folder that has one is whole."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.files import sha256_of_file, write_atomically
from preprocess.manifest_fields import check_fields

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard file.

    Attributes:
        file: its name in the folder.
        sha256: of the file's bytes (they depend on the versions of HDF5 and zstd).
        content_sha256: of the arrays alone.
        input_sha256: of the bytes of text that it was made from.
        num_bytes: size of the file.
    """

    file: str
    sha256: str
    content_sha256: str
    input_sha256: str
    num_bytes: int
    num_documents: int
    num_sentences: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """One argument of the command that made the shards; ``files`` holds {"name", "num_bytes", "layout"} of each."""

    name: str
    layout: str
    files: list[dict[str, Any]]
    num_documents: int
    num_sentences: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a shard folder that a reader needs before it opens a shard.

    Attributes:
        folder: where it was read from; no part of the file or of the digest.
        tokenizer: {"type", "digest", "vocab_size", "files": {name: sha256}}.
        settings: what decides the bytes: block size, compression, held-out fraction, versions of the libraries.
        counts: totals over the shards, and what was dropped, by reason.
        labels: names of the documents' labels; the file has no such key where there are none.
    """

    folder: Path
    format_version: int
    tokenizer: dict[str, Any]
    sources: list[Source]
    shards: list[ShardEntry]
    settings: dict[str, Any]
    counts: dict[str, int]
    labels: list[str] = field(default_factory=list)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON (sorted keys, no spaces) of all fields but ``folder``."""
        return _digest(_payload(self))


def _payload(manifest: Manifest) -> dict[str, Any]:
    fields = dataclasses.asdict(manifest)
    del fields["folder"]
    if not manifest.labels:
        del fields["labels"]
    return fields


def _digest(payload: dict[str, Any]) -> str:
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _render(payload: dict[str, Any]) -> bytes:
    """Return the file's bytes: the payload with its own digest."""
    whole = {**payload, "digest": _digest(payload)}
    return (json.dumps(whole, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def write_manifest(manifest: Manifest, folder: Path | str) -> None:
    """Write manifest.json atomically; the last step of making a shard folder."""
    write_atomically(Path(folder) / MANIFEST_NAME, _render(_payload(manifest)))


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check the manifest of a shard folder.

    Raises:
        ValueError: if there is none, it was changed after it was written, its format is not known, or a field
            is not as it must be.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(
            f"no {MANIFEST_NAME} in {folder}: no shard folder, or one that was not finished; make it with "
            "`python -m preprocess shards --corpus TEXT --tokenizer TOKENIZER --output SHARDS`"
        )
    data = path.read_bytes()
    try:
        payload = json.loads(data)
        payload.pop("digest")
        version = payload["format_version"]
        is_whole = _render(payload) == data
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; make the shards again") from None
    if version != FORMAT_VERSION or type(version) is not int:
        raise ValueError(f"{path} has format version {version!r}, and this program reads {FORMAT_VERSION}")
    if not is_whole:
        raise ValueError(f"{path} is damaged: it does not match its own digest; make the shards again")
    try:
        check_fields(payload)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no manifest of this format: {error}") from None
    return _from_payload(payload, path.parent)


def _from_payload(payload: dict[str, Any], folder: Path) -> Manifest:
    sources = [Source(**source) for source in payload.pop("sources")]
    shards = [ShardEntry(**shard) for shard in payload.pop("shards")]
    return Manifest(folder=folder, sources=sources, shards=shards, **payload)


def check_shard(folder: Path | str, entry: ShardEntry) -> None:
    """Compare a shard file with its manifest entry.

    Raises:
        ValueError: naming the file, if it is missing or its size or sha256 differs.
    """
    path = Path(folder) / entry.file
    if not path.is_file():
        raise ValueError(f"{path} is missing, and the manifest lists it; copy the folder again or make it again")
    check_file(path, entry.sha256, entry.num_bytes)


def check_file(path: Path, sha256: str, num_bytes: int | None = None) -> None:
    """Compare a file's size and sha256 with what they should be; ValueError names the file and the difference."""
    found = path.stat().st_size
    if num_bytes is not None and found != num_bytes:
        raise ValueError(f"{path} has {found:,} bytes, and the manifest says {num_bytes:,}: cut short or changed")
    if sha256_of_file(path) != sha256:
        raise ValueError(f"{path} is damaged: its sha256 differs from the manifest's; copy or make it again")
