"""Compares a shard folder with its digests, file by file and array by array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from preprocess.manifest import MANIFEST_NAME, Manifest, ShardEntry, check_file, check_shard, read_manifest
from preprocess.output_folder import CACHE_FOLDER, HELDOUT_FOLDER, TOKENIZER_FOLDER, UNFINISHED_NAME
from preprocess.progress import progress_bar
from preprocess.shards import ShardReader, content_digest


def verify_folder(folder: Path | str) -> list[str]:
    """Return everything wrong with a shard folder, one text for each bad file; none if it is as it was written.

    Checked: the manifests against their own digests; each file's size and sha256; each dataset read in full, its
    offsets rising, its ids below the vocabulary's size, its content digest; that no file is missing or unknown.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    if not (folder / MANIFEST_NAME).is_file():
        read_manifest(folder)  # says what to do
    problems, manifests = [], []
    try:
        manifests.append(read_manifest(folder))
    except ValueError as error:
        problems.append(str(error))
    heldout = folder / HELDOUT_FOLDER
    if heldout.exists() or (manifests and _has_heldout(manifests[0])):
        try:
            manifests.append(read_manifest(heldout))
        except ValueError as error:
            problems.append(str(error))
    total = sum(entry.num_bytes for manifest in manifests for entry in manifest.shards)
    with progress_bar("verifying", total) as progress:
        for manifest in manifests:
            problems += _verify_shards(manifest, progress)
            problems += _verify_tokenizer(manifest)
            problems += _unknown_files(manifest)
    problems += _contradictions(manifests)
    return problems


def _has_heldout(manifest: Manifest) -> bool:
    """Whether a folder must hold a folder of held-out documents (which itself has no tokenizer files)."""
    return bool(manifest.settings.get("heldout") and manifest.tokenizer.get("files"))


def _verify_shards(manifest: Manifest, progress: Callable[[int], None]) -> Iterator[str]:
    for entry in manifest.shards:
        try:
            check_shard(manifest.folder, entry)
            check_content(manifest, entry)
        except (ValueError, OSError) as error:
            yield str(error)
        progress(entry.num_bytes)


def check_content(manifest: Manifest, entry: ShardEntry) -> None:
    """Read a whole shard and check its arrays; ValueError names the file and what is wrong."""
    path = manifest.folder / entry.file
    reader = ShardReader(path, entry)
    try:
        arrays = reader.arrays()
    finally:
        reader.close()
    vocab_size = manifest.tokenizer["vocab_size"]
    if arrays.tokens.max() >= vocab_size:
        raise ValueError(f"{path} has the token id {arrays.tokens.max()}, and the vocabulary has {vocab_size} tokens")
    if not np.isin(arrays.document_offsets, arrays.sentence_offsets).all():
        raise ValueError(f"{path} has a document that begins within a sentence")
    if arrays.document_source.max() >= len(manifest.sources):
        raise ValueError(f"{path} has a document of source {arrays.document_source.max()}, which the manifest lacks")
    if content_digest(arrays) != entry.content_sha256:
        raise ValueError(f"{path} is damaged: the digest of its arrays differs from the manifest's")


def _verify_tokenizer(manifest: Manifest) -> Iterator[str]:
    for name, digest in manifest.tokenizer.get("files", {}).items():
        path = manifest.folder / TOKENIZER_FOLDER / name
        if not path.is_file():
            yield f"{path} is missing, and the manifest lists it"
            continue
        try:
            check_file(path, digest)
        except (ValueError, OSError) as error:
            yield str(error)


def _unknown_files(manifest: Manifest) -> Iterator[str]:
    files = manifest.tokenizer.get("files", {})
    known = {
        MANIFEST_NAME,
        UNFINISHED_NAME,
        *(entry.file for entry in manifest.shards),
        *(f"{TOKENIZER_FOLDER}/{name}" for name in files),
    }
    for path in sorted(manifest.folder.rglob("*")):
        name = path.relative_to(manifest.folder).as_posix()
        if name.startswith(f"{HELDOUT_FOLDER}/") and _has_heldout(manifest):
            continue  # the held-out folder has its own manifest
        if name.partition("/")[0] == CACHE_FOLDER:
            continue  # row plans: whoever reads them checks them
        if (path.is_symlink() or not path.is_dir()) and name not in known:
            yield f"{path} is not in the manifest; remove it, or give it a place outside the folder"


def _contradictions(manifests: list[Manifest]) -> Iterator[str]:
    """Compare the manifests of a folder and of its held-out documents, if both could be read."""
    if len(manifests) < 2:
        return
    main, heldout = manifests
    same = main.tokenizer["digest"] == heldout.tokenizer["digest"] and main.settings == heldout.settings
    if not same or main.counts["heldout_documents"] != heldout.counts["documents"]:
        yield f"{heldout.folder / MANIFEST_NAME} belongs to other shards than {main.folder / MANIFEST_NAME}"
