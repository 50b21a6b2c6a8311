"""Compares a shard folder with its digests, file by file and array by array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.folders.counts import SourceCounts, count_by_source, count_problems, source_problems
from preprocess.manifest import MANIFEST_NAME, Manifest, ShardEntry, check_file, check_shard, read_manifest
from preprocess.output_folder import CACHE_FOLDER, HELDOUT_FOLDER, TOKENIZER_FOLDER, UNFINISHED_NAME
from preprocess.progress import progress_bar
from preprocess.shards import ShardArrays, ShardReader, content_digest
from preprocess.workers import run_blocks


def verify_folder(folder: Path | str, num_workers: int = 1) -> list[str]:
    """Return everything wrong with a shard folder, one text for each bad file; none if it is as it was written.

    Checked: the manifests against their own digests, every field of them, their counts against the shards; each
    file's size and sha256; each dataset read in full, its offsets rising, its ids below the vocabulary's size, its
    content digest; that all shards have the same datasets; that no file is missing or unknown. The texts and their
    order are the same for any number of workers.

    Args:
        num_workers: processes that read the shards.

    Raises:
        ValueError: if there is no finished shard folder, or no worker.
    """
    check_workers(num_workers)
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
    if heldout.exists() or (manifests and has_heldout(manifests[0])):
        try:
            manifests.append(read_manifest(heldout))
        except ValueError as error:
            problems.append(str(error))
    found = _verify_shards(manifests, num_workers)
    for manifest in manifests:
        problems += found.pop(0)
        problems += _verify_tokenizer(manifest)
        problems += _unknown_files(manifest)
    problems += _contradictions(manifests, folder)
    return problems


def check_workers(num_workers: int) -> None:
    """Refuse less than one process."""
    if num_workers < 1:
        raise ValueError(f"workers is {num_workers}: at least 1 is needed")


def has_heldout(manifest: Manifest) -> bool:
    """Whether a folder must hold a folder of held-out documents (which itself has no tokenizer files)."""
    return bool(manifest.settings.get("heldout") and manifest.tokenizer.get("files"))


def _verify_shards(manifests: list[Manifest], num_workers: int) -> list[list[str]]:
    """Return the problems of each manifest's shards."""
    work = [(manifest, entry) for manifest in manifests for entry in manifest.shards]
    with progress_bar("verifying", sum(entry.num_bytes for _, entry in work)) as progress:
        checked = run_blocks(VerifyJob(work), range(len(work)), num_workers, progress)
    found: list[list[str]] = []
    for manifest in manifests:
        own, checked = checked[: len(manifest.shards)], checked[len(manifest.shards) :]
        found.append([shard.problem for shard in own if shard.problem])
        found[-1] += _unlike(manifest, [shard.optional for shard in own])
        counts = [shard.counts for shard in own if shard.counts is not None]
        if len(counts) == len(own):  # else the damage tells enough
            found[-1] += source_problems(manifest, counts)
    return found


def _unlike(manifest: Manifest, optional: list[tuple[str, ...] | None]) -> Iterator[str]:
    """Compare the optional datasets of each shard with those that most shards have; None: could not be read."""
    known = [names for names in optional if names is not None]
    usual = max(known, key=known.count, default=())
    for entry, names in zip(manifest.shards, optional, strict=True):
        if names is not None and names != usual:
            yield (
                f"{manifest.folder / entry.file} has the optional datasets {list(names)}, "
                f"and other shards of the folder have {list(usual)}"
            )


@dataclass(frozen=True)
class CheckedShard:
    """What is wrong with a shard; of a whole one, the optional datasets that it has and the counts of its sources."""

    problem: str | None
    optional: tuple[str, ...] | None = None
    counts: SourceCounts | None = None


@dataclass(frozen=True)
class VerifyJob:
    """Checks shards; see ``workers.Job``."""

    work: list[tuple[Manifest, ShardEntry]]

    def start(self) -> None:
        """Need nothing."""

    def run(self, state: None, block: int, progress: Callable[[int], None]) -> CheckedShard:
        """Check one shard."""
        manifest, entry = self.work[block]
        try:
            arrays = read_checked(manifest, entry)
            return CheckedShard(None, arrays.optional, count_by_source(arrays))
        except (ValueError, OSError) as error:
            return CheckedShard(str(error))
        finally:
            progress(entry.num_bytes)


def read_checked(manifest: Manifest, entry: ShardEntry) -> ShardArrays:
    """Return the arrays of a shard after comparing file and arrays with the manifest.

    Raises:
        ValueError: naming the file and what is wrong.
    """
    check_shard(manifest.folder, entry)
    path = manifest.folder / entry.file
    reader = ShardReader(path, entry)
    try:
        arrays = reader.arrays()
    finally:
        reader.close()
    check_ranges(manifest, entry, arrays)
    if not np.isin(arrays.document_offsets, arrays.sentence_offsets).all():
        raise ValueError(f"{path} has a document that begins within a sentence")
    if arrays.second_offsets is not None and not np.isin(arrays.second_offsets, arrays.sentence_offsets).all():
        raise ValueError(f"{path} has a second text that begins within a sentence")
    if content_digest(arrays) != entry.content_sha256:
        raise ValueError(f"{path} is damaged: the digest of its arrays differs from the manifest's")
    return arrays


def check_ranges(manifest: Manifest, entry: ShardEntry, arrays: ShardArrays) -> None:
    """Check that ids, sources and labels of a shard are those of its manifest; ValueError names the file."""
    path = manifest.folder / entry.file
    vocab_size = manifest.tokenizer["vocab_size"]
    if arrays.tokens.max() >= vocab_size:
        raise ValueError(f"{path} has the token id {arrays.tokens.max()}, and the vocabulary has {vocab_size} tokens")
    if arrays.document_source.max() >= len(manifest.sources):
        raise ValueError(f"{path} has a document of source {arrays.document_source.max()}, which the manifest lacks")
    if arrays.document_label is not None and arrays.document_label.max() >= len(manifest.labels):
        raise ValueError(f"{path} has a document of label {arrays.document_label.max()}, which the manifest lacks")


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
        if name.startswith(f"{HELDOUT_FOLDER}/") and has_heldout(manifest):
            continue  # the held-out folder has its own manifest
        if name.partition("/")[0] == CACHE_FOLDER:
            continue  # row plans: whoever reads them checks them
        if (path.is_symlink() or not path.is_dir()) and name not in known:
            yield f"{path} is not in the manifest; remove it, or give it a place outside the folder"


def _contradictions(manifests: list[Manifest], folder: Path) -> Iterator[str]:
    """Compare counts with shards, and the manifests of a folder and of its held-out documents, where both were read."""
    if len(manifests) == 2:
        main, heldout = manifests
        yield from count_problems(main, heldout)
        if _described(main) != _described(heldout):
            yield f"{heldout.folder / MANIFEST_NAME} belongs to other shards than {main.folder / MANIFEST_NAME}"
    elif manifests and (manifests[0].folder != folder or not has_heldout(manifests[0])):
        yield from count_problems(manifests[0], None)


def _described(manifest: Manifest) -> tuple[object, ...]:
    """Return what a folder and its held-out documents have in common."""
    tokenizer = {name: value for name, value in manifest.tokenizer.items() if name != "files"}
    sources = [(source.name, source.layout, source.files) for source in manifest.sources]
    return tokenizer, manifest.settings, manifest.labels, sources
